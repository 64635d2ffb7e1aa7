"""The float64 reference against transformers' golden vectors: what everything else is measured by is right.

Also that the golden vectors are worth having: each feature a case is there for changes its logits visibly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import reference_gemma4
from golden import CASES, Golden, load_case

from pyllama.architecture.config import Config, RopeScaling

# Transformers computes in float32: seen up to 5.6e-6 of the largest logit away from float64.
FLOAT32_ERROR = 1e-5
# A prompt's delta rule is computed there in chunks, by a triangular system, in another order: up to 1.6e-5 away.
CHUNKED_ERROR = 3e-5


@pytest.fixture(scope="module", params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_case(request.param)


def logits_of(golden: Golden, config: Config) -> np.ndarray:
    return reference.forward(config, golden.tensors, golden.tokens)


def test_reference_reproduces_transformers(golden: Golden) -> None:
    logits = logits_of(golden, golden.config)
    assert golden.error(logits) < (CHUNKED_ERROR if golden.config.delta_rule else FLOAT32_ERROR)
    assert golden.greedy_of(logits) == golden.greedy


def test_greedy_path_is_clear_and_lively(golden: Golden) -> None:
    assert len(golden.greedy) == 64 and len(golden.prompt) >= 20
    assert golden.smallest_gap > 1e-3 and len(set(golden.greedy)) >= 24
    logits = logits_of(golden, golden.config)[len(golden.prompt) - 1 :]
    best = np.sort(logits, axis=-1)
    assert ((best[:, -1] - best[:, -2]) / np.abs(logits).max(axis=-1)).min() > 0.9e-3


def test_each_feature_of_a_case_changes_its_logits(golden: Golden) -> None:
    config, plain = golden.config, []
    if config.model_type in reference.GEMMA4:
        pytest.skip("test_each_piece_of_gemma4_changes_its_logits")
    if config.rope_scaling:
        plain.append(dataclasses.replace(config, rope_scaling=None))
        if config.rope_scaling.kind == "longrope":
            other = config.rope_scaling._replace(long=not config.rope_scaling.long)
            loud = config.rope_scaling._replace(attention_factor=1.0)
            plain += [dataclasses.replace(config, rope_scaling=scaling) for scaling in (other, loud)]
        if config.rope_scaling.kind == "yarn":
            for change in ({"attention_factor": 1.0}, {"truncate": not config.rope_scaling.truncate}):
                scaling = config.rope_scaling._replace(**change)
                if scaling != config.rope_scaling:
                    plain.append(dataclasses.replace(config, rope_scaling=scaling))
    for window in {w for w in config.layer_windows if w and w < len(golden.tokens)}:
        for other in (None, window - 1, window + 1):
            windows = tuple(w and other for w in config.layer_windows)
            plain.append(dataclasses.replace(config, layer_windows=windows))
    if len(set(config.layer_windows)) > 1:
        everywhere = (max(w or 0 for w in config.layer_windows),) * config.num_hidden_layers
        plain.append(dataclasses.replace(config, layer_windows=everywhere))
    if config.model_type == "qwen3":
        plain.append(dataclasses.replace(config, model_type="llama"))
    neutral = {"attention_softcap": 0.0, "logits_softcap": 0.0, "embedding_scale": 1.0, "residual_scale": 1.0,
               "logits_scale": 1.0, "attention_scale": None, "sliding_rope": None,
               "unrotated_layers": (), "query_growth": None, "norm_plus_one": False}  # fmt: skip
    for field, nothing in neutral.items():
        if getattr(config, field) != nothing:
            plain.append(dataclasses.replace(config, **{field: nothing}))
    if config.rotary_dim and config.rope_scaling is None:
        plain.append(dataclasses.replace(config, rotary_dim=config.rotary_dim - 2))
    elif config.rotary_dim:
        pairs = config.rotary_dim // 2 - 1
        fewer = config.rope_scaling._replace(
            factors=config.rope_scaling.factors[:pairs],
            long_factors=config.rope_scaling.long_factors[:pairs],
        )
        plain.append(dataclasses.replace(config, rotary_dim=2 * pairs, rope_scaling=fewer))
    if config.unrotated_layers:
        one_before = tuple(i - 1 for i in config.unrotated_layers)
        plain.append(dataclasses.replace(config, unrotated_layers=one_before))
    if config.sliding_rope:  # what is for full layers alone
        plain.append(dataclasses.replace(config, sliding_rope=(config.sliding_rope[0], config.rope_scaling)))
    for changed in plain:
        assert golden.error(logits_of(golden, changed)) > 1e-3, changed
    for bias in {name.split(".", 3)[-1] for name in golden.tensors if name.endswith(".bias")}:
        without = {name: 0 * t if name.endswith(bias) else t for name, t in golden.tensors.items()}
        assert golden.error(reference.forward(config, without, golden.tokens)) > 1e-3, bias


#: Part of a name -> what stands for a feature left out, or got wrong, of layers that carry a state.
_LEFT_OUT: dict[str, list[Callable[[np.ndarray], np.ndarray]]] = {
    "conv.conv.weight": [lambda w: w * (np.arange(w.shape[-1]) > 0), lambda w: w[..., ::-1]],
    "conv.in_proj.weight": [
        lambda w: np.concatenate([np.split(w, 3)[part] for part in (1, 0, 2)]),  # B and C change places
        lambda w: np.concatenate([np.split(w, 3)[part] for part in (0, 2, 1)]),  # C and x do
    ],
    "conv1d.weight": [lambda w: w * (np.arange(w.shape[-1]) > 0), lambda w: w[..., ::-1]],
    "A_log": [lambda a: a + 0.3, lambda a: a - 30],  # the second decays by nothing
    "dt_bias": [lambda a: 0 * a, lambda a: a[::-1]],
    "linear_attn.norm.weight": [lambda w: 1 + w, lambda w: 0 * w + 1],
    "in_proj_b": [lambda w: 0 * w],
    "in_proj_a": [lambda w: 0 * w],
    "in_proj_z": [lambda w: w[::-1]],
}


def test_each_feature_of_a_state_changes_the_logits(golden: Golden) -> None:
    for part, changes in _LEFT_OUT.items():
        for number, change in enumerate(changes if any(part in name for name in golden.tensors) else ()):
            changed = {name: change(t) if part in name else t for name, t in golden.tensors.items()}
            assert golden.error(reference.forward(golden.config, changed, golden.tokens)) > 1e-3, (part, number)
    if golden.config.delta_rule is None:
        return
    of, heads = golden.config.delta_rule, golden.config.num_attention_heads
    if of.key_heads != of.value_heads:  # a key head serves consecutive value heads
        order = np.arange(of.value_heads).reshape(of.key_heads, -1).T.reshape(-1)
        changed = {
            name: t[order] if name.endswith(("in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_bias")) else t
            for name, t in golden.tensors.items()
        }
        assert golden.error(reference.forward(golden.config, changed, golden.tokens)) > 1e-3
    changed = {
        name: np.concatenate(np.split(t.reshape(heads, -1, t.shape[-1]), 2, axis=1)[::-1], axis=1).reshape(t.shape)
        if "q_proj" in name
        else t
        for name, t in golden.tensors.items()
    }
    assert golden.error(reference.forward(golden.config, changed, golden.tokens)) > 1e-3, "the gate before the query"


_MIXTURES = [name for name in CASES if load_case(name).config.model_type in ("lfm2_moe", "qwen3_5_moe_text")]


@pytest.mark.parametrize("name", _MIXTURES)
def test_each_feature_of_a_mixture_changes_its_logits(name: str) -> None:
    golden = load_case(name)
    config, of = golden.config, golden.config.mixture
    assert of is not None
    changes = [{"num_experts_per_tok": of.num_experts_per_tok - 1}, {"norm_topk_prob": not of.norm_topk_prob}]
    changes += [{"sigmoid": False}, {"routed_scaling_factor": 1.1}] if of.sigmoid else []
    changes += [{"expert_bias": False}] if of.expert_bias else []
    for change in changes:
        changed = dataclasses.replace(config, mixture=of._replace(**change))
        assert golden.error(logits_of(golden, changed)) > 1e-3, change
    left_out: dict[str, list[Callable[[np.ndarray], np.ndarray]]] = {
        "expert_bias": [lambda b: b[::-1]],
        "experts.gate_up_proj": [lambda w: np.roll(w, w.shape[1] // 2, axis=1)],  # gate and up change places
        "shared_expert_gate": [lambda w: 0 * w, lambda w: -w],
        "shared_expert.down_proj": [lambda w: 0 * w],
    }
    for part, ways in left_out.items():
        for number, way in enumerate(ways if any(part in name for name in golden.tensors) else ()):
            tensors = {name: way(t) if part in name else t for name, t in golden.tensors.items()}
            assert golden.error(reference.forward(config, tensors, golden.tokens)) > 1e-3, (part, number)


@pytest.mark.parametrize("name", [name for name in CASES if load_case(name).config.model_type in reference.GEMMA4])
def test_each_piece_of_gemma4_changes_its_logits(name: str) -> None:
    golden = load_case(name)
    config, changed = golden.config, []
    turned = config.rope_scaling.factors.count(config.rope_scaling.factor)
    for pairs in (turned - 1, turned + 1, len(config.rope_scaling.factors)):
        factors = (1.0,) * pairs + (math.inf,) * (len(config.rope_scaling.factors) - pairs)
        changed.append({"rope_scaling": config.rope_scaling._replace(factors=factors)})
    for other in (10**6, 10, 12):
        changed.append({"layer_windows": tuple(window and other for window in config.layer_windows)})
    changed.append({"rope_theta": config.sliding_rope[0]})
    changed.append({"sliding_rope": (config.rope_theta, None)})
    changed += [{"embedding_scale": 1.0}, {"attention_scale": None}]
    changed += [{"logits_softcap": 0.0}] if config.logits_softcap else []
    for change in changed:
        assert golden.error(logits_of(golden, dataclasses.replace(config, **change))) > 1e-3, change
    own, sharing = config.hidden_size_per_layer_input, config.num_kv_shared_layers
    there = {"v_norm": True, "scalar": True, "raw_values": config.full_attention.values_are_keys,
             "last_source": sharing, "projection": own, "own_rows": own, "own_norm": own, "own_gate": own,
             "interleaved": own}  # fmt: skip
    there |= dict.fromkeys(("router_scale", "router_residual", "expert_scale", "expert_gelu"), config.mixture)
    assert set(there) == set(reference_gemma4.PIECES)
    for piece in (piece for piece, has in there.items() if has):
        logits = reference_gemma4.forward(config, golden.tensors, golden.tokens, without=piece)
        assert golden.error(logits) > 1e-3, piece


def test_interleaved_rows_give_the_same_logits(golden: Golden) -> None:
    config = golden.config
    if config.model_type in reference.GEMMA4:
        pytest.skip("no file has its rows interleaved")
    if config.rotary_dim:
        pytest.skip("no file has the rows of a part of each head interleaved")
    if config.short_convs:
        pytest.skip("LFM2's files are half-split in every form")
    if len(config.unrotated_layers) == config.num_hidden_layers:
        pytest.skip("what is not turned has no order")
    tensors = reference.separated(config, golden.tensors)
    whole = config.model_type in reference.WHOLE_NORMS
    for name in tensors:
        for part, heads in (("q_norm", config.num_attention_heads), ("k_norm", config.num_key_value_heads)):
            if part in name:
                tensors[name] = reference.interleave_rows(tensors[name], heads if whole else 1)
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                tensors[name] = reference.interleave_rows(tensors[name], heads)
    interleaved = reference.forward(config, tensors, golden.tokens, interleaved=True)
    assert np.abs(interleaved - logits_of(golden, config)).max() < 1e-9
    assert golden.error(reference.forward(config, tensors, golden.tokens)) > 1e-3


def test_rope_rotates_the_stated_pairs() -> None:
    x = np.arange(1.0, 9.0).reshape(1, 1, 8)
    frequencies = reference.inv_freq(8, 10000.0)
    assert frequencies == pytest.approx([1.0, 0.1, 0.01, 0.001])
    pairs_half = [(0, 4), (1, 5), (2, 6), (3, 7)]
    pairs_interleaved = [(0, 1), (2, 3), (4, 5), (6, 7)]
    for interleaved, pairs in ((False, pairs_half), (True, pairs_interleaved)):
        out = reference.rope(x, [3], frequencies, interleaved=interleaved)
        for (a, b), frequency in zip(pairs, frequencies, strict=True):
            turned = complex(x[0, 0, a], x[0, 0, b]) * np.exp(3j * frequency)
            assert complex(out[0, 0, a], out[0, 0, b]) == pytest.approx(turned)


def test_rope_scores_depend_on_distance_alone() -> None:
    q, k = reference.random_tensor("q.bias", (2, 1, 3, 16), 1)
    frequencies = reference.inv_freq(16, 10000.0)
    scores = [
        np.sum(reference.rope(q, [p + 5], frequencies) * reference.rope(k, [p], frequencies)) for p in (0, 7, 1000)
    ]
    assert scores[1:] == pytest.approx([scores[0]] * 2)


def test_llama3_keeps_short_waves_and_slows_long_ones() -> None:
    scaling = RopeScaling(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    plain, scaled = reference.inv_freq(128, 5e5), reference.inv_freq(128, 5e5, scaling)
    wavelength = 2 * math.pi / plain
    short, long = wavelength < 8192 / 4, wavelength > 8192
    assert short.any() and long.any() and not (short | long).all()
    assert (scaled[short] == plain[short]).all()
    assert scaled[long] == pytest.approx(plain[long] / 8)
    between = ~short & ~long
    assert ((scaled[between] < plain[between]) & (scaled[between] > plain[between] / 8)).all()


def test_llama3_as_gguf_factors() -> None:
    scaling = RopeScaling(
        "llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    wanted = reference.inv_freq(64, 5e5, scaling)
    factors = RopeScaling("factors", factors=tuple(reference.inv_freq(64, 5e5) / wanted))
    assert reference.inv_freq(64, 5e5, factors) == pytest.approx(wanted, rel=1e-15)


def test_reference_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="dynamic"):
        reference.inv_freq(16, 10000.0, SimpleNamespace(kind="dynamic"))


def test_attention_sees_only_the_window() -> None:
    q, k, v = reference.random_tensor("qkv.bias", (3, 9, 2, 6), 2)
    for window in (1, 4, 9, 100):
        out = reference.attention(q, k, v, range(9), window)
        for position in range(9):
            seen = slice(max(0, position - window + 1), position + 1)
            last = reference.attention(q[position : position + 1], k[seen], v[seen], [position - seen.start])
            assert out[position] == pytest.approx(last[0], rel=1e-12)
    assert (reference.attention(q, k, v, range(9), 100) == reference.attention(q, k, v, range(9))).all()
    assert reference.attention(q, k, v, range(9), 1) == pytest.approx(v, rel=1e-12)


def test_query_heads_share_neighbouring_key_heads() -> None:
    q = reference.random_tensor("q.bias", (4, 6, 8), 3)
    k, v = reference.random_tensor("kv.bias", (2, 4, 2, 8), 3)
    grouped = reference.attention(q, k, v, range(4))
    for head in range(6):
        alone = reference.attention(
            q[:, head : head + 1], k[:, head // 3 : head // 3 + 1], v[:, head // 3 : head // 3 + 1], range(4)
        )
        assert grouped[:, head] == pytest.approx(alone[:, 0], rel=1e-12)


def test_extremes_stay_finite() -> None:
    assert reference.silu(np.array([-1e4, -800.0, 0.0, 800.0])) == pytest.approx([0.0, 0.0, 0.0, 800.0])
    assert reference.softmax(np.array([1e5, 1e5, -np.inf])) == pytest.approx([0.5, 0.5, 0.0])
    assert reference.rmsnorm(np.array([3.0, 4.0]), np.array([1.0, 2.0]), 0.0) == pytest.approx(
        [3 / math.sqrt(12.5), 8 / math.sqrt(12.5)]
    )


def test_seeded_weights_never_change() -> None:
    """Golden vectors hold only a seed: these bits are a promise to them."""
    weights = reference.random_tensor("model.layers.0.self_attn.q_proj.weight", (3, 4), 7)
    assert weights.dtype == np.float32
    assert (weights.view(np.uint32) >> 16).ravel().tolist() == [
        48982,
        16144,
        48924,
        16132,
        48849,
        15999,
        49027,
        48290,
        15942,
        48934,
        15815,
        48944,
    ]
    assert not (weights.view(np.uint32) & 0xFFFF).any(), "not exact in bfloat16"
    many = reference.random_tensor("x.bias", (100000,), 0) / np.float32(0.25)
    assert abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02
