"""Llama 1, 2, 3, 3.1, 3.2 and models of their class: TinyLlama, SmolLM2 and many more."""

from __future__ import annotations

from pyllama.architecture.config import Windows
from pyllama.architecture.family import Defaults, Family
from pyllama.architecture.fields import Fields
from pyllama.architecture.names import Names


class Llama(Family):
    model_type = "llama"
    architecture = "LlamaForCausalLM"
    defaults = Defaults(max_position_embeddings=2048, num_key_value_heads=None, head_dim=None)
    attention_bias, mlp_bias = False, True
    gguf_architecture = "llama"
    gguf_windowed = True  # Mistral's files are of this architecture
    gguf_interleaved = True  # llama.cpp's converter permutes the rows of q and k
    gguf_factors = True
    meta = Names(
        "layers.",
        {
            "tok_embeddings.weight": "model.embed_tokens.weight",
            "norm.weight": "model.norm.weight",
            "output.weight": "lm_head.weight",
        },
        {
            "attention.wq": "self_attn.q_proj",
            "attention.wk": "self_attn.k_proj",
            "attention.wv": "self_attn.v_proj",
            "attention.wo": "self_attn.o_proj",
            "feed_forward.w1": "mlp.gate_proj",
            "feed_forward.w2": "mlp.down_proj",
            "feed_forward.w3": "mlp.up_proj",
            "attention_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
        },
    )

    def windows(self, f: Fields, layer_types: list[str] | None, layers: int) -> Windows:
        # The class looks at no window, whatever `sliding_window` says.
        if layer_types and "sliding_attention" in layer_types:
            raise f.unsupported("layer_types", "'sliding_attention' in a llama model")
        return (None,) * layers
