"""A checkpoint's hyperparameters -> GGUF's key/values, under the names that gguf_config.py reads.

Whether a file says all that the model is, is asked of the reader: `check_config` compares what it makes of the
key/values with the model they were made of. What has no name in GGUF is found there, by the name it has in
config.json.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from pyllama.architecture import FAMILIES
from pyllama.architecture.config import Config, DeltaRule
from pyllama.architecture.family import Family
from pyllama.architecture.layer import Rope, main_rope
from pyllama.architecture.rope import frequencies, yarn_magnitude
from pyllama.checkpoint import Checkpoint
from pyllama.checkpoint.files import InputFile
from pyllama.checkpoint.gguf import ROPE_FREQS, ROPE_LONG, ROPE_SHORT, factor_tensors, read_header
from pyllama.checkpoint.gguf_config import gguf_config, main_layers
from pyllama.checkpoint.packed import GGUF_HEAD
from pyllama.errors import UnsupportedError
from pyllama.quantizing.gguf_writer import Value, encoded, plain

QUANTIZATION_VERSION = 2  # of ggml's blocks, since they have their present form
# Of one file of a split: the whole has none of them.
_SPLIT = ("split.no", "split.count", "split.tensors.count")
# What the tokenizer is asked for, or what differs in name only.
_NOT_COMPARED = ("model_type", "architecture", "rope_scaling", "bos_token_id", "eos_token_ids", "norm_plus_one")
_LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"  # mscale_all_dim, where mscale is 1
_FREQUENCY_ERROR = 2.0**-22  # of the float32 that rope_freqs.weight is kept in


def written_family(config: Config) -> Family:
    """The family whose form a model's GGUF file has."""
    family = FAMILIES[config.model_type]
    return FAMILIES[family.gguf_as] if family.gguf_as else family


def copied(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The key/values of a GGUF source as they stand there, encoded; those of a split and of layers that guess further
    tokens are left out."""
    with InputFile(checkpoint.path / GGUF_HEAD if checkpoint.packed else checkpoint.files[0]) as file:
        header = read_header(file)
        values = {key: file.read(begin, end - begin) for key, (begin, end) in header.values.items()}
    main = main_layers(header.metadata)
    for key, value in main.items():
        if value is not header.metadata[key]:
            values[key] = encoded(value if isinstance(value, np.ndarray) else np.uint32(value))
    return {key: value for key, value in values.items() if key not in _SPLIT and key in main}


def of_config(config: Config, name: str) -> dict[str, Value]:
    """The key/values that make a Config.

    name: general.name, for people

    Raises UnsupportedError for a rotary scaling that GGUF has no words for.
    """
    family = written_family(config)
    prefix = f"{family.gguf_architecture}."
    found: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.rotary_dim or config.head_dim,
        "rope.freq_base": config.rope_theta,
        "vocab_size": config.vocab_size,
    }
    if config.mixture is not None:
        found["expert_count"] = config.mixture.num_experts
        found["expert_used_count"] = config.mixture.num_experts_per_tok
        found["expert_feed_forward_length"] = config.mixture.moe_intermediate_size
    window = config.layer_windows[0]
    if window is not None:
        found["attention.sliding_window"] = window
    found |= {f"rope.scaling.{key}": value for key, value in _scaling(config).items()}
    found |= family.gguf_values(config)
    general = {"general.architecture": str(family.gguf_architecture), "general.type": "model", "general.name": name}
    return {**general, **{prefix + key: _typed(value) for key, value in found.items() if value is not None}}


def _typed(value: Any) -> Value:
    """A text, a number or boolean, or a list of them, as GGUF stores its kind."""
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, list):
        return np.array(value, np.bool_ if type(value[0]) is bool else np.uint32)
    return np.uint32(value) if type(value) is int else np.float32(value)


def _scaling(config: Config) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None or scaling.kind in ("llama3", "factors", "proportional"):
        return {}  # a tensor says it: rope_factors()
    if scaling.kind == "longrope":
        return {
            "original_context_length": scaling.original_max_position_embeddings,
            "attn_factor": scaling.attention_factor,
        }
    found: dict[str, Any] = {"type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "yarn":
        found["original_context_length"] = scaling.original_max_position_embeddings
        found["yarn_beta_fast"] = scaling.beta_fast
        found["yarn_beta_slow"] = scaling.beta_slow
        extra = scaling.attention_factor / yarn_magnitude(scaling.factor)
        if _LOG_MULTIPLIER in written_family(config).read_here and scaling.mscale == 1.0 and scaling.mscale_all_dim:
            found["yarn_log_multiplier"] = scaling.mscale_all_dim
        elif extra != 1.0:
            found["attn_factor"] = extra
    return found


def rope_factors(config: Config) -> list[tuple[str, np.ndarray]]:
    """(name, float32 values) of the tensors that divide rotary frequencies; [] where the model has none.

    Raises UnsupportedError where llama.cpp would not look at them.
    """
    scaling = config.rope_scaling
    if scaling is None or scaling.kind not in ("llama3", "factors", "proportional", "longrope"):
        return []
    family = written_family(config)
    if scaling.kind == "longrope":
        return factor_tensors(scaling)
    if not family.gguf_factors:
        raise UnsupportedError(
            f"rope_scaling: {scaling.kind!r} has no name in a GGUF file of the architecture {family.gguf_architecture}"
        )
    if scaling.kind in ("factors", "proportional"):
        return factor_tensors(scaling)
    rope = main_rope(config)
    values = (frequencies(Rope(rope.theta, rope.dim))[0] / frequencies(rope)[0]).astype(np.float32)
    return [(ROPE_FREQS, values)]


def model_name(path: Path) -> str:
    """What to call a model that lies at `path`. In the Hub's cache its folder is a commit; two above is the name."""
    path = path.absolute()
    if re.fullmatch("[0-9a-f]{40}", path.name) and path.parent.name == "snapshots":
        return path.parent.parent.name.rpartition("--")[2]
    return path.name.removesuffix(".gguf")


def check_config(source: Config, values: Mapping[str, Value], names: Container[str]) -> None:
    """Raise UnsupportedError for the first thing that the reader of a GGUF file would take otherwise, or not at all.

    names: ours, of the tensors in it
    """
    factors = {name: tuple(values.tolist()) for name, values in rope_factors(source)}
    written = gguf_config(
        plain(values),
        names,
        vocab_size=source.vocab_size,
        rope_factors=factors.get(ROPE_FREQS) or factors.get(ROPE_SHORT, ()),
        long_factors=factors.get(ROPE_LONG, ()),
    )
    for field in fields(Config):
        ours, theirs = getattr(source, field.name), getattr(written, field.name)
        if isinstance(ours, DeltaRule):
            ours = ours._replace(tiled=True)  # as it is written
        if field.name not in _NOT_COMPARED and ours != theirs and not _same_float(ours, theirs):
            raise UnsupportedError(f"{field.name}: {_short(ours)} would be {_short(theirs)} in a GGUF file")
    if (source.rope_scaling is None) != (written.rope_scaling is None) or source.rope_scaling != written.rope_scaling:
        (ours, our_scale), (theirs, their_scale) = (frequencies(main_rope(c)) for c in (source, written))
        near = np.abs(ours - theirs) <= _FREQUENCY_ERROR * np.abs(ours)
        if not near.all() or abs(our_scale - their_scale) > _FREQUENCY_ERROR * abs(our_scale):
            kind = source.rope_scaling.kind if source.rope_scaling else "default"
            raise UnsupportedError(f"rope_scaling: these parameters of {kind!r} have no name in a GGUF file")


def _same_float(one: Any, other: Any) -> bool:
    """Whether two numbers are one as GGUF has it, in float32."""
    return isinstance(one, float) and isinstance(other, float) and np.float32(one) == np.float32(other)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
