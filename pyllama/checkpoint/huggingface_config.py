"""`config.json` of transformers 4 and 5 -> Config.

Every number is range-checked, and what would change the mathematics in a way that the family's layers do not know is
refused by name. Reads no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyllama.architecture import FAMILIES, class_names
from pyllama.architecture.config import Config, RopeScaling
from pyllama.architecture.family import Family
from pyllama.architecture.fields import Fields
from pyllama.architecture.rope import yarn_magnitude
from pyllama.checkpoint import foreign
from pyllama.errors import shown


def huggingface_config(config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None) -> Config:
    """Config of a parsed `config.json`, transformers 4 or 5.

    generation_config: the parsed `generation_config.json`, for the ids that end a text.
    Raises UnsupportedError for a model, feature or option the decoder does not have.
    """
    f = Fields(config, "config.json")
    family = _family(f)
    _refuse_quantized(f)
    _check_class(f, family)
    family.refuse(f)
    defaults = family.defaults

    hidden_size = f.size("hidden_size")
    layers = f.size("num_hidden_layers")
    heads = f.size("num_attention_heads")
    # A key that is there and null means "as many as heads"; one that is not there means the class default.
    kv_default = defaults.num_key_value_heads if f.absent("num_key_value_heads") else None
    dim_default = defaults.head_dim if f.absent("head_dim") else None
    if not f.has("head_dim") and dim_default is None and hidden_size % heads:
        raise f.fail("hidden_size", f"a multiple of num_attention_heads {heads}, or an explicit head_dim")
    positions = f.size("max_position_embeddings", default=defaults.max_position_embeddings)
    kinds = _layer_types(f, layers)
    theta, scaling = _rope(f, positions, set(kinds or ["full_attention"]))
    biases = family.biases(f)
    ends = Fields(generation_config or {}, "generation_config.json")
    return Config(
        model_type=family.model_type,
        architecture=family.architecture,
        hidden_size=hidden_size,
        intermediate_size=f.size("intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=f.size("num_key_value_heads", default=kv_default or heads),
        head_dim=f.size("head_dim", default=dim_default or hidden_size // heads),
        vocab_size=f.size("vocab_size"),
        rms_norm_eps=f.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        max_position_embeddings=positions,
        tie_word_embeddings=f.boolean("tie_word_embeddings", False),
        qkv_bias=biases.qkv,
        o_bias=biases.o,
        mlp_bias=biases.mlp,
        layer_windows=family.windows(f, kinds, layers),
        bos_token_id=f.token_id("bos_token_id") if f.has("bos_token_id") else ends.token_id("bos_token_id"),
        eos_token_ids=_unique(ends.token_ids("eos_token_id") + f.token_ids("eos_token_id")),
        mixture=family.mixture(f, layers),
    )


def huggingface_dtype(config: Mapping[str, Any]) -> str:
    """The storage format that config.json names for the weights, which may be stored otherwise."""
    f = Fields(config, "config.json")
    name = f.text("dtype") or f.text("torch_dtype") or "float32"
    return {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}.get(name.removeprefix("torch."), "F32")


def _family(f: Fields) -> Family:
    classes = {name: family.architecture for name, family in FAMILIES.items()}
    model_type = f.text("model_type") or class_names.model_type_of(f.get("architectures"), classes)
    if model_type not in FAMILIES:
        if model_type is None:
            raise f.fail("model_type", "the name of a model family")
        what = f"{shown(model_type)}{foreign.described(model_type)}"
        raise f.unsupported("model_type", f"{what} (supported: {', '.join(sorted(FAMILIES))})")
    return FAMILIES[model_type]


def _check_class(f: Fields, family: Family) -> None:
    """`architectures` must name the class of model_type, if it names any."""
    other = class_names.other_class(f.get("architectures"), family.architecture)
    if other is not None:
        kind = foreign.described_class(other)
        raise f.unsupported("architectures", f"{shown(other)}{kind} (expected {family.architecture})")


def _unique(ids: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(ids))


def _refuse_quantized(f: Fields) -> None:
    for key in ("quantization_config", "compression_config", "quantization"):
        value = f.get(key)
        if value is not None and value != {}:
            raise f.unsupported(
                key, f"quantization {foreign.quantization(key, value)} (use the original weights or a GGUF file)"
            )


def _layer_types(f: Fields, layers: int) -> list[str] | None:
    kinds = f.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise f.fail("layer_types", f"a list of num_hidden_layers = {layers} names")
    for kind in kinds:
        if not isinstance(kind, str) or kind not in ("full_attention", "sliding_attention"):
            raise f.unsupported("layer_types", shown(kind))
    return kinds


def _rope(f: Fields, positions: int, kinds: set[str]) -> tuple[float, RopeScaling | None]:
    """rope_theta and scaling from `rope_parameters` (5) or `rope_theta` and `rope_scaling` (4).

    Where both are there, `rope_scaling` wins, as in transformers.
    """
    key = "rope_scaling" if f.get("rope_scaling") else "rope_parameters"
    parameters = f.get(key) or {}
    if not isinstance(parameters, Mapping):
        raise f.fail(key, "an object")
    nested = {k for k in parameters if k.endswith("_attention")}
    if nested:
        used = [p for p in map(parameters.get, sorted(kinds)) if isinstance(p, Mapping)]
        if len(used) != len(kinds):
            raise f.fail(key, f"an object for each of {', '.join(sorted(kinds))}")
        if any(p != used[0] for p in used):
            raise f.unsupported(key, "a different rotary embedding per layer type")
        parameters = used[0]
    r = Fields(parameters, f"config.json, {key}")
    if r.has("rope_theta"):
        theta = r.number("rope_theta", 1.0001, 1e12)
    else:
        theta = f.number("rope_theta", 1.0001, 1e12, 10000.0)
    if r.number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0:
        raise r.unsupported("partial_rotary_factor", f"{r.get('partial_rotary_factor')} (expected 1.0)")
    name = "rope_type" if r.has("rope_type") else "type"
    kind = r.text(name) or "default"
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3", "yarn"):
        raise r.unsupported(name, f"rotary scaling {shown(kind)} (supported: default, linear, llama3, yarn)")
    # The outer key has priority over the inner one, as in transformers' standardize_rope_params.
    outer = f if f.has("original_max_position_embeddings") else r
    if kind == "linear":
        return theta, RopeScaling("linear", factor=r.number("factor", 1e-3, 1e6))
    if kind == "llama3":
        original = outer.size("max_position_embeddings", "original_max_position_embeddings", positions)
        return theta, _llama3(r, original, r.number("factor", 1e-3, 1e6))
    original = outer.size("max_position_embeddings", "original_max_position_embeddings", positions)
    return theta, _yarn(r, original, r.number("factor", 1e-3, 1e6, positions / original))


def _llama3(r: Fields, original: int, factor: float) -> RopeScaling:
    low = r.number("low_freq_factor", 1e-3, 1e6)
    high = r.number("high_freq_factor", 1e-3, 1e6)
    if high <= low:
        raise r.fail("high_freq_factor", f"more than low_freq_factor {low:g}")
    return RopeScaling(
        "llama3", factor=factor, low_freq_factor=low, high_freq_factor=high,
        original_max_position_embeddings=original,
    )  # fmt: skip


def _yarn(r: Fields, original: int, factor: float) -> RopeScaling:
    """YaRN (Peng et al. 2023, section 3.4), with the defaults transformers uses; 0 counts as absent there."""
    beta_fast = r.number("beta_fast", 0.0, 1e6, 32.0) or 32.0
    beta_slow = r.number("beta_slow", 0.0, 1e6, 1.0) or 1.0
    mscale = r.number("mscale", 0.0, 1e3) if r.has("mscale") else None
    mscale_all_dim = r.number("mscale_all_dim", 0.0, 1e3) if r.has("mscale_all_dim") else None
    if r.has("attention_factor"):
        attention_factor = r.number("attention_factor", 0.0, 1e3)
    elif mscale and mscale_all_dim:
        attention_factor = yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all_dim)
    else:
        attention_factor = yarn_magnitude(factor)
    return RopeScaling(
        "yarn", factor=factor, original_max_position_embeddings=original, attention_factor=attention_factor,
        beta_fast=beta_fast, beta_slow=beta_slow, mscale=mscale, mscale_all_dim=mscale_all_dim,
        truncate=r.boolean("truncate", True),
    )  # fmt: skip
