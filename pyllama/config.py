"""A model's hyperparameters: three published forms in, one checked Config out.

`config.json` of transformers 4 and 5, GGUF metadata and Meta's `params.json` end up in the same
frozen dataclass, named as in `config.json`. Every number is range-checked, and whatever would change
the mathematics in a way the decoder does not know is refused here, by name. This file reads no
files and knows nothing about tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from pyllama import class_names, foreign
from pyllama.errors import CheckpointError, UnsupportedError, shown

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

MAX_LAYERS = 1024
MAX_HEADS = 4096
MAX_HEAD_DIM = 1024
MAX_SIZE = 2**24  # hidden, intermediate, vocabulary: far beyond any model, far below 2**31
MAX_POSITIONS = 2**31 - 1

# What the transformers classes fill in for a key the file leaves out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "num_key_value_heads": None, "head_dim": None},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "head_dim": None},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": None},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
}

# Keys that mean a mixture of experts when they hold a positive number.
_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")

# GGUF hyperparameters that would scale, clamp or mask: neutral values pass, any other is refused.
_GGUF_NEUTRAL: dict[str, Any] = {
    "expert_count": 0,
    "expert_used_count": 0,
    "logit_scale": 1.0,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
    "attention.scale": 0.0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.causal": True,
    "attention.sliding_window_pattern": 0,
    "attention.output_scale": 1.0,
    "attention.temperature_scale": 0.0,
    "attention.key_length_mla": 0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "rope.scaling.alpha": 0.0,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "use_parallel_residual": False,
}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How the rotary frequencies differ from `rope_theta ** (-2 i / head_dim)`.

    kind "linear":  frequencies divided by `factor`
    kind "llama3":  `factor`, `low_freq_factor`, `high_freq_factor`, `original_max_position_embeddings`
    kind "yarn":    `factor`, `original_max_position_embeddings`, `beta_fast`, `beta_slow`, `truncate`;
                    `attention_factor` multiplies cos and sin and is always resolved here (`mscale` and
                    `mscale_all_dim` are kept only to show where it came from)
    kind "factors": frequency i divided by `factors[i]`, head_dim / 2 of them (GGUF's rope_freqs.weight)
    """

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the decoder must know besides the weights.

    layer_windows[i] is the sliding window of layer i in positions, the query's own included; None: all.
    dtype is the storage format of the bulk of the weights, by its name in `checkpoint.dtypes`.
    """

    model_type: str
    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    layer_windows: tuple[int | None, ...]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        _check_ranges(self)

    @classmethod
    def from_huggingface(
        cls, config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None
    ) -> Config:
        """Config of a parsed `config.json`, transformers 4 or 5.

        generation_config: the parsed `generation_config.json`, for the ids that end a text.
        Raises UnsupportedError for a model, feature or option the decoder does not have.
        """
        return _from_huggingface(config, generation_config or {})

    @classmethod
    def from_gguf(
        cls,
        metadata: Mapping[str, Any],
        *,
        vocab_size: int,
        tie_word_embeddings: bool,
        qkv_bias: bool = False,
        o_bias: bool = False,
        mlp_bias: bool = False,
        rope_factors: tuple[float, ...] = (),
    ) -> Config:
        """Config of GGUF key/values; the keyword arguments are what only the tensors tell."""
        return _from_gguf(metadata, vocab_size, tie_word_embeddings, qkv_bias, o_bias, mlp_bias, rope_factors)

    @classmethod
    def from_meta(
        cls, params: Mapping[str, Any], *, vocab_size: int, intermediate_size: int, tie_word_embeddings: bool
    ) -> Config:
        """Config of a parsed `params.json`; `meta_assumptions` says what it had to take for granted."""
        return _from_meta(params, vocab_size, intermediate_size, tie_word_embeddings)


class _Fields:
    """Typed, range-checked look-ups in one parsed mapping; messages name the key and the file."""

    def __init__(self, source: Mapping[str, Any], where: str, prefix: str = ""):
        if not isinstance(source, Mapping):
            raise CheckpointError(f"{where}: expected an object, got {shown(source)}")
        self._source = source
        self._where = where
        self._prefix = prefix

    def get(self, key: str) -> Any:
        return self._source.get(self._prefix + key)

    def has(self, key: str) -> bool:
        return self.get(key) is not None

    def fail(self, key: str, expected: str) -> CheckpointError:
        got = "nothing" if self.get(key) is None else shown(self.get(key))
        return CheckpointError(f"{self._prefix}{key}: got {got}, expected {expected} (in {self._where})")

    def unsupported(self, key: str, what: str) -> UnsupportedError:
        return UnsupportedError(f"{self._prefix}{key}: {what} is not supported (in {self._where})")

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fail(key, f"an integer from {low} to {high}")
        return int(value)

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self.get(key)
        if value is None and default is not None:
            return default
        # An integer is compared before it is converted: a huge one does not fit a float.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.fail(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def text(self, key: str) -> str | None:
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.fail(key, "a string")
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        value = self.get(key)
        values = [] if value is None else value if isinstance(value, list) else [value]
        if len(values) > 64 or any(isinstance(v, bool) or not isinstance(v, int) for v in values):
            raise self.fail(key, "a token id or a short list of them")
        return tuple(v for v in values if 0 <= v < MAX_SIZE)  # -1 stands for "none" in some files

    def token_id(self, key: str) -> int | None:
        ids = self.token_ids(key)
        return ids[0] if ids else None


def _unique(ids: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(ids))


def _check_ranges(c: Config) -> None:
    """The invariants every reader relies on, whatever form the numbers came in."""
    limits = (
        ("hidden_size", MAX_SIZE), ("intermediate_size", MAX_SIZE), ("vocab_size", MAX_SIZE),
        ("num_hidden_layers", MAX_LAYERS), ("num_attention_heads", MAX_HEADS),
        ("num_key_value_heads", MAX_HEADS), ("head_dim", MAX_HEAD_DIM),
        ("max_position_embeddings", MAX_POSITIONS),
    )  # fmt: skip
    for key, high in limits:
        value = getattr(c, key)
        if not 1 <= value <= high:
            raise CheckpointError(f"{key}: got {shown(value)}, expected an integer from 1 to {high}")
    if c.head_dim % 2:
        raise CheckpointError(f"head_dim: got {c.head_dim}, expected an even number (rotary pairs)")
    if c.num_attention_heads % c.num_key_value_heads:
        raise CheckpointError(
            f"num_attention_heads: got {c.num_attention_heads}, expected a multiple of num_key_value_heads "
            f"{c.num_key_value_heads}"
        )
    if c.num_attention_heads * c.head_dim > MAX_SIZE:
        raise CheckpointError(
            f"head_dim: got {c.head_dim}, expected at most {MAX_SIZE // c.num_attention_heads} here"
        )
    if len(c.layer_windows) != c.num_hidden_layers:
        raise CheckpointError(
            f"layer_types: got {len(c.layer_windows)}, expected num_hidden_layers {c.num_hidden_layers}"
        )
    factors = c.rope_scaling.factors if c.rope_scaling else ()
    if factors and len(factors) != c.head_dim // 2:
        raise CheckpointError(f"rope_freqs.weight: got {len(factors)}, expected head_dim / 2 of {c.head_dim}")


# --- Hugging Face -----------------------------------------------------------------------------------


def _from_huggingface(config: Mapping[str, Any], generation: Mapping[str, Any]) -> Config:
    f = _Fields(config, "config.json")
    model_type = f.text("model_type") or class_names.model_type_of(f.get("architectures"), ARCHITECTURES)
    if model_type not in ARCHITECTURES:
        if model_type is None:
            raise f.fail("model_type", "the name of a model family")
        raise f.unsupported(
            "model_type",
            f"{shown(model_type)}{foreign.described(model_type)} (supported: {', '.join(sorted(ARCHITECTURES))})",
        )
    _refuse_quantized(f)
    _refuse_foreign(f, model_type)
    defaults = _DEFAULTS[model_type]

    hidden_size = f.integer("hidden_size", 1, MAX_SIZE)
    layers = f.integer("num_hidden_layers", 1, MAX_LAYERS)
    heads = f.integer("num_attention_heads", 1, MAX_HEADS)
    # A key that is there and null means "as many as heads"; one that is not there means the class default.
    kv_default = defaults["num_key_value_heads"] if "num_key_value_heads" not in config else None
    kv_heads = f.integer("num_key_value_heads", 1, MAX_HEADS, kv_default or heads)
    dim_default = defaults["head_dim"] if "head_dim" not in config else None
    if not f.has("head_dim") and dim_default is None and hidden_size % heads:
        raise f.fail("hidden_size", f"a multiple of num_attention_heads {heads}, or an explicit head_dim")
    head_dim = f.integer("head_dim", 2, MAX_HEAD_DIM, dim_default or hidden_size // heads)
    positions = f.integer("max_position_embeddings", 1, MAX_POSITIONS, defaults["max_position_embeddings"])
    kinds = _layer_types(f, model_type, layers)
    theta, scaling = _huggingface_rope(f, positions, set(kinds or ["full_attention"]))
    attention_bias = f.boolean("attention_bias", False) if model_type in ("llama", "qwen3") else False
    ends = _Fields(generation, "generation_config.json")
    return Config(
        model_type=model_type,
        architecture=ARCHITECTURES[model_type],
        hidden_size=hidden_size,
        intermediate_size=f.integer("intermediate_size", 1, MAX_SIZE),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=f.integer("vocab_size", 1, MAX_SIZE),
        rms_norm_eps=f.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        max_position_embeddings=positions,
        tie_word_embeddings=f.boolean("tie_word_embeddings", False),
        qkv_bias=attention_bias or model_type == "qwen2",
        o_bias=attention_bias,
        mlp_bias=f.boolean("mlp_bias", False) if model_type == "llama" else False,
        qk_norm=model_type == "qwen3",
        layer_windows=_windows(f, model_type, kinds, layers),
        bos_token_id=f.token_id("bos_token_id") if f.has("bos_token_id") else ends.token_id("bos_token_id"),
        eos_token_ids=_unique(ends.token_ids("eos_token_id") + f.token_ids("eos_token_id")),
        dtype=_huggingface_dtype(f),
    )


def _refuse_quantized(f: _Fields) -> None:
    for key in ("quantization_config", "compression_config", "quantization"):
        value = f.get(key)
        if value is not None and value != {}:
            raise f.unsupported(
                key, f"quantization {foreign.quantization(key, value)} (use the original weights or a GGUF file)"
            )


def _refuse_foreign(f: _Fields, model_type: str) -> None:
    """Options that would change the mathematics under a known model_type."""
    other = class_names.other_class(f.get("architectures"), ARCHITECTURES[model_type])
    if other is not None:
        kind = foreign.described_class(other)
        raise f.unsupported("architectures", f"{shown(other)}{kind} (expected {ARCHITECTURES[model_type]})")
    activation = f.text("hidden_act")
    if activation not in (None, "silu", "swish"):
        raise f.unsupported("hidden_act", f"{shown(activation)} (expected 'silu')")
    for key in _EXPERT_KEYS:
        if f.get(key) not in (None, 0, 1):
            raise f.unsupported(key, "a mixture of experts")
    if f.number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0:
        raise f.unsupported("partial_rotary_factor", f"{f.get('partial_rotary_factor')} (expected 1.0)")
    for key, neutral in (("attention_multiplier", 1.0), ("logits_scaling", 1.0), ("residual_multiplier", 1.0),
                         ("embedding_multiplier", 1.0), ("is_encoder_decoder", False),
                         ("rope_interleaved", False), ("use_mrope", False),
                         ("is_causal", True), ("use_bidirectional_attention", False),
                         ("attn_logit_softcapping", 0.0), ("final_logit_softcapping", 0.0)):  # fmt: skip
        value = f.get(key)
        if value is not None and value != neutral:
            raise f.unsupported(key, shown(value))


def _layer_types(f: _Fields, model_type: str, layers: int) -> list[str] | None:
    kinds = f.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise f.fail("layer_types", f"a list of num_hidden_layers = {layers} names")
    for kind in kinds:
        if not isinstance(kind, str) or kind not in ("full_attention", "sliding_attention"):
            raise f.unsupported("layer_types", shown(kind))
    return kinds


def _windows(f: _Fields, model_type: str, kinds: list[str] | None, layers: int) -> tuple[int | None, ...]:
    """Sliding windows as the transformers classes derive them.

    llama: none, whatever `sliding_window` says. mistral: all layers, 4096 unless the key is there.
    qwen2, qwen3: only under `use_sliding_window`, the layers of `layer_types` or from
    `max_window_layers` on.
    """
    if model_type == "llama":
        if kinds and "sliding_attention" in kinds:
            raise f.unsupported("layer_types", "'sliding_attention' in a llama model")
        return (None,) * layers
    absent = "sliding_window" not in f._source
    window = None
    if absent or f.has("sliding_window"):
        window = f.integer("sliding_window", 1, MAX_POSITIONS, 4096)
    if model_type == "mistral":
        if kinds and set(kinds) != {"sliding_attention" if window else "full_attention"}:
            # transformers ignores the list in this class, so following it would be a different model.
            raise f.unsupported("layer_types", f"a list against sliding_window {window} in a mistral model")
        return (window,) * layers
    if not f.boolean("use_sliding_window", False):
        if kinds and "sliding_attention" in kinds:
            # transformers masks such a layer with no window and fails; there is no right answer to copy.
            raise f.unsupported("layer_types", "'sliding_attention' without use_sliding_window")
        return (None,) * layers
    if kinds is None:
        first = f.integer("max_window_layers", 0, MAX_POSITIONS, 28)
        return tuple(window if i >= first else None for i in range(layers))
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _huggingface_dtype(f: _Fields) -> str:
    name = f.text("dtype") or f.text("torch_dtype") or "float32"
    return {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}.get(name.removeprefix("torch."), "F32")


def _huggingface_rope(f: _Fields, positions: int, kinds: set[str]) -> tuple[float, RopeScaling | None]:
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
    r = _Fields(parameters, f"config.json, {key}")
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
        original = outer.integer("original_max_position_embeddings", 1, MAX_POSITIONS, positions)
        return theta, _llama3(r, original, r.number("factor", 1e-3, 1e6))
    original = outer.integer("original_max_position_embeddings", 1, MAX_POSITIONS, positions)
    return theta, _yarn(r, original, r.number("factor", 1e-3, 1e6, positions / original))


def _llama3(r: _Fields, original: int, factor: float) -> RopeScaling:
    low = r.number("low_freq_factor", 1e-3, 1e6)
    high = r.number("high_freq_factor", 1e-3, 1e6)
    if high <= low:
        raise r.fail("high_freq_factor", f"more than low_freq_factor {low:g}")
    return RopeScaling(
        "llama3", factor=factor, low_freq_factor=low, high_freq_factor=high,
        original_max_position_embeddings=original,
    )  # fmt: skip


def _yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * mscale * float(Decimal(factor).ln()) + 1.0


def _yarn(r: _Fields, original: int, factor: float) -> RopeScaling:
    """YaRN (Peng et al. 2023, section 3.4), with the defaults transformers uses; 0 counts as absent there."""
    beta_fast = r.number("beta_fast", 0.0, 1e6, 32.0) or 32.0
    beta_slow = r.number("beta_slow", 0.0, 1e6, 1.0) or 1.0
    mscale = r.number("mscale", 0.0, 1e3) if r.has("mscale") else None
    mscale_all_dim = r.number("mscale_all_dim", 0.0, 1e3) if r.has("mscale_all_dim") else None
    if r.has("attention_factor"):
        attention_factor = r.number("attention_factor", 0.0, 1e3)
    elif mscale and mscale_all_dim:
        attention_factor = _yarn_mscale(factor, mscale) / _yarn_mscale(factor, mscale_all_dim)
    else:
        attention_factor = _yarn_mscale(factor)
    return RopeScaling(
        "yarn", factor=factor, original_max_position_embeddings=original, attention_factor=attention_factor,
        beta_fast=beta_fast, beta_slow=beta_slow, mscale=mscale, mscale_all_dim=mscale_all_dim,
        truncate=r.boolean("truncate", True),
    )  # fmt: skip


# --- GGUF -------------------------------------------------------------------------------------------


def _from_gguf(
    metadata: Mapping[str, Any], vocab_size: int, tied: bool, qkv_bias: bool, o_bias: bool, mlp_bias: bool,
    rope_factors: tuple[float, ...],
) -> Config:  # fmt: skip
    where = "GGUF metadata"
    architecture = _Fields(metadata, where).text("general.architecture")
    if architecture not in ("llama", "qwen2", "qwen3"):
        general = _Fields(metadata, where)
        if architecture is None:
            raise general.fail("general.architecture", "the name of a model family")
        raise general.unsupported(
            "general.architecture",
            f"{shown(architecture)}{foreign.described(architecture)} (supported: llama, qwen2, qwen3)",
        )
    f = _Fields({k: _plain(v) for k, v in metadata.items() if k.startswith(architecture + ".")},
                where, architecture + ".")  # fmt: skip
    for key, neutral in _GGUF_NEUTRAL.items():
        value = f.get(key)
        if value is not None and value != neutral:
            what = "a mixture of experts" if key.startswith("expert") else shown(value)
            raise f.unsupported(key, what)
    hidden_size = f.integer("embedding_length", 1, MAX_SIZE)
    layers = f.integer("block_count", 1, MAX_LAYERS)
    heads = f.integer("attention.head_count", 1, MAX_HEADS)
    if not f.has("attention.key_length") and hidden_size % heads:
        raise f.fail("embedding_length", f"a multiple of head_count {heads}, or attention.key_length")
    head_dim = f.integer("attention.key_length", 2, MAX_HEAD_DIM, hidden_size // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if f.integer(key, 1, MAX_HEAD_DIM, head_dim) != head_dim:
            raise f.unsupported(key, f"{f.get(key)} with heads of {head_dim}")
    positions = f.integer("context_length", 1, MAX_POSITIONS)
    window = None
    if f.has("attention.sliding_window"):
        window = f.integer("attention.sliding_window", 0, MAX_POSITIONS) or None
        if window and architecture != "llama":
            raise f.unsupported("attention.sliding_window", f"a sliding window in {architecture}")
    tokens = _Fields(metadata, where, "tokenizer.ggml.")
    ends = [tokens.token_id(key) for key in ("eos_token_id", "eot_token_id", "eom_token_id")]
    return Config(
        model_type=architecture,
        architecture=ARCHITECTURES[architecture],
        hidden_size=hidden_size,
        intermediate_size=f.integer("feed_forward_length", 1, MAX_SIZE),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=f.integer("attention.head_count_kv", 1, MAX_HEADS, heads),
        head_dim=head_dim,
        vocab_size=vocab_size,
        rms_norm_eps=f.number("attention.layer_norm_rms_epsilon", 0.0, 1.0),
        rope_theta=f.number("rope.freq_base", 1.0001, 1e12, 10000.0),
        rope_scaling=_gguf_rope(f, positions, rope_factors),
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=architecture == "qwen3",
        layer_windows=(window,) * layers,
        bos_token_id=tokens.token_id("bos_token_id"),
        eos_token_ids=_unique([i for i in ends if i is not None]),
        dtype="F32",
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
        values = value[: MAX_LAYERS + 1].tolist()
        return values[0] if values and all(v == values[0] for v in values) else tuple(values)
    return value


def _gguf_rope(f: _Fields, positions: int, factors: tuple[float, ...]) -> RopeScaling | None:
    kind = f.text("rope.scaling.type")
    if kind is None:
        kind = "linear" if f.has("rope.scale_linear") else "none"
    if kind == "none":
        return RopeScaling("factors", factors=factors) if factors else None
    if kind not in ("linear", "yarn"):
        raise f.unsupported("rope.scaling.type", f"{shown(kind)} (supported: none, linear, yarn)")
    key = "rope.scaling.factor" if f.has("rope.scaling.factor") else "rope.scale_linear"
    factor = f.number(key, 0.0, 1e6, 1.0) or 1.0
    if factors:
        if factor != 1.0:
            raise f.unsupported("rope.scaling.type", f"{shown(kind)} together with rope_freqs.weight")
        return RopeScaling("factors", factors=factors)
    if kind == "linear":
        return RopeScaling("linear", factor=factor) if factor != 1.0 else None
    original = f.integer("rope.scaling.original_context_length", 1, MAX_POSITIONS, positions)
    for key in ("rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor"):
        if f.get(key) not in (None, 1.0, -1.0):  # -1 stands for the default, which is 1
            raise f.unsupported(key, shown(f.get(key)))
    # attn_factor comes on top of YaRN's own magnitude scaling there, not instead of it as in config.json.
    extra = f.number("rope.scaling.attn_factor", 0.0, 1e3, 1.0)
    return RopeScaling(
        "yarn", factor=factor, original_max_position_embeddings=original,
        attention_factor=_yarn_mscale(factor) * extra,
        beta_fast=f.number("rope.scaling.yarn_beta_fast", 0.0, 1e6, 32.0) or 32.0,
        beta_slow=f.number("rope.scaling.yarn_beta_slow", 0.0, 1e6, 1.0) or 1.0,
    )  # fmt: skip


# --- Meta -------------------------------------------------------------------------------------------

_META_KEYS = {
    "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size", "multiple_of",
    "ffn_dim_multiplier", "norm_eps", "rope_theta", "use_scaled_rope", "rope_scaling_factor",
    "rope_high_freq_factor", "sliding_window", "max_seq_len", "max_batch_size", "model_parallel_size",
}  # fmt: skip
_LLAMA3_VOCAB = 128256
_LLAMA32_SHAPES = {(2048, 16), (3072, 28)}  # (dim, n_layers) of 1B and 3B, which scale by 32 and not by 8


def _from_meta(params: Mapping[str, Any], vocab_size: int, intermediate_size: int, tied: bool) -> Config:
    f = _Fields(params, "params.json")
    for key in params:
        # Whatever it is (moe_args, quantization_args, vision_chunk_size), it is not in the mathematics here.
        if key not in _META_KEYS and f.get(key):
            raise f.unsupported(shown(key), "a model with it")
    if f.integer("hidden_dim", 1, MAX_SIZE, intermediate_size) != intermediate_size:
        raise f.fail("hidden_dim", f"{intermediate_size}, the rows of layers.0.feed_forward.w1")
    dim = f.integer("dim", 1, MAX_SIZE)
    heads = f.integer("n_heads", 1, MAX_HEADS)
    layers = f.integer("n_layers", 1, MAX_LAYERS)
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
    window = f.integer("sliding_window", 1, MAX_POSITIONS) if f.has("sliding_window") else None
    eps = f.number("norm_eps", 0.0, 1.0, 1e-5)
    theta = f.number("rope_theta", 1.0001, 1e12, 10000.0)
    return Config(
        model_type="llama",
        architecture=ARCHITECTURES["llama"],
        hidden_size=dim,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=f.integer("n_kv_heads", 1, MAX_HEADS, heads),
        head_dim=f.integer("head_dim", 2, MAX_HEAD_DIM, dim // heads),
        vocab_size=vocab_size,
        rms_norm_eps=eps,
        rope_theta=theta,
        rope_scaling=scaling,
        max_position_embeddings=f.integer(
            "max_seq_len", 1, MAX_POSITIONS, 32768 if window else _meta_positions(llama3, scaled, theta, eps)
        ),
        tie_word_embeddings=tied,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        layer_windows=(window,) * layers,
        bos_token_id=128000 if llama3 else 1,
        eos_token_ids=(128001, 128008, 128009) if llama3 else (2,),
        dtype="BF16",
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
