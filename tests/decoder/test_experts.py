"""Mixtures of experts: the router exactly, the same bits from every form, budget, cut and company, and its errors."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import reference
import tiny

from pyllama import _kernels as kernels
from pyllama.checkpoint import open_checkpoint
from pyllama.decoder import Decoder
from pyllama.errors import CheckpointError, PyllamaError, UnsupportedError
from pyllama.packing.pack import pack
from pyllama.quantizing import quantize
from pyllama.streaming import StreamedWeights
from pyllama.streaming.experts import LEAST_SLOTS

IDS = [1, *((7 * i * i + 3 * i) % 101 for i in range(40))]
FAMILIES = tiny.MIXTURES


def same_bits(a, b):
    return a.shape == b.shape and bool((a.view(np.uint32) == b.view(np.uint32)).all())


def run(path, ids=IDS, steps=(), **options):
    """Logits of all ids, in one pass or cut after each of `steps`, and what was counted."""
    with open_checkpoint(path) as checkpoint:
        weights = StreamedWeights(checkpoint, **options)
        try:
            decoder = Decoder(
                checkpoint.config, weights, context_length=64, rope_interleaved=checkpoint.rope_interleaved
            )
            cuts = [0, *steps, len(ids)]
            with decoder.new_sequence() as sequence:
                parts = [decoder.forward([(sequence, ids[a:b])], "all") for a, b in pairwise(cuts)]
            return np.concatenate(parts), weights.expert_counters
        finally:
            weights.close()


def config_of(kind):
    """As many key heads as value heads: those of a GGUF file are in no other order then."""
    heads = {"linear_num_key_heads": 6} if kind == "qwen3_5_moe_text" else {}
    return tiny.tiny_config(model_type=kind, num_hidden_layers=3, **heads)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The same weights, exact in bfloat16, in every form."""
    root = tmp_path_factory.mktemp("mixtures")
    for kind in FAMILIES:
        config = config_of(kind)
        tensors = tiny.random_tensors(config, seed=3)
        names = {"mixtral": tiny.as_mixtral, "granitemoe": tiny.as_granitemoe}.get(kind, dict)
        tiny.write_huggingface(root / kind, config, names(tensors), shards=3)
        stacks = tiny.as_stacks(tensors)
        tiny.write_huggingface(root / f"{kind}-stacks", config, as_class(stacks) if kind == "granitemoe" else stacks)
        tiny.write_gguf(root / f"{kind}.gguf", config, tensors, dtype="BF16")
        pack(root / kind, root / f"{kind}-packed")
        pack(root / f"{kind}.gguf", root / f"{kind}-gguf-packed")
    wide = tiny.tiny_config(model_type="qwen3_moe", hidden_size=256, intermediate_size=256, moe_intermediate_size=256)
    tiny.write_huggingface(root / "wide", wide, tiny.random_tensors(wide, seed=4))
    return root


def as_class(stacks):
    """Under the names that Granite's class in transformers 5 has."""
    names = zip(reference.expert_names("qwen3_moe"), reference.expert_names("granitemoe"), strict=True)
    for ours, theirs in list(names):
        stacks = {name.replace(ours, theirs): values for name, values in stacks.items()}
    return stacks


def forms(kind):
    return [f"{kind}-stacks", f"{kind}.gguf", f"{kind}-packed", f"{kind}-gguf-packed"]


# ------------------------------------------------------------------------------------------------ the router


@pytest.mark.parametrize("isa", kernels.supported_isas())
@pytest.mark.parametrize("of_chosen", [False, True])
def test_router_is_the_reference_and_the_same_bits_on_every_isa(isa, of_chosen):
    logits = np.random.default_rng(1).standard_normal((11, 37)).astype(np.float32) * 3
    ids, weights = np.full((11, 5), -1, np.int32), np.full((11, 5), np.nan, np.float32)
    before = kernels.isa()
    try:
        kernels.set_isa("scalar")
        kernels.route(logits, ids.copy(), expected := weights.copy(), of_chosen)
        kernels.set_isa(isa)
        kernels.route(logits, ids, weights, of_chosen)
    finally:
        kernels.set_isa(before)
    wanted, exact = reference.route(logits, 5, of_chosen)
    assert (ids == wanted).all()
    assert same_bits(weights, expected)
    assert np.abs(weights - exact).max() < 4 * np.sqrt(37) * 2.0**-24


@pytest.mark.parametrize("isa", kernels.supported_isas())
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_router_by_sigmoids_is_the_reference_and_the_same_bits_on_every_isa(isa, normed, biased):
    random = np.random.default_rng(2)
    logits = random.standard_normal((11, 37)).astype(np.float32) * 3
    bias = random.standard_normal(37).astype(np.float32) * np.float32(0.3) if biased else None
    ids, weights = np.full((11, 5), -1, np.int32), np.full((11, 5), np.nan, np.float32)
    before = kernels.isa()
    try:
        kernels.set_isa("scalar")
        kernels.route_sigmoid(logits, bias, ids.copy(), expected := weights.copy(), normed, 1.25)
        kernels.set_isa(isa)
        kernels.route_sigmoid(logits, bias, ids, weights, normed, 1.25)
    finally:
        kernels.set_isa(before)
    wanted, exact = reference.route_sigmoid(logits, bias, 5, normed, 1.25)
    assert (ids == wanted).all()
    assert same_bits(weights, expected)
    assert np.abs(weights - exact).max() < 8 * 2.0**-24 * exact.max()


def test_equal_sigmoids_go_to_the_lower_number_and_what_is_no_number_last():
    logits = np.array([[0, 0, 0, 0], [np.nan, 200, -200, np.nan]], np.float32)
    ids, weights = np.empty((2, 2), np.int32), np.empty((2, 2), np.float32)
    kernels.route_sigmoid(logits, np.array([0, 1, 0, 1], np.float32), ids, weights, False, 2.0)
    assert ids.tolist() == [[1, 3], [1, 2]] and weights.tolist()[0] == [1.0, 1.0]
    assert weights[1, 0] == 2.0 and 0 <= weights[1, 1] < 1e-30
    kernels.route_sigmoid(logits, None, ids, weights, True, 1.0)
    assert ids.tolist() == [[0, 1], [1, 2]]
    assert np.isfinite(weights).all() and weights[1, 0] == np.float32(1) / np.float32(1 + 1e-6)
    ids, weights = np.empty((2, 4), np.int32), np.empty((2, 4), np.float32)
    kernels.route_sigmoid(logits, None, ids, weights, True, 1.0)
    assert np.isnan(weights[1]).all() and np.isfinite(weights[0]).all()


def test_equal_logits_go_to_the_lower_number():
    logits = np.array([[2, 5, 5, 1, 5, 2], [0, 0, 0, 0, 0, 0], [-1, 7, -1, -1, 3, -1]], np.float32)
    ids, weights = np.empty((3, 3), np.int32), np.empty((3, 3), np.float32)
    kernels.route(logits, ids, weights, True)
    assert ids.tolist() == [[1, 2, 4], [0, 1, 2], [0, 1, 4]]
    assert weights[1].tolist() == [np.float32(1) / np.float32(3)] * 3
    one = np.empty((3, 1), np.int32)
    kernels.route(logits, one, np.empty((3, 1), np.float32), False)
    assert one.ravel().tolist() == [1, 0, 1]


def test_a_logit_that_is_no_number_is_chosen_last_and_told():
    logits = np.array([[np.nan, 1, np.nan, 0, -np.inf]], np.float32)
    ids, weights = np.empty((1, 3), np.int32), np.empty((1, 3), np.float32)
    kernels.route(logits, ids, weights, True)
    assert ids.tolist() == [[1, 3, 4]] and np.isfinite(weights).all()
    kernels.route(logits, ids, weights, False)
    assert np.isnan(weights).all()
    ids, weights = np.empty((1, 5), np.int32), np.empty((1, 5), np.float32)
    kernels.route(logits, ids, weights, True)
    assert ids.tolist() == [[0, 1, 2, 3, 4]] and np.isnan(weights).all()


@pytest.mark.parametrize("isa", kernels.supported_isas())
@pytest.mark.parametrize("cols", [1, 7, 32, 45])
@pytest.mark.parametrize("threads", [1, 3])
def test_mix_is_a_chain_in_ascending_order(isa, cols, threads):
    random = np.random.default_rng(cols)
    y = random.standard_normal((12, cols)).astype(np.float32)
    rows = np.stack([random.permutation(12)[:3] for _ in range(4)]).astype(np.int32)
    weights = random.random((4, 3)).astype(np.float32)
    expected = np.zeros((4, cols))
    for i in range(3):  # a product of two float32 is exact in float64, and so is one more rounding of the sum
        expected = (weights[:, i : i + 1].astype(np.float64) * y[rows[:, i]] + expected).astype(np.float32)
    out = np.full((4, cols), np.nan, np.float32)
    before, count = kernels.isa(), kernels.num_threads()
    try:
        kernels.set_isa(isa)
        kernels.set_num_threads(threads)
        kernels.mix(y, rows, weights, out)
    finally:
        kernels.set_isa(before)
        kernels.set_num_threads(count)
    assert np.abs(out - expected).max() <= 2.0**-23 * np.abs(expected).max()
    whole, made = np.arange(36, dtype=np.float32).reshape(12, 3), np.full((1, 3), np.nan, np.float32)
    kernels.mix(whole, np.array([[2, 5, 11]], np.int32), np.array([[1, 2, 4]], np.float32), made)
    assert made.tolist() == [(whole[2] + 2 * whole[5] + 4 * whole[11]).tolist()]


def test_shapes_that_do_not_agree_are_refused():
    logits = np.zeros((2, 4), np.float32)
    for ids, weights in (((2, 5), (2, 5)), ((1, 2), (1, 2)), ((2, 2), (2, 3)), ((2, 0), (2, 0))):
        with pytest.raises(PyllamaError, match="route"):
            kernels.route(logits, np.empty(ids, np.int32), np.empty(weights, np.float32), True)
        with pytest.raises(PyllamaError, match="route_sigmoid"):
            kernels.route_sigmoid(logits, None, np.empty(ids, np.int32), np.empty(weights, np.float32), True, 1.0)
    with pytest.raises(PyllamaError, match="route_sigmoid.*bias 3"):
        of = np.empty((2, 2), np.int32), np.empty((2, 2), np.float32)
        kernels.route_sigmoid(logits, np.zeros(3, np.float32), *of, True, 1.0)
    weights = np.ones((1, 2), np.float32)
    for rows in ([[0, 4]], [[-1, 0]], [[0, 1, 2]]):
        with pytest.raises(PyllamaError, match="mix"):
            kernels.mix(logits.reshape(4, 2), np.array(rows, np.int32), weights, np.empty((1, 2), np.float32))


# ------------------------------------------------------------------------------------------------ the same bits


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_form_of_file_gives_the_reference(models, kind):
    with open_checkpoint(models / kind) as checkpoint:
        stacks = tiny.as_stacks(tiny.random_tensors(config_of(kind), seed=3))
        if kind == "granitemoe":
            stacks = as_class(stacks)
        exact = reference.forward(checkpoint.config, stacks, IDS)
    logits, _ = run(models / kind)
    assert np.abs(logits - exact).max() <= 1e-3 * np.abs(exact).max()  # keys and values are float16
    found = {form: run(models / form)[0] for form in forms(kind)}
    for form, made in found.items():
        if kind == "qwen3_5_moe_text" and "gguf" in form:  # whose rates of decay, exp(A_log), are rounded by the writer
            assert np.abs(made - logits).max() <= 1e-5 * np.abs(logits).max()
        else:
            assert same_bits(made, logits), form
    assert same_bits(found[f"{kind}.gguf"], found[f"{kind}-gguf-packed"])


@pytest.mark.parametrize("kind", FAMILIES)
def test_no_cut_into_passes_changes_a_bit(models, kind):
    whole, _ = run(models / kind)
    assert same_bits(run(models / kind, steps=range(1, len(IDS)))[0], whole)
    assert same_bits(run(models / kind, steps=(5, 6, 30))[0], whole)


@pytest.mark.parametrize("form", ["qwen3_moe", "qwen3_moe-packed", "mixtral.gguf", "mixtral-stacks", "wide"])
def test_no_budget_changes_a_bit(models, form):
    whole, counted = run(models / form, steps=range(20, 40))
    assert counted.hits > 0
    for slots in (LEAST_SLOTS, LEAST_SLOTS + 1, 9, 1000):
        for room in (0, 20_000, 1 << 40):
            for rest in ({}, {"pinned_nbytes": 0, "slots": 3, "room": 0}):
                got, seen = run(models / form, steps=range(20, 40), expert_slots=slots, expert_room=room, **rest)
                assert same_bits(got, whole), (slots, room)
                assert seen.asked == counted.asked and seen.hits <= counted.hits


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("isa", kernels.supported_isas())
def test_no_thread_or_instruction_set_changes_a_bit(models, isa, threads):
    before, count = kernels.isa(), kernels.num_threads()
    expected, _ = run(models / "qwen3_moe", steps=(39,))
    try:
        kernels.set_isa(isa)
        kernels.set_num_threads(threads)
        assert same_bits(run(models / "qwen3_moe", steps=(39,), expert_slots=5)[0], expected)
    finally:
        kernels.set_isa(before)
        kernels.set_num_threads(count)


@pytest.mark.parametrize("dtype", ["Q8_0", "Q4_0", "F16", "MXFP4"])
def test_quantized_experts_in_any_budget(tmp_path, dtype):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 64, "head_dim": 16}
    config = tiny.tiny_config(model_type="qwen3_moe", **sizes)
    path = tiny.write_gguf(tmp_path / "m.gguf", config, tiny.random_tensors(config, seed=5), dtype=dtype)
    whole, _ = run(path)
    for options in ({"expert_slots": 4}, {"expert_slots": 5, "expert_room": 0}):
        assert same_bits(run(path, steps=range(1, 41), **options)[0], whole)


def test_sequences_that_share_a_pass_get_the_bits_of_one_each(models):
    with open_checkpoint(models / "qwen3_moe") as checkpoint:
        weights = StreamedWeights(checkpoint, expert_slots=4)
        decoder = Decoder(checkpoint.config, weights, context_length=64)
        texts = [IDS[:9], IDS[5:30], IDS[20:21]]
        alone = []
        for ids in texts:
            with decoder.new_sequence() as sequence:
                alone.append(decoder.forward([(sequence, ids)], "all"))
        sequences = [decoder.new_sequence() for _ in texts]
        together = decoder.forward(list(zip(sequences, texts, strict=True)), "all")
        weights.close()
    assert same_bits(together, np.concatenate(alone))


# ------------------------------------------------------------------------------------------------ who is asked


def routed(root, scale):
    """A model whose router's rows are scaled, and the experts that its tokens go to."""
    config = tiny.tiny_config(model_type="qwen3_moe", num_experts=6, num_experts_per_tok=2, num_hidden_layers=1)
    tensors = tiny.random_tensors(config, seed=6)
    router = tensors["model.layers.0.mlp.gate.weight"]
    router *= scale
    return config, tensors, tiny.write_huggingface(root, config, tensors)


def test_experts_that_are_never_chosen_are_never_read(tmp_path):
    scale = np.ones((6, 1), np.float32)
    scale[[1, 4]] = 0  # their logit is 0, and four of the others' are seldom below that all at once
    config, tensors, path = routed(tmp_path / "m", scale)
    logits, counted = run(path)
    width, hidden = config["moe_intermediate_size"], config["hidden_size"]
    one = 3 * width * hidden * 2
    assert counted.asked <= 6 and counted.nbytes == counted.asked * one
    exact = reference.forward(open_config(path), tiny.as_stacks(tensors), IDS)
    assert np.abs(logits - exact).max() <= 1e-3 * np.abs(exact).max()


def open_config(path):
    with open_checkpoint(path) as checkpoint:
        return checkpoint.config


def test_a_router_that_ties_goes_to_the_lower_numbers(tmp_path):
    config, tensors, path = routed(tmp_path / "m", np.zeros((6, 1), np.float32))
    logits, counted = run(path)
    assert counted.asked == 2  # experts 0 and 1, once each, for all tokens
    for j in (2, 3, 4, 5):
        for part in ("gate", "up", "down"):
            tensors[f"model.layers.0.mlp.experts.{j}.{part}_proj.weight"][:] = 0
    other = tiny.write_huggingface(tmp_path / "other", config, tensors)
    assert same_bits(run(other)[0], logits)
    exact = reference.forward(open_config(path), tiny.as_stacks(tensors), IDS)
    assert np.abs(logits - exact).max() <= 1e-3 * np.abs(exact).max()


def test_a_prompt_needs_each_expert_once_a_layer(models):
    _, counted = run(models / "qwen3_moe", expert_slots=LEAST_SLOTS)
    assert counted.asked == 3 * 7  # all of them, of each layer
    _, counted = run(models / "qwen3_moe", steps=range(1, len(IDS)), expert_slots=LEAST_SLOTS)
    assert counted.asked == 3 * 3 * len(IDS)


# ------------------------------------------------------------------------------------------------ errors


def test_damage_in_an_expert_is_told_by_its_name(models, tmp_path):
    pack(models / "wide", tmp_path / "packed")
    with open_checkpoint(tmp_path / "packed") as checkpoint:
        block = checkpoint.tensors["model.layers.1.mlp.experts.3.up_proj.weight"].blocks[0]
    data = bytearray(Path(block.file).read_bytes())
    data[block.offset + block.nbytes // 2] ^= 1
    Path(block.file).write_bytes(data)
    for room in (1 << 40, 0):
        with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.3\.up_proj.*damaged"):
            run(tmp_path / "packed", expert_room=room)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_experts_per_tok": 8}, "num_experts_per_tok: got 8, expected at most num_experts 7"),
        ({"num_experts": 0}, "num_experts"),
        ({"num_experts": 4096}, "num_experts"),
        ({"moe_intermediate_size": -1}, "moe_intermediate_size"),
        ({"mlp_only_layers": "all"}, "mlp_only_layers"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step"),
        ({"num_experts": 8}, "mlp.gate.weight: shape (7, 48), expected (8, 48)"),
        ({"num_experts": 6}, "experts.6"),
        ({"moe_intermediate_size": 48}, "expected"),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_one_line(models, tmp_path, change, message):
    config = tiny.tiny_config(model_type="qwen3_moe", num_hidden_layers=3)
    tensors = tiny.random_tensors(config, seed=3)
    path = tiny.write_huggingface(tmp_path / "m", config | change, tensors)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_stack_of_more_or_fewer_experts_is_refused(tmp_path):
    config = tiny.tiny_config(model_type="qwen3_moe")
    for count in (6, 8, 1):
        stacks = tiny.as_stacks(tiny.random_tensors(config | {"num_experts": count, "num_experts_per_tok": 1}))
        path = tiny.write_huggingface(tmp_path / str(count), config, stacks)
        with pytest.raises(CheckpointError, match="expert|gate"):
            open_checkpoint(path)


def test_a_dense_model_with_experts_is_refused(tmp_path):
    config = tiny.tiny_config(model_type="qwen3")
    path = tiny.write_huggingface(tmp_path / "m", config | {"num_experts": 4}, tiny.random_tensors(config))
    with pytest.raises(UnsupportedError, match="mixture of experts"):
        open_checkpoint(path)


# ------------------------------------------------------------------------------------------------ quantizing


@pytest.mark.parametrize("source", ["wide", "wide-packed"])
def test_a_quantized_mixture_is_each_expert_quantized(models, tmp_path, source):
    if source == "wide-packed":
        pack(models / "wide", tmp_path / source)
    path = tmp_path / source if source == "wide-packed" else models / source
    made = quantize(path, tmp_path / "m.gguf", "q8_0")
    with open_checkpoint(models / "wide") as before, open_checkpoint(made) as after:
        assert after.config.mixture == before.config.mixture
        for name in ("model.layers.0.mlp.experts.5.down_proj.weight", "model.layers.1.mlp.experts.0.gate_proj.weight"):
            ours, theirs = before.tensors[name], after.tensors[name]
            assert theirs.dtype == "Q8_0"
            raw = tiny.decode_plain("BF16", before.read_rows(ours, 0, ours.rows).tobytes()).reshape(ours.shape)
            expected = np.empty(theirs.nbytes, np.uint8)
            kernels.quantize("Q8_0", raw, None, expected)
            assert (after.read_rows(theirs, 0, theirs.rows).reshape(-1) == expected).all()
        assert after.tensors["model.layers.0.mlp.gate.weight"].dtype == "F32"
