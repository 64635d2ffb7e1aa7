"""GGUF metadata -> Config, under the names of config.json. Reads no files.

What metadata leaves to the tensors (the vocabulary, a tied head, biases, Llama 3's rotary factors) is handed in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np

from pyllama.architecture import FAMILIES
from pyllama.architecture.config import LIMITS, MAX_POSITIONS, Config, RopeScaling
from pyllama.architecture.family import Family
from pyllama.architecture.fields import Fields
from pyllama.architecture.layer import layer_name
from pyllama.architecture.rope import longrope_magnitude, yarn_magnitude
from pyllama.architecture.tensors import HEAD
from pyllama.checkpoint import foreign
from pyllama.errors import CheckpointError, shown

RopeFactors = tuple[float, ...]
UNTURNED = 1e29  # of rotary factors, those from here on
_WHERE = "GGUF metadata"
_GUESSING = "nextn_predict_layers"
_BLOCK = re.compile(r"blk\.([0-9]{1,4})\.")


def gguf_family(metadata: Mapping[str, Any]) -> Family:
    """The family of general.architecture. Raises UnsupportedError for another one."""
    general = Fields(metadata, _WHERE)
    architecture = general.text("general.architecture")
    if architecture is None:
        raise general.fail("general.architecture", "the name of a model family")
    count = _plain(general.get(f"{architecture}.expert_count"))
    experts = isinstance(count, int) and count > 0
    same_name = [FAMILIES[architecture]] if architecture in FAMILIES else []
    # One that says nothing else of experts is refused for what it lacks. Most have our name, and no other is read then.
    for kind, families in (experts, same_name), (experts, FAMILIES.values()), (not experts, FAMILIES.values()):
        for family in families:
            if (family.gguf_architecture, family.has_experts) == (architecture, kind):
                return family
    known = ", ".join(sorted({family.gguf_architecture for family in FAMILIES.values() if family.gguf_architecture}))
    what = f"{shown(architecture)}{foreign.described(architecture)}"
    raise general.unsupported("general.architecture", f"{what} (supported: {known})")


def main_layers(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """The key/values without the layers that guess further tokens (NextN, MTP), which block_count includes: they come
    last, and lists of a value a layer have theirs. The mapping itself where there are none."""
    prefix = f"{gguf_family(metadata).gguf_architecture}."
    f = Fields(metadata, _WHERE, prefix)
    if not f.has(_GUESSING):
        return metadata
    every = f.size("num_hidden_layers", "block_count")
    layers = every - f.integer(_GUESSING, 0, every - 1)
    found = {key: value for key, value in metadata.items() if key != prefix + _GUESSING}
    for key, value in found.items():
        if key == f"{prefix}block_count":
            found[key] = layers
        elif isinstance(value, np.ndarray) and len(value) == every and key.startswith(prefix) and ".rope." not in key:
            found[key] = value[:layers]
    return found


def guessing_layers(metadata: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    """Which of the file's tensors are of the layers that main_layers() leaves out.

    Raises CheckpointError for such a layer that has nothing of what guesses: the key/values would not be the file's.
    """
    f = Fields(main_layers(metadata), _WHERE, f"{gguf_family(metadata).gguf_architecture}.")
    if f.source is metadata:
        return set()
    layers = f.size("num_hidden_layers", "block_count")
    numbers = {name: int(of[1]) for name in names if (of := _BLOCK.match(name))}
    found = {name for name, number in numbers.items() if number >= layers}
    for number in {numbers[name] for name in found}:
        if not any(name.startswith(f"blk.{number}.nextn.") for name in found):
            raise CheckpointError(
                f"blk.{number}: no tensor of a layer that guesses tokens (nextn), expected by {_GUESSING} (in {_WHERE})"
            )
    return found


def gguf_config(
    metadata: Mapping[str, Any],
    names: Container[str],
    *,
    vocab_size: int,
    rope_factors: RopeFactors = (),
    long_factors: RopeFactors = (),
) -> Config:
    """Config of GGUF key/values and of what only the tensors tell.

    names         of the tensors, ours: whether there are a head and biases
    vocab_size    rows of the embedding
    rope_factors  the values of rope_freqs.weight or rope_factors_short.weight, if it is there
    long_factors  those of rope_factors_long.weight, likewise
    """
    family = gguf_family(metadata)
    metadata = main_layers(metadata)
    first = layer_name(0)
    prefix = f"{family.gguf_architecture}."
    f = Fields({k: _plain(v) for k, v in metadata.items() if k.startswith(prefix)}, _WHERE, prefix)
    family.refuse_gguf(f)
    layers = f.size("num_hidden_layers", "block_count")
    stored, f = f, family.gguf_fields(f, layers)
    hidden_size = f.size("hidden_size", "embedding_length")
    heads = f.size("num_attention_heads", "attention.head_count")
    if not f.has("attention.key_length") and hidden_size % heads:
        raise f.fail("embedding_length", f"a multiple of head_count {heads}, or attention.key_length")
    head_dim = f.size("head_dim", "attention.key_length", hidden_size // heads)
    rotary_dim = f.size("head_dim", "rope.dimension_count", head_dim)
    partial = "partial_rotary_factor" in family.read_here
    for key in ("attention.value_length", "rope.dimension_count")[: 1 if partial else 2]:
        if f.size("head_dim", key, head_dim) != head_dim:
            raise f.unsupported(key, f"{f.get(key)} with heads of {head_dim}")
    positions = f.size("max_position_embeddings", "context_length")
    window = None
    if f.has("attention.sliding_window") and f.integer("attention.sliding_window", 0, MAX_POSITIONS):
        if not family.gguf_windowed:
            raise f.unsupported("attention.sliding_window", f"a sliding window in {family.gguf_architecture}")
        window = f.integer("attention.sliding_window", 0, MAX_POSITIONS)
    options = {"layer_windows": (window,) * layers} | family.gguf_options(stored, head_dim, layers)
    options = family.gguf_found(options, names)
    theta = f.number("rope.freq_base", 1.0001, 1e12, family.defaults.rope_theta)
    if long_factors:
        scaling: RopeScaling | None = _longrope(f, positions, rope_factors, long_factors)
    else:
        scaling = _rope(f, positions, rope_factors)
    if scaling and not family.gguf_truncated:
        scaling = scaling._replace(truncate=False)
    if options.get("sliding_rope") == (theta, scaling):
        options["sliding_rope"] = None
    tokens = Fields(metadata, _WHERE, "tokenizer.ggml.")
    ends = [tokens.token_id(key) for key in ("eos_token_id", "eot_token_id", "eom_token_id")]
    return Config(
        model_type=family.model_type,
        architecture=family.architecture,
        hidden_size=hidden_size,
        intermediate_size=f.size("intermediate_size", "feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=_kv_heads(f, heads),
        head_dim=head_dim,
        vocab_size=vocab_size,
        rms_norm_eps=f.number("attention.layer_norm_rms_epsilon", 0.0, 1.0),
        rope_theta=theta,
        rope_scaling=scaling,
        max_position_embeddings=positions,
        tie_word_embeddings=HEAD not in names,
        qkv_bias=f"{first}self_attn.q_proj.bias" in names,
        o_bias=f"{first}self_attn.o_proj.bias" in names,
        mlp_bias=f"{first}mlp.gate_proj.bias" in names,
        bos_token_id=tokens.token_id("bos_token_id"),
        eos_token_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
        mixture=family.gguf_mixture(f, layers),
        rotary_dim=None if rotary_dim == head_dim else rotary_dim,
        **options,
    )


def _kv_heads(f: Fields, heads: int) -> int:
    """Of the layers that have some: the others, which keep no keys and values, are 0 in a list."""
    counts = f.get("attention.head_count_kv")
    if isinstance(counts, tuple) and len(set(counts) - {0}) == 1:
        low, high = LIMITS["num_key_value_heads"]
        count = next(count for count in counts if count)
        if isinstance(count, int) and low <= count <= high:
            return count
    return f.size("num_key_value_heads", "attention.head_count_kv", heads)


def _longrope(f: Fields, positions: int, short: RopeFactors, long: RopeFactors) -> RopeScaling:
    original = f.size("max_position_embeddings", "rope.scaling.original_context_length", positions)
    said, own = f.number("rope.scaling.attn_factor", 0.0, 1e3, 1.0), longrope_magnitude(positions / original, original)
    return RopeScaling(
        "longrope",
        factor=positions / original,
        original_max_position_embeddings=original,
        attention_factor=own if np.float32(own) == np.float32(said) else said,  # the file has it in float32
        factors=short,
        long_factors=long,
    )


def _plain(value: Any) -> Any:
    """A hyperparameter as config.json would have it.

    A float is stored as float32, 1e-5 as 0.00000999999975: the shortest decimal that rounds to it is what
    the converter was given, so both forms of a model get one config. A per-layer array whose entries agree
    is that number; one whose entries differ is refused by the look-up.
    """
    if isinstance(value, float):
        return float(str(np.float32(value))) if abs(value) < 1e30 else value
    if isinstance(value, np.ndarray):
        # A tuple and not the array: that has no truth value to compare by.
        values = value[: LIMITS["num_hidden_layers"][1] + 1].tolist()
        return values[0] if values and all(v == values[0] for v in values) else tuple(values)
    return value


def _divided(factors: RopeFactors) -> RopeScaling:
    """1e30 is how a file says that a pair is not turned."""
    if max(factors) < UNTURNED:
        return RopeScaling("factors", factors=factors)
    exact = tuple(math.inf if factor >= UNTURNED else factor for factor in factors)
    return RopeScaling("proportional", factor=factors[0] if exact[0] < math.inf else 1.0, factors=exact)


def _rope(f: Fields, positions: int, factors: RopeFactors) -> RopeScaling | None:
    kind = f.text("rope.scaling.type")
    if kind is None:
        kind = "linear" if f.has("rope.scale_linear") else "none"
    if kind == "none":
        return _divided(factors) if factors else None
    if kind not in ("linear", "yarn"):
        raise f.unsupported("rope.scaling.type", f"{shown(kind)} (supported: none, linear, yarn)")
    key = "rope.scaling.factor" if f.has("rope.scaling.factor") else "rope.scale_linear"
    factor = f.number(key, 0.0, 1e6, 1.0) or 1.0
    if factors:
        if factor != 1.0:
            raise f.unsupported("rope.scaling.type", f"{shown(kind)} together with rope_freqs.weight")
        return _divided(factors)
    if kind == "linear":
        return RopeScaling("linear", factor=factor) if factor != 1.0 else None
    original = f.size("max_position_embeddings", "rope.scaling.original_context_length", positions)
    for key in ("rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor"):
        if f.get(key) not in (None, 1.0, -1.0):  # -1 stands for the default, which is 1
            raise f.unsupported(key, shown(f.get(key)))
    # attn_factor comes on top of YaRN's own magnitude scaling there, not instead of it as in config.json.
    extra = f.number("rope.scaling.attn_factor", 0.0, 1e3, 1.0)
    # Of the families that say it, this is mscale_all_dim, and their mscale is 1.
    log_multiplier = f.number("rope.scaling.yarn_log_multiplier", 0.0, 1e3, 0.0)
    magnitude = yarn_magnitude(factor)
    if log_multiplier:
        magnitude /= yarn_magnitude(factor, log_multiplier)
    return RopeScaling(
        "yarn", factor=factor, original_max_position_embeddings=original,
        attention_factor=magnitude * extra,
        beta_fast=f.number("rope.scaling.yarn_beta_fast", 0.0, 1e6, 32.0) or 32.0,
        beta_slow=f.number("rope.scaling.yarn_beta_slow", 0.0, 1e6, 1.0) or 1.0,
    )  # fmt: skip
