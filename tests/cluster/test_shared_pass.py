"""A pass over shares of a model has the bits of one process: every family, any number of ranks, any shares."""

import numpy as np
import pytest
import tiny
from golden import load_case, stored_weights
from thread_ranks import run_ranks

from pyllama import _kernels as kernels
from pyllama.checkpoint import open_checkpoint
from pyllama.cluster.gathering import PeerFailedError
from pyllama.decoder import Decoder
from pyllama.packing import pack
from pyllama.streaming import StreamedWeights
from pyllama.streaming.local import LocalCheckpoint

MODELS = {family: {"model_type": family} for family in tiny.FAMILIES} | {"gemma4 mixture": tiny.GEMMA4_MIXTURE}
SHARES = {
    "1": [1],
    "2": [1, 1],
    "3": [1, 1, 1],
    "5": [1] * 5,
    "7": [1] * 7,
    "3 unequal": [1, 0.1, 0.4],
    "2 unequal": [0.1, 1],
    "5 unequal": [0.3, 1, 0.1, 0.7, 1],
}


@pytest.fixture(autouse=True)
def one_thread():
    """Each rank is a thread: with more of them each, they wait for each other."""
    before = kernels.num_threads()
    kernels.set_num_threads(1)
    yield
    kernels.set_num_threads(before)


def passes(decoder):
    """Logits of a prompt, of single tokens, of a batch with a fork, and hidden states."""
    first, second = decoder.new_sequence(), decoder.new_sequence()
    found = [decoder.extend([(first, list(range(3, 40)))], [37])[0]]
    found += [decoder.extend([(first, [token])], [1])[0] for token in (5, 100)]
    branch = first.fork()
    batch = [(first, [1, 2]), (second, list(range(50, 59))), (branch, [1, 3])]
    found.append(decoder.extend(batch, [2, 1, 2])[0])
    found.append(decoder.extend([(second, [7, 8])], [0])[0])
    found.append(decoder.extend([(second, [7, 8])], [2], hidden=True)[0])
    return found


def decoder_of(checkpoint, ranks=None, kv_dtype="f16", **options):
    local = checkpoint if ranks is None else LocalCheckpoint(checkpoint, ranks.share)
    return Decoder(
        checkpoint.config,
        StreamedWeights(local, **options),
        context_length=128,
        kv_dtype=kv_dtype,
        rope_interleaved=checkpoint.rope_interleaved,
        ranks=ranks,
    )


def check(path, shares, kv_dtype="f16", **options):
    with open_checkpoint(path) as checkpoint:
        alone = decoder_of(checkpoint, kv_dtype=kv_dtype)
        expected = passes(alone)
        alone.weights.close()

        def work(ranks):
            decoder = decoder_of(checkpoint, ranks, kv_dtype, **options)
            try:
                return passes(decoder)
            finally:
                decoder.weights.close()

        results = run_ranks(checkpoint.config, shares, work)
        errors = [result for result in results if isinstance(result, BaseException)]
        for error in sorted(errors, key=lambda error: isinstance(error, PeerFailedError)):
            raise error
        for ours, whole in zip(results[0], expected, strict=True):
            assert np.array_equal(ours.view(np.uint32), whole.view(np.uint32))


@pytest.fixture(scope="module", params=MODELS)
def family(request, tmp_path_factory):
    return tiny.write_random(tmp_path_factory.mktemp("model"), 1, **MODELS[request.param])


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_bits_of_one_process(family, shares):
    check(family, shares)


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_more_panels_than_one(tmp_path, shares):
    sizes = {"hidden_size": 200, "intermediate_size": 328, "head_dim": 40, "num_attention_heads": 8}
    folder = tiny.write_random(tmp_path / "m", 1, num_key_value_heads=2, vocab_size=333, **sizes)
    check(folder, shares, kv_dtype="f32")
    check(folder, shares, pinned_nbytes=20_000, room=4096, slots=3)


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_packed_files(tmp_path, shares):
    sizes = {"hidden_size": 200, "intermediate_size": 328, "head_dim": 40, "num_attention_heads": 8}
    folder = tiny.write_random(tmp_path / "m", 1, num_key_value_heads=2, vocab_size=333, attention_bias=True, **sizes)
    packed = tmp_path / "packed"
    pack(folder, packed)
    check(packed, shares)
    check(packed, shares, pinned_nbytes=20_000, room=4096, slots=3)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q6_K", "Q4_0"])
def test_quantized_files(tmp_path, kind):
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 32, "num_attention_heads": 8}
    config = tiny.tiny_config(num_key_value_heads=4, vocab_size=333, **sizes)
    tiny.write_gguf(tmp_path / "m.gguf", config, tiny.random_tensors(config), kind)
    for shares in SHARES.values():
        check(tmp_path / "m.gguf", shares, pinned_nbytes=20_000)
        check(tmp_path / "m.gguf", shares)


FEW_SLOTS = {"expert_slots": 4, "pinned_nbytes": 0, "room": 4096, "slots": 3}
PIECES = FEW_SLOTS | {"expert_room": 0}


@pytest.mark.parametrize("family", tiny.MIXTURES)
@pytest.mark.parametrize("shares", [SHARES["2"], SHARES["3 unequal"], SHARES["7"]], ids=["2", "3 unequal", "7"])
def test_experts_of_several_panels_through_pools_of_any_size(tmp_path, family, shares):
    sizes = {"hidden_size": 96, "moe_intermediate_size": 130, "intermediate_size": 130}
    folder = tiny.write_random(tmp_path / "m", 1, model_type=family, **sizes)
    packed = tmp_path / "packed"
    pack(folder, packed)
    for model in (folder, packed):
        for options in ({}, FEW_SLOTS, PIECES):
            check(model, shares, **options)


@pytest.mark.parametrize("family", ["qwen3_moe", "lfm2"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_quantized_files_of_other_layers(tmp_path, family, kind):
    sizes = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32, "num_attention_heads": 4}
    config = tiny.tiny_config(model_type=family, num_key_value_heads=2, moe_intermediate_size=96, **sizes)
    tiny.write_gguf(tmp_path / "m.gguf", config, tiny.random_tensors(config), kind)
    for name in ("2", "3 unequal", "7"):
        check(tmp_path / "m.gguf", SHARES[name])
        check(tmp_path / "m.gguf", SHARES[name], **PIECES)


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_value_heads_that_take_turns(tmp_path, shares):
    """A rank's rows then lie apart, as they do in GGUF files of Qwen3.5."""
    more = {"linear_num_key_heads": 4, "linear_num_value_heads": 12}
    for overrides in ({}, more):
        config = tiny.tiny_config(model_type="qwen3_5_text", **overrides)
        tiny.write_gguf(tmp_path / "m.gguf", config, tiny.random_tensors(config))
        check(tmp_path / "m.gguf", shares)
        check(tmp_path / "m.gguf", shares, pinned_nbytes=5_000, room=4096, slots=3)


@pytest.mark.parametrize("family", ["lfm2", "qwen3_5_text", "gemma4_text"])
def test_packed_files_of_rows_that_lie_apart(tmp_path, family):
    folder = tiny.write_random(tmp_path / "m", 1, model_type=family)
    packed = tmp_path / "packed"
    pack(folder, packed)
    for shares in SHARES.values():
        check(packed, shares)


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_gates_that_take_turns_with_ups(tmp_path, shares):
    """gpt-oss as published: a row of gate_proj, a row of up_proj, their scales elsewhere; and the same packed."""
    golden = load_case("gpt_oss_mxfp4")
    folder = tmp_path / "m"
    tiny.write_huggingface(folder, golden.huggingface, stored_weights(golden.config, golden.seed))
    packed = tmp_path / "packed"
    pack(folder, packed)
    for model in (folder, packed):
        check(model, shares)
        check(model, shares, **PIECES)
