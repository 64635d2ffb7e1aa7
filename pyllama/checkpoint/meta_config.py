"""Meta's `params.json` -> Config, under the names of config.json. Reads no files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllama.architecture.config import Config, RopeScaling
from pyllama.architecture.fields import Fields
from pyllama.architecture.llama import Llama
from pyllama.architecture.sliding import sliding_window
from pyllama.errors import shown

_META_KEYS = {
    "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size", "multiple_of",
    "ffn_dim_multiplier", "norm_eps", "rope_theta", "use_scaled_rope", "rope_scaling_factor",
    "rope_high_freq_factor", "sliding_window", "max_seq_len", "max_batch_size", "model_parallel_size",
}  # fmt: skip
_LLAMA3_VOCAB = 128256
_LLAMA32_SHAPES = {(2048, 16), (3072, 28)}  # (dim, n_layers) of 1B and 3B, which scale by 32 and not by 8


def meta_config(
    params: Mapping[str, Any], *, vocab_size: int, intermediate_size: int, tie_word_embeddings: bool
) -> Config:
    """Config of a parsed `params.json`; `meta_assumptions` says what it had to take for granted."""
    f = Fields(params, "params.json")
    for key in params:
        # Whatever it is (moe_args, quantization_args, vision_chunk_size), it is not in the mathematics here.
        if key not in _META_KEYS and f.get(key):
            raise f.unsupported(shown(key), "a model with it")
    if f.size("intermediate_size", "hidden_dim", intermediate_size) != intermediate_size:
        raise f.fail("hidden_dim", f"{intermediate_size}, the rows of layers.0.feed_forward.w1")
    dim = f.size("hidden_size", "dim")
    heads = f.size("num_attention_heads", "n_heads")
    layers = f.size("num_hidden_layers", "n_layers")
    if not f.has("head_dim") and dim % heads:
        raise f.fail("dim", f"a multiple of n_heads {heads}")
    llama3 = vocab_size >= _LLAMA3_VOCAB
    scaled = f.boolean("use_scaled_rope", False)
    scaling = None
    if scaled:
        factor = 32.0 if llama3 and (dim, layers) in _LLAMA32_SHAPES else 8.0
        scaling = RopeScaling(
            "llama3", factor=f.number("rope_scaling_factor", 1e-3, 1e6, factor), low_freq_factor=1.0,
            high_freq_factor=f.number("rope_high_freq_factor", 1.001, 1e6, 4.0),
            original_max_position_embeddings=8192,
        )  # fmt: skip
    # Mistral 7B v0.1 came in this form too, with the key that Meta's models do not have.
    window = sliding_window(f, None)
    eps = f.number("norm_eps", 0.0, 1.0, 1e-5)
    theta = f.number("rope_theta", 1.0001, 1e12, 10000.0)
    positions = 32768 if window else _meta_positions(llama3, scaled, theta, eps)
    return Config(
        model_type=Llama.model_type,
        architecture=Llama.architecture,
        hidden_size=dim,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=f.size("num_key_value_heads", "n_kv_heads", heads),
        head_dim=f.size("head_dim", default=dim // heads),
        vocab_size=vocab_size,
        rms_norm_eps=eps,
        rope_theta=theta,
        rope_scaling=scaling,
        max_position_embeddings=f.size("max_position_embeddings", "max_seq_len", positions),
        tie_word_embeddings=tie_word_embeddings,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        layer_windows=(window,) * layers,
        bos_token_id=128000 if llama3 else 1,
        eos_token_ids=(128001, 128008, 128009) if llama3 else (2,),
    )


def _meta_positions(llama3: bool, scaled: bool, theta: float, eps: float) -> int:
    """Meta's files do not say how long a context they were trained on; the family does."""
    if scaled:
        return 131072  # 3.1, 3.2, 3.3
    if llama3:
        return 8192
    if theta >= 1e6:
        return 16384  # Code Llama
    return 2048 if eps == 1e-6 else 4096  # Llama 1, Llama 2


def meta_assumptions(config: Config) -> str:
    """One line for people: what a Meta folder leaves open and from_meta filled in."""
    text = (
        f"max_position_embeddings {config.max_position_embeddings}, bos {config.bos_token_id}, "
        f"eos {', '.join(map(str, config.eos_token_ids))}, from the vocabulary of {config.vocab_size}"
    )
    if config.rope_scaling:
        text += f"; llama3 rotary scaling by {config.rope_scaling.factor:g} over 8192 positions"
    return text
