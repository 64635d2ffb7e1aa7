"""A plan from config.json alone: every family, and the shapes of models that people know, as they were published."""

import json

import pytest
import tiny

from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.huggingface_outline import describes, outline_huggingface
from pyllama.cli import main
from pyllama.errors import CheckpointError, UnsupportedError

_LONG = [1.0 + 0.1 * i for i in range(48)]
_GEMMA4 = {
    "head_dim": 256,
    "global_head_dim": 512,
    "vocab_size": 262144,
    "sliding_window": 512,
    "num_hidden_layers": 60,
}
#: model_type, what its config.json says, and how many weights it has, in thousands of millions.
PUBLISHED = {
    "gemma-2-2b": (
        "gemma2", {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
                   "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000}, 2.61),
    "gemma-3-27b": (
        "gemma3", {"hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62, "num_attention_heads": 32,
                   "num_key_value_heads": 16, "head_dim": 128, "vocab_size": 262208, "sliding_window": 1024,
                   "query_pre_attn_scalar": 168, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}, 27.0),
    "gemma-4-E2B": (
        "gemma4", _GEMMA4 | {"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35,
                             "num_attention_heads": 8, "num_key_value_heads": 1, "num_kv_shared_layers": 20,
                             "use_double_wide_mlp": True, "hidden_size_per_layer_input": 256}, 4.62),
    "gemma-4-31B": (
        "gemma4", _GEMMA4 | {"hidden_size": 5376, "intermediate_size": 21504, "num_attention_heads": 32,
                             "num_key_value_heads": 16, "num_global_key_value_heads": 4, "attention_k_eq_v": True,
                             "hidden_size_per_layer_input": 0, "sliding_window": 1024}, 30.7),
    "Phi-3-mini-4k": (
        "phi3", {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
                 "vocab_size": 32064, "sliding_window": 2047}, 3.82),
    "Phi-4-mini": (
        "phi3", {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 24,
                 "num_key_value_heads": 8, "vocab_size": 200064, "max_position_embeddings": 131072,
                 "original_max_position_embeddings": 4096, "sliding_window": 262144, "partial_rotary_factor": 0.75,
                 "tie_word_embeddings": True,
                 "rope_scaling": {"type": "longrope", "short_factor": _LONG, "long_factor": _LONG}}, 3.84),
    "SmolLM3-3B": (
        "smollm3", {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
                    "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 128256}, 3.08),
    "granite-3.3-8b": (
        "granite", {"hidden_size": 4096, "intermediate_size": 12800, "num_hidden_layers": 40,
                    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 49159,
                    "embedding_multiplier": 12.0, "tie_word_embeddings": True}, 8.17),
    "granite-4.0-micro": (
        "granitemoehybrid", {"hidden_size": 2560, "intermediate_size": 8192, "shared_intermediate_size": 8192,
                             "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 8,
                             "num_local_experts": 0, "num_experts_per_tok": 0, "layer_types": ["attention"] * 40,
                             "position_embedding_type": "rope", "vocab_size": 100352, "tie_word_embeddings": True,
                             "mamba_d_state": 128, "time_step_limit": [0.0, float("inf")]}, 3.40),
    "OLMo-2-7B": (
        "olmo2", {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                  "vocab_size": 100352}, 7.30),
    "Olmo-3-32B": (
        "olmo3", {"hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40,
                  "num_key_value_heads": 8, "vocab_size": 100278, "sliding_window": 4096,
                  "max_position_embeddings": 65536}, 32.2),
    "Ministral-3-3B": (
        "mistral3", {"model_type": "ministral3", "hidden_size": 3072, "intermediate_size": 9216,
                     "num_hidden_layers": 26, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
                     "vocab_size": 131072, "tie_word_embeddings": True}, 3.43),
    "Mistral-Small-3.2-24B": (
        "mistral3", {"model_type": "mistral", "hidden_size": 5120, "intermediate_size": 32768,
                     "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
                     "vocab_size": 131072, "sliding_window": None, "rope_theta": 1e9}, 23.6),
    "Qwen3.5-9B": (
        "qwen3_5", {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32,
                    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 248320,
                    "linear_num_key_heads": 16, "linear_num_value_heads": 32}, 8.95),
    "LFM2-2.6B": (
        "lfm2", {"hidden_size": 2048, "block_ff_dim": 10752, "num_hidden_layers": 30, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "vocab_size": 65536, "block_auto_adjust_ff_dim": False,
                 "intermediate_size": 10752, "full_attn_idxs": [2, 5, 9, 13, 17, 21, 25, 28]}, 2.57),
}  # fmt: skip
_WITHIN = ("gemma3", "gemma4", "mistral3", "qwen3_5")


def write(folder, config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def report(folder, capsys, *more):
    assert main(["plan", str(folder), "--memory", "4G", "--board", "pi5", "--quiet", "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("model_type", tiny.FAMILIES)
def test_every_family_is_planned_from_its_config(model_type, tmp_path, capsys):
    folder = write(tmp_path / "m", tiny.tiny_config(model_type=model_type))
    told = report(folder, capsys)
    assert told["model"]["parameters"] > 0 and told["forecast"]["token_s"] > 0
    with pytest.raises(CheckpointError, match="has the download ended"):  # nothing else is content with so little
        open_checkpoint(folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_that_people_know(name, tmp_path, capsys):
    model_type, said, weights = PUBLISHED[name]
    config = {"model_type": model_type, "dtype": "bfloat16"}
    config |= {"text_config": said} if model_type in _WITHIN else said
    told = report(write(tmp_path / "m", config), capsys)
    assert f"{told['model']['parameters'] / 1e9:.3g}" == f"{weights:.3g}"
    assert told["model"]["dtype"] == "BF16"


def test_a_folder_with_anything_else_is_opened_for_what_it_is(tmp_path):
    folder = write(tmp_path / "m", tiny.tiny_config())
    (folder / "tokenizer.model").write_bytes(b"")
    (folder / "README.md").write_text("")
    assert describes(folder)
    assert outline_huggingface(folder).config.hidden_size == 48
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert not describes(folder)
    with pytest.raises(UnsupportedError, match="convert them to safetensors"):
        open_checkpoint(folder)
    assert not describes(tmp_path) and not describes(tmp_path / "no")


@pytest.mark.parametrize("model_type", ["granitemoehybrid", "bamba", "nemotron_h", "mamba2"])
def test_infinity_in_config_json_hides_no_name(model_type, tmp_path):
    """Limits of Mamba are published as Infinity, which is not JSON."""
    folder = write(tmp_path / "m", {"model_type": model_type, "time_step_limit": [0.0, float("inf")]})
    with pytest.raises(UnsupportedError, match="num_local_experts|a recurrent model"):
        outline_huggingface(folder)
    with pytest.raises(CheckpointError, match="rms_norm_eps"):
        outline_huggingface(write(tmp_path / "n", tiny.tiny_config(rms_norm_eps=float("inf"))))
