"""Configs of models that people know, without their files: what plans are made for."""

from pyllama.architecture.config import Config
from pyllama.checkpoint.huggingface_config import huggingface_config


def config_of(hidden, inner, layers, heads, kv_heads, vocab, **more) -> Config:
    fields = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
              "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
              "num_key_value_heads": kv_heads, "vocab_size": vocab, "rms_norm_eps": 1e-5, "hidden_act": "silu",
              "max_position_embeddings": 4096, "torch_dtype": "bfloat16"}  # fmt: skip
    return huggingface_config(fields | more)


LLAMA_7B = config_of(4096, 11008, 32, 32, 32, 32000)
LLAMA_13B = config_of(5120, 13824, 40, 40, 40, 32000)
LLAMA_70B = config_of(8192, 28672, 80, 64, 8, 32000)
QWEN_05B = config_of(
    896, 4864, 24, 14, 2, 151936, model_type="qwen2", architectures=["Qwen2ForCausalLM"], tie_word_embeddings=True
)
QWEN_15B = config_of(
    1536, 8960, 28, 12, 2, 151936, model_type="qwen2", architectures=["Qwen2ForCausalLM"], tie_word_embeddings=True
)
