"""`config.json` of transformers 4 and 5 -> Config.

Every number is range-checked, and what would change the mathematics in a way that the family's layers do not know is
refused by name. Reads no files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pyllama.architecture import FAMILIES, class_names
from pyllama.architecture.config import LIMITS, Config, RopeScaling
from pyllama.architecture.family import Family
from pyllama.architecture.fields import Fields
from pyllama.architecture.rope import longrope_magnitude, yarn_magnitude
from pyllama.checkpoint import foreign
from pyllama.errors import shown

#: Of a file around a text model: what it may say in the text model's place.
_SHARED = ("bos_token_id", "eos_token_id", "tie_word_embeddings", "dtype", "torch_dtype")


class _Ropes(NamedTuple):
    """Rotary embeddings of a model; rotated is the part of a head that is turned."""

    theta: float
    scaling: RopeScaling | None
    rotated: float = 1.0
    sliding: tuple[float, RopeScaling | None] | None = None


def huggingface_config(config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None) -> Config:
    """Config of a parsed `config.json`, transformers 4 or 5.

    generation_config: the parsed `generation_config.json`, for the ids that end a text.
    Raises UnsupportedError for a model, feature or option the decoder does not have.
    """
    f, outer = _text_model(Fields(config, "config.json"))
    family = _family(f)
    _refuse_quantized(f, family)
    f = Fields(family.plain(f.source), f.where)
    if outer:
        _refuse_quantized(outer, family)
        wrapper = str(outer.text("model_type"))
        if wrapper not in family.wrappers:
            raise f.unsupported("model_type", f"{shown(family.model_type)} within {shown(wrapper)}")
        _check_class(outer, family.wrappers[wrapper])
    else:
        _check_class(f, family.architecture)
    family.refuse(f)
    defaults = family.defaults

    def size(key: str) -> int:
        return f.size(key, default=defaults.sizes.get(key))

    hidden_size = size("hidden_size")
    layers = size("num_hidden_layers")
    heads = size("num_attention_heads")
    # A key that is there and null means "as many as heads"; one that is not there means the class default.
    kv_default = defaults.num_key_value_heads if f.absent("num_key_value_heads") else None
    dim_default = defaults.head_dim if f.absent("head_dim") else None
    if not f.has("head_dim") and dim_default is None and hidden_size % heads:
        raise f.fail("hidden_size", f"a multiple of num_attention_heads {heads}, or an explicit head_dim")
    positions = f.size("max_position_embeddings", default=defaults.max_position_embeddings)
    kinds = _layer_types(f, layers, family) or family.layer_types(f, layers)
    rotated = {kind for kind in kinds or () if kind.endswith("_attention") and kind != "linear_attention"}
    rope = _rope(f, positions, family, rotated or {"full_attention"})
    biases = family.biases(f)
    head_dim = f.size("head_dim", default=dim_default or hidden_size // heads)
    rotary_dim = int(head_dim * rope.rotated)
    ends = Fields(generation_config or {}, "generation_config.json")
    return Config(
        model_type=family.model_type,
        architecture=family.architecture,
        hidden_size=hidden_size,
        intermediate_size=size("intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=f.size("num_key_value_heads", default=kv_default or heads),
        head_dim=head_dim,
        vocab_size=size("vocab_size"),
        rms_norm_eps=f.number("rms_norm_eps", 0.0, 1.0, defaults.rms_norm_eps),
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        max_position_embeddings=positions,
        tie_word_embeddings=f.boolean("tie_word_embeddings", defaults.tie_word_embeddings),
        qkv_bias=biases.qkv,
        o_bias=biases.o,
        mlp_bias=biases.mlp,
        layer_windows=family.windows(f, kinds, layers),
        bos_token_id=f.token_id("bos_token_id") if f.has("bos_token_id") else ends.token_id("bos_token_id"),
        eos_token_ids=tuple(dict.fromkeys(ends.token_ids("eos_token_id") + f.token_ids("eos_token_id"))),
        mixture=family.mixture(f, layers),
        norm_plus_one=family.norm_plus_one,
        rotary_dim=None if rotary_dim == head_dim else rotary_dim,
        sliding_rope=rope.sliding,
        **family.options(f, head_dim, layers),
        **family.state_options(f, kinds or []),
    )


def _text_model(f: Fields) -> tuple[Fields, Fields | None]:
    """What describes the text model, and the file around it where that is one of a model that sees as well.

    Tokens' ids and the tied head are looked up in both: which of the two has them differs from writer to writer.
    """
    if f.text("model_type") in FAMILIES:
        return f, None
    of_wrapper = [name for name, family in FAMILIES.items() if f.text("model_type") in family.wrappers]
    if not of_wrapper:
        return f, None
    text = f.get("text_config")
    if not isinstance(text, Mapping):
        raise f.fail("text_config", "an object")
    shared = {key: f.get(key) for key in _SHARED if f.has(key) and text.get(key) is None}
    if not text.get("model_type"):
        shared["model_type"] = of_wrapper[0]
    return Fields({**text, **shared}, "config.json, text_config"), f


def huggingface_dtype(config: Mapping[str, Any]) -> str:
    """The storage format that config.json names for the weights, which may be stored otherwise."""
    f, _ = _text_model(Fields(config, "config.json"))
    name = f.text("dtype") or f.text("torch_dtype") or "float32"
    return {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}.get(name.removeprefix("torch."), "F32")


def _family(f: Fields) -> Family:
    model_type = f.text("model_type")
    if not model_type:
        classes = {name: family.architecture for name, family in FAMILIES.items()}
        model_type = class_names.model_type_of(f.get("architectures"), classes)
    if model_type is None:
        raise f.fail("model_type", "the name of a model family")
    if model_type not in FAMILIES:
        what = f"{shown(model_type)}{foreign.described(model_type)}"
        raise f.unsupported("model_type", f"{what} (supported: {', '.join(sorted(FAMILIES))})")
    return FAMILIES[model_type]


def _check_class(f: Fields, expected: str) -> None:
    """`architectures` must name the class of model_type, if it names any."""
    other = class_names.other_class(f.get("architectures"), expected)
    if other is not None:
        kind = foreign.described_class(other)
        raise f.unsupported("architectures", f"{shown(other)}{kind} (expected {expected})")


def _refuse_quantized(f: Fields, family: Family) -> None:
    for key in ("quantization_config", "compression_config", "quantization"):
        value = f.get(key)
        if (
            key == "quantization_config"
            and isinstance(value, Mapping)
            and value.get("quant_method") in list(family.quantizations)  # compared, not hashed: it may be anything
        ):
            continue
        if value is not None and value != {}:
            raise f.unsupported(
                key, f"quantization {foreign.quantization(key, value)} (use the original weights or a GGUF file)"
            )


def _layer_types(f: Fields, layers: int, family: Family) -> list[str] | None:
    kinds = f.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise f.fail("layer_types", f"a list of num_hidden_layers = {layers} names")
    for kind in kinds:
        if not isinstance(kind, str) or kind not in family.layer_kinds:
            raise f.unsupported("layer_types", shown(kind))
    return kinds


def _rope(f: Fields, positions: int, family: Family, kinds: set[str]) -> _Ropes:
    """What turns queries and keys, from `rope_parameters` (5) or `rope_theta` and `rope_scaling` (4).

    Where both are there, `rope_scaling` wins, as in transformers.
    """
    key = "rope_scaling" if f.get("rope_scaling") else "rope_parameters"
    parameters = f.get(key) or family.defaults.rope
    if not isinstance(parameters, Mapping):
        raise f.fail(key, "an object")
    nested = {k for k in parameters if k.endswith("_attention")}
    if family.sliding_theta is not None:
        full, sliding = (parameters.get(f"{kind}_attention") or {} for kind in ("full", "sliding"))
        if not isinstance(full, Mapping) or not isinstance(sliding, Mapping):
            raise f.fail(key, "an object, and one for each of full_attention and sliding_attention in it")
        full = full if nested else parameters
        main = _one_rope(f, full, key, positions, family)
        theta = f.number(family.sliding_theta, 1.0001, 1e12, family.defaults.sliding_rope_theta)
        local = _one_rope(f, {"rope_theta": theta, **sliding}, key, positions, family)
        own = (local.theta, local.scaling)
        return main._replace(sliding=None if own == (main.theta, main.scaling) else own)
    if nested:
        used = [p for p in map(parameters.get, sorted(kinds)) if isinstance(p, Mapping)]
        if len(used) != len(kinds):
            raise f.fail(key, f"an object for each of {', '.join(sorted(kinds))}")
        if any(p != used[0] for p in used):
            raise f.unsupported(key, "a different rotary embedding per layer type")
        parameters = used[0]
    return _one_rope(f, parameters, key, positions, family)


def _one_rope(f: Fields, parameters: Mapping[str, Any], key: str, positions: int, family: Family) -> _Ropes:
    """What one object of rotary parameters says."""
    r = Fields(parameters, f"config.json, {key}")
    if r.has("rope_theta"):
        theta = r.number("rope_theta", 1.0001, 1e12)
    else:
        theta = f.number("rope_theta", 1.0001, 1e12, family.defaults.rope_theta)
    within = r if r.has("partial_rotary_factor") else f
    rotated = within.number("partial_rotary_factor", 0.0, 1.0, 1.0)
    name = "rope_type" if r.has("rope_type") else "type"
    kind = r.text(name) or "default"
    if kind == "proportional" and kind in family.rotary_scalings:
        return _Ropes(theta, _proportional(r, rotated, family.full_head_dim(f)))
    if rotated != 1.0 and "partial_rotary_factor" not in family.read_here:
        raise r.unsupported("partial_rotary_factor", f"{within.get('partial_rotary_factor')} (expected 1.0)")
    if kind == "default":
        return _Ropes(theta, None, rotated)
    if kind not in family.rotary_scalings:
        known = ", ".join(("default", *family.rotary_scalings))
        raise r.unsupported(name, f"rotary scaling {shown(kind)} (supported: {known})")
    # The outer key has priority over the inner one, as in transformers' standardize_rope_params.
    outer = f if f.has("original_max_position_embeddings") else r
    if kind == "linear":
        return _Ropes(theta, RopeScaling("linear", factor=r.number("factor", 1e-3, 1e6)), rotated)
    original = outer.size("max_position_embeddings", "original_max_position_embeddings", positions)
    if "longrope" in family.rotary_scalings:
        return _Ropes(theta, _longrope(r, original, positions), rotated)
    if kind == "llama3":
        return _Ropes(theta, _llama3(r, original, r.number("factor", 1e-3, 1e6)), rotated)
    return _Ropes(theta, _yarn(r, original, r.number("factor", 1e-3, 1e6, positions / original)), rotated)


def _proportional(r: Fields, rotated: float, head_dim: int) -> RopeScaling:
    """Frequencies of a whole head, of which the first are turned and the others are not."""
    factor, turned = r.number("factor", 1e-3, 1e6, 1.0), int(rotated * head_dim // 2)
    factors = (factor,) * turned + (math.inf,) * (head_dim // 2 - turned)
    return RopeScaling("proportional", factor=factor, factors=factors)


def _llama3(r: Fields, original: int, factor: float) -> RopeScaling:
    low = r.number("low_freq_factor", 1e-3, 1e6)
    high = r.number("high_freq_factor", 1e-3, 1e6)
    if high <= low:
        raise r.fail("high_freq_factor", f"more than low_freq_factor {low:g}")
    return RopeScaling(
        "llama3", factor=factor, low_freq_factor=low, high_freq_factor=high,
        original_max_position_embeddings=original,
    )  # fmt: skip


def _longrope(r: Fields, original: int, positions: int) -> RopeScaling:
    """Two sets of factors; which one holds is not the file's to say (Config.for_context)."""
    factor = r.number("factor", 1e-3, 1e6, positions / original)
    given = r.number("attention_factor", 0.0, 1e3) if r.has("attention_factor") else None
    return RopeScaling(
        "longrope",
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=longrope_magnitude(factor, original) if given is None else given,
        factors=_factors(r, "short_factor"),
        long_factors=_factors(r, "long_factor"),
    )


def _factors(r: Fields, key: str) -> tuple[float, ...]:
    values = r.get(key)
    if not isinstance(values, list) or len(values) > LIMITS["head_dim"][1]:
        raise r.fail(key, "a list of numbers")
    # In float32, as transformers computes with them and GGUF files have them.
    return tuple(float(np.float32(Fields({key: value}, r.where).number(key, 1e-6, 1e9))) for value in values)


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
