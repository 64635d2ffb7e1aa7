"""What each family does otherwise, left out or got wrong: the logits must tell, by 1e-3 of the largest.

A golden vector that did not would let the fault through. `pytest --collect-only -q tests/test_ablations.py` lists what
is left out of what. Fields of Config and tensors are changed by test_reference.py likewise (rotary scaling, windows,
scales, bounds, biases, the state's parts, Gemma 4's pieces); here are steps of the reference and parts of matrices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
import reference
from golden import CASES, Golden, load_case

Tensors = dict[str, np.ndarray]


def changed(part: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Golden], np.ndarray]:
    """Logits with another value of the tensors whose names end so."""

    def logits(golden: Golden) -> np.ndarray:
        tensors = {name: change(t) if name.endswith(part) else t for name, t in golden.tensors.items()}
        return reference.forward(golden.config, tensors, golden.tokens)

    return logits


def patched(**steps: object) -> Callable[[Golden], np.ndarray]:
    """Logits with other steps in the reference."""

    def logits(golden: Golden) -> np.ndarray:
        with mock.patch.multiple(reference, **steps):
            return reference.forward(golden.config, golden.tensors, golden.tokens)

    return logits


def of_mixture(**fields: object) -> Callable[[Golden], np.ndarray]:
    """Logits with other fields of the mixture."""

    def logits(golden: Golden) -> np.ndarray:
        assert golden.config.mixture is not None
        mixture = golden.config.mixture._replace(**fields)
        return reference.forward(dataclasses.replace(golden.config, mixture=mixture), golden.tensors, golden.tokens)

    return logits


def no_gate(golden: Golden) -> np.ndarray:
    """Attention's gate of Qwen3.5 made one half everywhere, and the half made whole by o_proj."""
    heads = golden.config.num_attention_heads
    tensors = dict(golden.tensors)
    for name in [name for name in tensors if name.endswith("self_attn.q_proj.weight")]:
        rows = tensors[name].reshape(heads, 2, -1, tensors[name].shape[-1]).copy()
        rows[:, 1] = 0
        tensors[name] = rows.reshape(tensors[name].shape)
        output = name.replace("q_proj", "o_proj")
        tensors[output] = 2 * tensors[output]
    return reference.forward(golden.config, tensors, golden.tokens)


def fewer(golden: Golden) -> np.ndarray:
    return of_mixture(num_experts_per_tok=golden.config.mixture.num_experts_per_tok - 1)(golden)  # type: ignore[union-attr]


def other_weights(golden: Golden) -> np.ndarray:
    return of_mixture(norm_topk_prob=not golden.config.mixture.norm_topk_prob)(golden)  # type: ignore[union-attr]


def over_all(logits: np.ndarray, chosen: int, of_chosen: bool) -> tuple[np.ndarray, np.ndarray]:
    """route() with weights of all experts where those of the chosen ones are meant."""
    return _ROUTE(logits, chosen, False)


def decayed_late(q: np.ndarray, k: np.ndarray, v: np.ndarray, decay: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """delta_rule() with the decay after the delta."""
    state = np.zeros((q.shape[1], q.shape[2], v.shape[2]))
    out = np.zeros(v.shape)
    for t in range(len(q)):
        delta = beta[t][:, None] * (v[t] - np.einsum("ha,hab->hb", k[t], state))
        state = (state + k[t][:, :, None] * delta[:, None, :]) * decay[t][:, None, None]
        out[t] = np.einsum("ha,hab->hb", q[t], state)
    return out


def without_delta(q: np.ndarray, k: np.ndarray, v: np.ndarray, decay: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """delta_rule() that adds v, not what v differs by from what is remembered."""
    state = np.zeros((q.shape[1], q.shape[2], v.shape[2]))
    out = np.zeros(v.shape)
    for t in range(len(q)):
        state = state * decay[t][:, None, None] + k[t][:, :, None] * (beta[t][:, None] * v[t])[:, None, :]
        out[t] = np.einsum("ha,hab->hb", q[t], state)
    return out


_ROUTE, _NORM_NAMES, _DELTA = reference.route, reference.norm_names, reference.delta_rule
_CLAMPED = reference.clamped_swiglu


def swapped(parts: int, order: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """Equal parts of a matrix's rows in another order."""
    return lambda w: np.concatenate([np.split(w, parts)[i] for i in order])


#: What is left out or got wrong -> the families it is of, and the logits without it.
ABLATIONS: dict[str, tuple[tuple[str, ...], Callable[[Golden], np.ndarray]]] = {
    "norms of q and k": (
        (*reference.HEAD_NORMS, *reference.WHOLE_NORMS), patched(HEAD_NORMS=(), WHOLE_NORMS=())),
    "norms after a block": (
        ("gemma2", "gemma3_text"), patched(norm_names=lambda kind: (*_NORM_NAMES(kind)[:1], None,
                                                                    _NORM_NAMES(kind)[2], None))),
    "norms after, not before": (
        ("olmo2", "olmo3"), patched(norm_names=lambda kind: (_NORM_NAMES(kind)[1], None, _NORM_NAMES(kind)[3], None))),
    "gelu, not silu": (("gemma2", "gemma3_text"), patched(GELU=())),
    "attention's gate": (("qwen3_5_text", "qwen3_5_moe_text"), no_gate),
    "unit length of q and k": (("qwen3_5_text", "qwen3_5_moe_text"), patched(unit=lambda x: x)),
    "q by the root of its size": (
        ("qwen3_5_text", "qwen3_5_moe_text"),
        patched(delta_rule=lambda q, k, v, decay, beta: _DELTA(q * q.shape[-1] ** 0.5, k, v, decay, beta))),
    "decay before the delta": (("qwen3_5_text", "qwen3_5_moe_text"), patched(delta_rule=decayed_late)),
    "the delta": (("qwen3_5_text", "qwen3_5_moe_text"), patched(delta_rule=without_delta)),
    "gate above up": (
        ("phi3", "granitemoehybrid"),
        lambda golden: changed("gate_up_proj.weight" if golden.config.model_type == "phi3" else "input_linear.weight",
                               swapped(2, (1, 0)))(golden)),
    "the last norm's weight": (("lfm2", "lfm2_moe"), changed("embedding_norm.weight", np.ones_like)),
    "one expert": (("qwen3_moe", "mixtral", "granitemoe", "gpt_oss"), fewer),
    "weights of the chosen": (("qwen3_moe",), other_weights),
    "softmax of the chosen": (("mixtral", "granitemoe", "gpt_oss"), patched(route=over_all)),
    "sinks": (("gpt_oss",), changed("sinks", lambda t: np.full_like(t, -1e30))),
    "experts' biases, gate and up": (("gpt_oss",), changed("gate_up_proj_bias", np.zeros_like)),
    "experts' biases, down": (("gpt_oss",), changed("down_proj_bias", np.zeros_like)),
    "1.702": (("gpt_oss",), patched(clamped_swiglu=lambda gate, up, limit: _CLAMPED(gate, up, limit, 1.0))),
    "up + 1": (("gpt_oss",), patched(clamped_swiglu=lambda gate, up, limit: _CLAMPED(gate, up - 1, limit))),
    "gate and up by turns": (
        ("gpt_oss",), changed("gate_up_proj", lambda w: w.reshape(*w.shape[:2], -1, 2)[..., ::-1].reshape(w.shape))),
    "bounds of gate and up": (("gpt_oss",), of_mixture(swiglu_limit=1e9)),
}  # fmt: skip
PAIRS = [
    pytest.param(case, what, id=f"{case}: {what}")
    for case in CASES
    for what, (kinds, _) in ABLATIONS.items()
    # In the plain case of gpt-oss nothing reaches the bounds; in that of MXFP4 it does.
    if load_case(case).config.model_type in kinds and (case, what) != ("gpt_oss", "bounds of gate and up")
]


@pytest.mark.parametrize("case, what", PAIRS)
def test_left_out_it_shows(case: str, what: str) -> None:
    golden = load_case(case)
    assert golden.error(ABLATIONS[what][1](golden)) > 1e-3


def test_every_family_has_something_of_its_own_or_is_llamas() -> None:
    left_out = {kind for kinds, _ in ABLATIONS.values() for kind in kinds}
    by_config = {"llama", "mistral", "qwen2", "smollm3", "granite", "ministral3", *reference.GEMMA4}
    assert {load_case(case).config.model_type for case in CASES} <= left_out | by_config
