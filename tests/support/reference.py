"""The model of MODEL.md in NumPy float64: from a Config, tensors and token ids to logits.

The executable form of the mathematics: one function per formula, nothing fast, nothing cached. It is what the
kernels and the decoder are tested against, never a backend. It knows Config's field names and Hugging Face
tensor names, and refuses to know files, dtypes on disk and the order of sums.

Also here, because every numeric test needs them: seeded weights whose bits depend on nothing but the seed and
the tensor's name (`random_weights`), so that golden vectors need no stored checkpoint.

Shapes: T tokens, S positions held, H query heads, K key/value heads, D head_dim, V vocab_size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray


# ---------------------------------------------------------------------------------------------- the pieces


def float64(x: Any) -> Array:
    return np.asarray(x, dtype=np.float64)


def rmsnorm(x: Array, weight: Array, eps: float) -> Array:
    """weight * x / sqrt(mean(x^2) + eps), over the last axis."""
    x = float64(x)
    return float64(weight) * (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps))


def softmax(scores: Array) -> Array:
    """exp(s) / sum(exp(s)) over the last axis; -inf scores get exactly 0."""
    scores = float64(scores)
    weights = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    return weights / np.sum(weights, axis=-1, keepdims=True)


def silu(x: Array) -> Array:
    """x * sigmoid(x), without overflow for large negative x."""
    x = float64(x)
    small = np.exp(-np.abs(x))
    return x * np.where(x >= 0, 1.0, small) / (1.0 + small)


def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) * up."""
    return silu(gate) * float64(up)


def gelu(x: Array) -> Array:
    """x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2."""
    x = float64(x)
    return x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))) / 2.0


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x @ weight.T + bias; weight (out, in) as Hugging Face stores it."""
    product = float64(x) @ float64(weight).T
    return product if bias is None else product + float64(bias)


# ---------------------------------------------------------------------------------------------------- RoPE


def inv_freq(head_dim: int, rope_theta: float, scaling: Any = None) -> Array:
    """Radians per position of each of the D/2 rotated pairs, after scaling.

    scaling  None, or an object with RopeScaling's fields: `kind` and those that kind needs
    """
    pair = np.arange(head_dim // 2, dtype=np.float64)  # (D/2,)
    plain = float(rope_theta) ** (-2.0 * pair / head_dim)
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind in ("factors", "proportional"):
        return plain / float64(scaling.factors)
    if scaling.kind == "llama3":
        return _llama3(plain, scaling)
    if scaling.kind == "longrope":
        return plain / float64(scaling.long_factors if scaling.long else scaling.factors)
    if scaling.kind == "yarn":
        return _yarn(plain, head_dim, float(rope_theta), scaling)
    raise ValueError(f"rope scaling {scaling.kind!r}: the reference knows linear, factors, llama3, longrope and yarn")


def _llama3(plain: Array, scaling: Any) -> Array:
    """Llama 3.1: long waves slowed by `factor`, short ones left alone, a linear blend between."""
    turns = scaling.original_max_position_embeddings * plain / (2.0 * math.pi)  # in the original context
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return keep * plain + (1.0 - keep) * plain / scaling.factor


def _yarn(plain: Array, head_dim: int, rope_theta: float, scaling: Any) -> Array:
    """YaRN (arXiv 2309.00071, section 3.2), the ramp drawn over pair numbers as transformers does."""

    def pair_turning(turns: float) -> float:
        """The (fractional) pair that makes this many turns in the original context."""
        wavelength = scaling.original_max_position_embeddings / turns
        return head_dim * math.log(wavelength / (2.0 * math.pi)) / (2.0 * math.log(rope_theta))

    low, high = pair_turning(scaling.beta_fast), pair_turning(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    pair = np.arange(head_dim // 2, dtype=np.float64)
    slow = np.clip((pair - low) / (high - low), 0.0, 1.0)  # 0 keep, 1 interpolate
    return (1.0 - slow) * plain + slow * plain / scaling.factor


def attention_factor(scaling: Any = None) -> float:
    """What cos and sin are multiplied by: 1 except under YaRN and LongRoPE."""
    return float(scaling.attention_factor) if scaling is not None and scaling.kind in ("yarn", "longrope") else 1.0


def yarn_attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    """The attention_factor of a YaRN config that gives none."""

    def magnitude(m: float) -> float:
        return 1.0 if factor <= 1.0 else 0.1 * m * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return magnitude(mscale) / magnitude(mscale_all_dim)
    return magnitude(1.0)


def rope(
    x: Array, positions: Sequence[int] | Array, frequencies: Array, factor: float = 1.0, interleaved: bool = False
) -> Array:
    """Rotates each head's pairs by position * frequency, and scales them by factor.

    x            (T, heads, D)
    positions    (T,)
    frequencies  (N/2,)  from inv_freq; the elements of a head beyond N stay as they are
    interleaved  pairs are elements (2i, 2i+1), as Meta and GGUF llama files hold them; else (i, i + D/2)
    """
    rest = float64(x)[..., 2 * len(frequencies) :]
    x = float64(x)[..., : 2 * len(frequencies)]
    angle = float64(positions)[:, None, None] * float64(frequencies)  # (T, 1, D/2)
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    half = x.shape[-1] // 2
    first = np.s_[..., 0::2] if interleaved else np.s_[..., :half]
    second = np.s_[..., 1::2] if interleaved else np.s_[..., half:]
    out = np.empty_like(x)
    out[first] = x[first] * cos - x[second] * sin
    out[second] = x[second] * cos + x[first] * sin
    return np.concatenate([out, rest], axis=-1)


def interleave_rows(weight: Array, heads: int) -> Array:
    """Rows of a q or k projection (or its bias) from half-split order to interleaved order, per head."""
    rows = weight.shape[0] // heads
    return weight.reshape(heads, 2, rows // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


# ------------------------------------------------------------------------------------------------ mixtures


def route(logits: Array, chosen: int, of_chosen: bool) -> tuple[Array, Array]:
    """Experts with the largest logits, equals by lower number, ascending; and their softmax, over these or over all.

    logits   (T, E)
    returns  (T, chosen) numbers, (T, chosen) weights
    """
    logits = float64(logits)
    ids = np.sort(np.argsort(-logits, axis=-1, kind="stable")[:, :chosen], axis=-1)
    mine = np.take_along_axis(logits, ids, axis=-1)
    return ids, softmax(mine) if of_chosen else np.take_along_axis(softmax(logits), ids, axis=-1)


def route_sigmoid(logits: Array, bias: Array | None, chosen: int, normed: bool, scale: float) -> tuple[Array, Array]:
    """Those with the largest sigmoid + bias, equals by lower number, ascending; weighed by the sigmoid alone, over the
    sum of these if normed, times scale. LFM2's mixtures."""
    weights = 1 / (1 + np.exp(-float64(logits)))
    scores = weights if bias is None else weights + float64(bias)
    ids = np.sort(np.argsort(-scores, axis=-1, kind="stable")[:, :chosen], axis=-1)
    mine = np.take_along_axis(weights, ids, axis=-1)
    return ids, scale * (mine / (mine.sum(axis=-1, keepdims=True) + 1e-6) if normed else mine)


def experts(x: Array, router: Array, gate_up: Array, down: Array, chosen: int, of_chosen: bool) -> Array:
    """Sum over the chosen experts e of weight * down_e(silu(gate_e(x)) * up_e(x)).

    x        (T, hidden)
    router   (E, hidden)
    gate_up  (E, 2 inner, hidden), an expert's gate above its up
    down     (E, hidden, inner)
    """
    return of_experts(x, *route(linear(x, router), chosen, of_chosen), gate_up, down)


def of_experts(x: Array, ids: Array, weights: Array, gate_up: Array, down: Array) -> Array:
    """The same for experts that are chosen already, (T, k), with their weights."""
    out = np.zeros_like(float64(x))
    for t, row in enumerate(float64(x)):
        for e, weight in zip(ids[t], weights[t], strict=True):
            gate, up = np.split(linear(row, gate_up[e]), 2)
            out[t] += weight * linear(swiglu(gate, up), down[e])
    return out


# ----------------------------------------------------------------------------------------------- attention


def clamped_swiglu(gate: Array, up: Array, limit: float, alpha: float = 1.702) -> Array:
    """g * sigmoid(alpha * g) * (u + 1), g = min(gate, limit), u = up within -limit to limit (gpt-oss)."""
    g, u = np.minimum(float64(gate), limit), np.clip(float64(up), -limit, limit)
    return g / (1 + np.exp(-alpha * g)) * (u + 1)


def gpt_oss_experts(x: Array, tensors: Mapping[str, Array], prefix: str, mixture: Any) -> Array:
    """experts() as the class in transformers holds them: input-first, gate and up by turns, with biases.

    tensors  under prefix: router.weight (E, hidden), router.bias (E,), experts.gate_up_proj (E, hidden, 2 inner),
             experts.gate_up_proj_bias (E, 2 inner), experts.down_proj (E, inner, hidden), experts.down_proj_bias
    """
    logits = linear(x, tensors[prefix + "router.weight"], tensors[prefix + "router.bias"])
    ids, weights = route(logits, mixture.num_experts_per_tok, True)
    both, down = (float64(tensors[f"{prefix}experts.{name}_proj"]) for name in ("gate_up", "down"))
    both_bias, down_bias = (float64(tensors[f"{prefix}experts.{name}_proj_bias"]) for name in ("gate_up", "down"))
    out = np.zeros_like(float64(x))
    for t, row in enumerate(float64(x)):
        for e, weight in zip(ids[t], weights[t], strict=True):
            made = row @ both[e] + both_bias[e]
            inner = clamped_swiglu(made[0::2], made[1::2], mixture.swiglu_limit)
            out[t] += weight * (inner @ down[e] + down_bias[e])
    return out


def expert_names(kind: str) -> tuple[str, str, str]:
    """Of the router, and of all experts' gate and up, and down, as the class in transformers 5 calls them."""
    if kind == "granitemoe":
        block = "block_sparse_moe."
        return f"{block}router.weight", f"{block}experts.gate_up_proj", f"{block}experts.down_proj"
    return "mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


def softcapped(x: Array, cap: float) -> Array:
    """cap * tanh(x / cap), between -cap and cap; x itself if cap is 0."""
    return cap * np.tanh(float64(x) / cap) if cap else float64(x)


def attention(
    q: Array,
    k: Array,
    v: Array,
    positions: Sequence[int] | Array,
    window: int | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: Array | None = None,
) -> Array:
    """softmax(q k^T * scale) v over the positions a token may see; query head h reads head h // (H/K).

    q          (T, H, D)
    k, v       (S, K, D)  of positions 0 .. S-1
    positions  (T,)       of the queries; position p sees max(0, p - window + 1) .. p
    scale      1 / sqrt(D) unless given
    softcap    bound of the scaled products; 0: none
    sinks      (H,)       scores that take part in the softmax without a value
    returns    (T, H, D)
    """
    q, k, v = float64(q), float64(k), float64(v)
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)  # (S, H, D)
    scores = np.einsum("thd,shd->ths", q, k) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)  # (T, H, S)
    scores = softcapped(scores, softcap)
    query = np.asarray(positions)[:, None]  # (T, 1)
    key = np.arange(k.shape[0])[None, :]  # (1, S)
    visible = key <= query if window is None else (key <= query) & (key > query - window)
    scores = np.where(visible[:, None, :], scores, -np.inf)
    if sinks is None:
        return np.einsum("ths,shd->thd", softmax(scores), v)
    sink = np.broadcast_to(float64(sinks)[None, :, None], (*scores.shape[:2], 1))
    return np.einsum("ths,shd->thd", softmax(np.concatenate([scores, sink], axis=-1))[..., :-1], v)


# ------------------------------------------------------------------------------------------------ the model


#: model_type of the families that norm each head of q and k, all of them as one; that use gelu.
HEAD_NORMS = ("qwen3", "qwen3_moe", "gemma3_text", "lfm2", "lfm2_moe", "qwen3_5_text", "qwen3_5_moe_text")
#: Those whose attention has a gate on its result.
GATED = ("qwen3_5_text", "qwen3_5_moe_text")
#: Those whose tensors have names of their own.
LFM2 = ("lfm2", "lfm2_moe")
WHOLE_NORMS = ("olmo2", "olmo3")
GELU = ("gemma2", "gemma3_text")


#: Those that have a function of their own, in reference_gemma4.py.
GEMMA4 = ("gemma4_text", "gemma4_unified_text")

#: What LFM2 calls tensors.
LFM2_NAMES = {
    "model.embedding_norm": "model.norm",
    ".operator_norm": ".input_layernorm",
    ".ffn_norm": ".post_attention_layernorm",
    "_layernorm.weight": "_norm.weight",
    "self_attn.out_proj": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.gate": "mlp.gate",
    "feed_forward.experts": "mlp.experts",
    "feed_forward.expert_bias": "mlp.expert_bias",
}


def as_lfm2(name: str) -> str:
    """The name in LFM2's files of what others call so."""
    for theirs, ours in LFM2_NAMES.items():
        if theirs == "_layernorm.weight":
            name = name.replace("q_norm", "q_layernorm").replace("k_norm", "k_layernorm")
        else:
            name = name.replace(ours, theirs)
    return name


# ------------------------------------------------------------------------------- layers that carry a state


def causal_conv(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """out[t, c] = sum over j of weight[c, 0, j] * x[t - K + 1 + j, c], + bias[c]; zeros before the text.

    x       (T, C)
    weight  (C, 1, K)
    """
    width = weight.shape[-1]
    padded = np.concatenate([np.zeros((width - 1, x.shape[1])), float64(x)])
    out = sum(float64(weight)[:, 0, j] * padded[j : j + len(x)] for j in range(width))
    return out if bias is None else out + float64(bias)


def short_conv(x: Array, tensors: Mapping[str, Array], prefix: str) -> Array:
    """out_proj(C * conv(B * x)), with B, C, x the thirds of in_proj(h). LFM2."""

    def project(name: str, x: Array) -> Array:
        return linear(x, tensors[f"{prefix}{name}.weight"], tensors.get(f"{prefix}{name}.bias"))

    b, c, inner = np.split(project("in_proj", x), 3, axis=-1)
    mixed = causal_conv(b * inner, tensors[prefix + "conv.weight"], tensors.get(prefix + "conv.bias"))
    return project("out_proj", c * mixed)


def delta_rule(q: Array, k: Array, v: Array, decay: Array, beta: Array) -> Array:
    """S = decay * S; S += k (beta * (v - k S)); out = q S, from S = 0, token by token.

    q, k         (T, H, A)
    v            (T, H, B)
    decay, beta  (T, H)
    """
    state = np.zeros((q.shape[1], q.shape[2], v.shape[2]))  # (H, A, B)
    out = np.zeros(v.shape)
    for t in range(len(q)):
        state *= decay[t][:, None, None]
        delta = beta[t][:, None] * (v[t] - np.einsum("ha,hab->hb", k[t], state))
        state += k[t][:, :, None] * delta[:, None, :]
        out[t] = np.einsum("ha,hab->hb", q[t], state)
    return out


def unit(x: Array) -> Array:
    """x over its length, as Qwen3.5 has it."""
    return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def gated_delta(x: Array, tensors: Mapping[str, Array], prefix: str, of: Any, eps: float) -> Array:
    """The gated delta rule as Qwen3.5 has it.

    of  a DeltaRule; value head h has the keys of head h // (value_heads / key_heads)
    """
    keys, each = of.key_heads * of.key_dim, of.value_heads // of.key_heads
    mixed, z, b, a = (linear(x, tensors[f"{prefix}in_proj_{name}.weight"]) for name in ("qkv", "z", "b", "a"))
    mixed = silu(causal_conv(mixed, tensors[prefix + "conv1d.weight"]))
    q, k, v = np.split(mixed, [keys, 2 * keys], axis=-1)
    q, k = (np.repeat(of_all.reshape(len(x), of.key_heads, of.key_dim), each, axis=1) for of_all in (q, k))
    q, k = unit(q), unit(k)
    v = v.reshape(len(x), of.value_heads, of.value_dim)
    rate, dt = -np.exp(float64(tensors[prefix + "A_log"])), float64(tensors[prefix + "dt_bias"])
    decay = np.exp(rate * np.logaddexp(0, a + dt))
    out = delta_rule(q * of.key_dim**-0.5, k, v, decay, 1 / (1 + np.exp(-b)))
    out = rmsnorm(out, tensors[prefix + "norm.weight"], eps).reshape(len(x), -1) * silu(z)
    return linear(out, tensors[prefix + "out_proj.weight"])


#: Those whose q, k and v are stored as one matrix, and gate and up as another.
FUSED = ("phi3",)


def separated(config: Any, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors with one for each matrix, whatever is stored as one."""
    q_rows, kv_rows = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    found = {}
    for name, values in tensors.items():
        for fused, parts, cuts in (
            ("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
             (q_rows, q_rows + kv_rows)),
            ("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj"), (config.intermediate_size,)),
            ("shared_mlp.input_linear", ("mlp.gate_proj", "mlp.up_proj"), (config.intermediate_size,)),
            ("shared_mlp.output_linear", ("mlp.down_proj",), ()),
        ):  # fmt: skip
            if fused in name:
                found |= {name.replace(fused, p): v for p, v in zip(parts, np.split(values, cuts), strict=True)}
                break
        else:
            found[name] = values
    return found


def norm_names(model_type: str) -> tuple[str | None, str | None, str | None, str | None]:
    """What a layer calls the norms before and after attention, before and after the mlp; None: it has none there."""
    if model_type in ("olmo2", "olmo3"):
        return None, "post_attention_layernorm", None, "post_feedforward_layernorm"
    if model_type in ("gemma2", "gemma3_text"):
        return (
            "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
        )  # fmt: skip
    return "input_layernorm", None, "post_attention_layernorm", None


def forward(
    config: Any,
    tensors: Mapping[str, Array],
    token_ids: Sequence[int],
    interleaved: bool = False,
    ropes: Sequence[tuple[float, Any]] | None = None,
) -> Array:
    """Logits (T, V) of every token of one sequence that starts at position 0.

    config       a Config, or anything with its fields
    tensors      Hugging Face name -> array, any real dtype
    interleaved  the rows of q_proj and k_proj (and their biases) are in interleaved RoPE order
    ropes        each layer's own theta and scaling, where they are not the config's
    """
    if config.model_type in GEMMA4:
        import reference_gemma4

        return reference_gemma4.forward(config, tensors, token_ids, interleaved)
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    rotated = config.rotary_dim or head_dim
    kind, eps = config.model_type, config.rms_norm_eps
    names = norm_names(kind)
    if kind in LFM2:
        tensors = {ours: tensors[as_lfm2(ours)] for ours in tensor_shapes(config, plain=True)}
    tensors = separated(config, tensors)
    positions = np.arange(len(token_ids))
    embedding = tensors["model.embed_tokens.weight"]  # (V, hidden)
    hidden = float64(embedding[np.asarray(token_ids)]) * config.embedding_scale  # (T, hidden)

    def norm(x: Array, name: str | None) -> Array:
        """The norm of that name; x itself where a layer has none there."""
        if name is None:
            return float64(x)
        weight = float64(tensors[f"{name}.weight"])
        return rmsnorm(x, 1.0 + weight if config.norm_plus_one else weight, eps)

    for layer, window in enumerate(config.layer_windows):
        prefix = f"model.layers.{layer}."

        def project(name: str, x: Array, prefix: str = prefix) -> Array:
            return linear(x, tensors[f"{prefix}{name}.weight"], tensors.get(f"{prefix}{name}.bias"))

        before, after, mlp_before, mlp_after = (name and prefix + name for name in names)
        x = norm(hidden, before)
        carried = config.short_convs or config.delta_rule
        if carried and carried.layers[layer]:
            if config.short_convs:
                hidden = hidden + short_conv(x, tensors, prefix + "conv.")
            else:
                hidden = hidden + gated_delta(x, tensors, prefix + "linear_attn.", carried, eps)
            x = norm(hidden, mlp_before)
            if config.mixture and config.mixture.layers[layer]:
                hidden = hidden + mixture_of(x, config, tensors, prefix)
            else:
                inner = swiglu(project("mlp.gate_proj", x), project("mlp.up_proj", x))
                hidden = hidden + project("mlp.down_proj", inner)
            continue
        q, k, v = (project(f"self_attn.{name}_proj", x) for name in "qkv")
        if kind in WHOLE_NORMS:
            q, k = norm(q, f"{prefix}self_attn.q_norm"), norm(k, f"{prefix}self_attn.k_norm")
        gate = None
        if kind in GATED:
            q, gate = (part.reshape(len(x), -1) for part in np.split(q.reshape(len(x), heads, -1), 2, axis=-1))
        q = q.reshape(-1, heads, head_dim)  # (T, H, D)
        k, v = (of.reshape(-1, kv_heads, head_dim) for of in (k, v))  # (T, K, D)
        if kind in HEAD_NORMS:
            q, k = norm(q, f"{prefix}self_attn.q_norm"), norm(k, f"{prefix}self_attn.k_norm")
        theta, scaling = ropes[layer] if ropes else (config.rope_theta, config.rope_scaling)
        if window is not None and config.sliding_rope:
            theta, scaling = config.sliding_rope
        if layer not in config.unrotated_layers:
            frequencies, factor = inv_freq(rotated, theta, scaling), attention_factor(scaling)
            q = rope(q, positions, frequencies, factor, interleaved)
            k = rope(k, positions, frequencies, factor, interleaved)
        if config.query_growth:
            growth = 1.0 + config.query_growth.beta * np.log(1.0 + positions // config.query_growth.original)
            q = q * growth[:, None, None]
        sinks = tensors.get(prefix + "self_attn.sinks")
        mixed = attention(q, k, v, positions, window, config.attention_scale, config.attention_softcap, sinks)
        mixed = mixed.reshape(-1, heads * head_dim)
        out = project("self_attn.o_proj", mixed if gate is None else mixed / (1 + np.exp(-gate)))
        hidden = hidden + config.residual_scale * norm(out, after)

        x = norm(hidden, mlp_before)
        mixture = config.mixture
        if kind == "gpt_oss":
            hidden = hidden + gpt_oss_experts(x, tensors, prefix + "mlp.", mixture)
            continue
        if mixture and mixture.layers[layer]:
            hidden = hidden + config.residual_scale * mixture_of(x, config, tensors, prefix)
            continue
        gate, up = project("mlp.gate_proj", x), project("mlp.up_proj", x)  # (T, intermediate)
        inner = gelu(gate) * up if kind in GELU else swiglu(gate, up)
        hidden = hidden + config.residual_scale * norm(project("mlp.down_proj", inner), mlp_after)

    hidden = norm(hidden, "model.norm")
    head = embedding if config.tie_word_embeddings else tensors["lm_head.weight"]  # (V, hidden)
    return softcapped(linear(hidden, head) / config.logits_scale, config.logits_softcap)


def mixture_of(x: Array, config: Any, tensors: Mapping[str, Array], prefix: str) -> Array:
    """What the experts of a layer add, and an mlp that all tokens go through where there is one."""
    own = expert_names(config.model_type)  # as its class has them; pyllama calls all alike
    stacks = own if prefix + own[0] in tensors else expert_names("qwen3_moe")
    router, gate_up, down = (tensors[prefix + name] for name in stacks)
    mixture = config.mixture
    if mixture.sigmoid:
        bias = tensors[prefix + "mlp.expert_bias"] if mixture.expert_bias else None
        how = mixture.num_experts_per_tok, mixture.norm_topk_prob, mixture.routed_scaling_factor
        return of_experts(x, *route_sigmoid(linear(x, router), bias, *how), gate_up, down)
    out = experts(x, router, gate_up, down, mixture.num_experts_per_tok, mixture.norm_topk_prob)
    if config.model_type != "qwen3_5_moe_text":
        return out
    gate, up, down, share = (
        tensors[f"{prefix}mlp.shared_expert{name}.weight"] for name in (".gate_proj", ".up_proj", ".down_proj", "_gate")
    )
    return out + linear(swiglu(linear(x, gate), linear(x, up)), down) / (1 + np.exp(-linear(x, share)))


# ------------------------------------------------------------------------------------------- seeded weights


def tensor_shapes(config: Any, plain: bool = False) -> dict[str, tuple[int, ...]]:
    """Every tensor the model of this Config has, under its name in transformers 5, shapes (out, in); the experts of a
    layer are in one. plain: under names that other families have for the same."""
    if config.model_type in GEMMA4:
        import reference_gemma4

        return reference_gemma4.tensor_shapes(config)
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    q_rows, kv_rows = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}

    def add(name: str, rows: int, columns: int, bias: bool) -> None:
        shapes[name + ".weight"] = (rows, columns)
        if bias:
            shapes[name + ".bias"] = (rows,)

    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for name in norm_names(config.model_type):
            if name:
                shapes[f"{prefix}{name}.weight"] = (hidden,)
        carried = config.short_convs or config.delta_rule
        if carried and carried.layers[layer]:
            _add_carried(add, shapes, prefix, config)
            if config.mixture and config.mixture.layers[layer]:
                _add_mixture(add, shapes, prefix, config)
                continue
            for name in ("gate_proj", "up_proj", "down_proj"):
                add(f"{prefix}mlp.{name}", *((hidden, inner) if name == "down_proj" else (inner, hidden)), False)
            continue
        if config.model_type in FUSED:
            add(prefix + "self_attn.qkv_proj", q_rows + 2 * kv_rows, hidden, False)
        else:
            gated = config.model_type in GATED
            add(prefix + "self_attn.q_proj", 2 * q_rows if gated else q_rows, hidden, config.qkv_bias)
            add(prefix + "self_attn.k_proj", kv_rows, hidden, config.qkv_bias)
            add(prefix + "self_attn.v_proj", kv_rows, hidden, config.qkv_bias)
        add(prefix + "self_attn.o_proj", hidden, q_rows, config.o_bias)
        for name, rows in (("q_norm", q_rows), ("k_norm", kv_rows)):
            if config.model_type in HEAD_NORMS + WHOLE_NORMS:
                whole = config.model_type in WHOLE_NORMS
                shapes[f"{prefix}self_attn.{name}.weight"] = (rows if whole else head_dim,)
        if config.model_type == "gpt_oss":
            count, width = config.mixture.num_experts, config.mixture.moe_intermediate_size
            shapes[prefix + "self_attn.sinks"] = (config.num_attention_heads,)
            add(prefix + "mlp.router", count, hidden, True)
            shapes[prefix + "mlp.experts.gate_up_proj"] = (count, hidden, 2 * width)
            shapes[prefix + "mlp.experts.gate_up_proj_bias"] = (count, 2 * width)
            shapes[prefix + "mlp.experts.down_proj"] = (count, width, hidden)
            shapes[prefix + "mlp.experts.down_proj_bias"] = (count, hidden)
            continue
        if config.mixture and config.mixture.layers[layer]:
            _add_mixture(add, shapes, prefix, config)
            continue
        if config.model_type == "granitemoehybrid":
            add(prefix + "shared_mlp.input_linear", 2 * inner, hidden, False)
            add(prefix + "shared_mlp.output_linear", hidden, inner, False)
            continue
        if config.model_type in FUSED:
            add(prefix + "mlp.gate_up_proj", 2 * inner, hidden, False)
        else:
            add(prefix + "mlp.gate_proj", inner, hidden, config.mlp_bias)
            add(prefix + "mlp.up_proj", inner, hidden, config.mlp_bias)
        add(prefix + "mlp.down_proj", hidden, inner, config.mlp_bias)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    if config.model_type in LFM2 and not plain:
        return {as_lfm2(name): shape for name, shape in shapes.items()}
    return shapes


def _add_mixture(add: Any, shapes: dict[str, tuple[int, ...]], prefix: str, config: Any) -> None:
    """The tensors of a layer's experts."""
    hidden, inner, mixture = config.hidden_size, config.intermediate_size, config.mixture
    count, width = mixture.num_experts, mixture.moe_intermediate_size
    router, gate_up, down = expert_names(config.model_type)
    shapes[prefix + router] = (count, hidden)
    shapes[prefix + gate_up] = (count, 2 * width, hidden)
    shapes[prefix + down] = (count, hidden, width)
    if mixture.expert_bias:
        shapes[prefix + "mlp.expert_bias"] = (count,)
    if config.model_type == "qwen3_5_moe_text":
        shared = prefix + "mlp.shared_expert"
        add(f"{shared}.gate_proj", inner, hidden, False)
        add(f"{shared}.up_proj", inner, hidden, False)
        add(f"{shared}.down_proj", hidden, inner, False)
        add(f"{shared}_gate", 1, hidden, False)


def _add_carried(add: Any, shapes: dict[str, tuple[int, ...]], prefix: str, config: Any) -> None:
    """The tensors of a mixer that carries a state."""
    hidden, convs, delta = config.hidden_size, config.short_convs, config.delta_rule
    if convs:
        add(prefix + "conv.in_proj", 3 * hidden, hidden, convs.bias)
        add(prefix + "conv.conv", hidden, 1, convs.bias)
        shapes[prefix + "conv.conv.weight"] = (hidden, 1, convs.width)
        add(prefix + "conv.out_proj", hidden, hidden, convs.bias)
        return
    values = delta.value_heads * delta.value_dim
    mixed = 2 * delta.key_heads * delta.key_dim + values
    for name, rows in (("qkv", mixed), ("z", values), ("b", delta.value_heads), ("a", delta.value_heads)):
        add(f"{prefix}linear_attn.in_proj_{name}", rows, hidden, False)
    shapes[prefix + "linear_attn.conv1d.weight"] = (mixed, 1, delta.width)
    shapes[prefix + "linear_attn.A_log"] = shapes[prefix + "linear_attn.dt_bias"] = (delta.value_heads,)
    shapes[prefix + "linear_attn.norm.weight"] = (delta.value_dim,)
    add(prefix + "linear_attn.out_proj", hidden, values, False)


def random_weights(config: Any, seed: int) -> dict[str, Array]:
    """Float32 tensors, each value exact in bfloat16; the bits depend on (seed, name, shape) alone.

    Scales are those of a lively model: attention that prefers some positions, residual branches that matter,
    logits with a spread of a few units.
    """
    return {name: random_tensor(name, shape, seed) for name, shape in tensor_shapes(config).items()}


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> Array:
    """One tensor of random_weights: near-normal values, scaled by what the name is."""
    noise = _noise(f"{seed}/{name}", math.prod(shape)).reshape(shape)  # mean 0, deviation 1
    sharpness = 1.5 if any(part in name for part in ("q_proj", "k_proj", "q_norm", "k_norm")) else 1.0
    if name.endswith("post_feedforward_layernorm.weight"):  # as for o_proj and down_proj below
        return round_to_bfloat16(np.float32(16.0) + np.float32(4.0) * noise)
    if name.endswith(("A_log", "dt_bias")):
        return round_to_bfloat16(np.float32(0.75) * noise)
    if name.endswith("post_per_layer_input_norm.weight"):
        return round_to_bfloat16(np.float32(8.0) + np.float32(2.0) * noise)
    if "router." in name and name.endswith("scale"):
        return round_to_bfloat16(np.float32(1.0) + np.float32(0.4) * noise)
    if name.endswith(("norm.weight", "layer_scalar", "layernorm_1.weight", "layernorm_2.weight")):
        return round_to_bfloat16(np.float32(sharpness) + np.float32(0.25) * noise)
    if name.endswith((".bias", "_bias", ".sinks")):
        return round_to_bfloat16(np.float32(0.25) * noise)
    if name in ("model.embed_tokens.weight", "model.embed_tokens_per_layer.weight"):
        return round_to_bfloat16(noise)
    if name.endswith("router.proj.weight"):  # whose input is small: / sqrt(hidden)
        return round_to_bfloat16(np.float32(2.0) * noise)
    # The branches outweigh the embedding, else a tied head would have every token predict itself.
    ends = ("o_proj", "down_proj", ".out_proj", ".w2", ".output_linear")
    gain = 12.0 if any(part in name for part in ends) else sharpness
    return round_to_bfloat16(np.float32(gain / math.sqrt(shape[-1])) * noise)


def _noise(label: str, count: int) -> Array:
    """float32, near normal: the four 16-bit quarters of splitmix64(counter), summed in integers.

    NumPy promises no stable random streams across versions; integer arithmetic is stable everywhere.
    """
    key = int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "little")
    x = np.uint64(key) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    total = sum(((x >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64) for shift in (0, 16, 32, 48))
    deviation = 65536.0 / math.sqrt(3.0)  # of a sum of four uniforms below 65536
    return ((total - 2 * 65535) / deviation).astype(np.float32)


def round_to_bfloat16(x: Array) -> Array:
    """Nearest bfloat16, ties to even, as float32. Finite values only."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    bits = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)
