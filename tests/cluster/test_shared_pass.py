"""A pass over shares of a model has the bits of one process: every family, any number of ranks, any shares."""

import numpy as np
import pytest
import tiny
from thread_ranks import run_ranks

from pyllama import _kernels as kernels
from pyllama.checkpoint import open_checkpoint
from pyllama.cluster.gathering import PeerFailedError
from pyllama.decoder import Decoder
from pyllama.packing import pack
from pyllama.streaming import StreamedWeights
from pyllama.streaming.local import LocalCheckpoint

#: Those that boards share: no mixtures, no states, no layers that differ.
DENSE = [family for family in tiny.FAMILIES if family not in (*tiny.MIXTURES, *tiny.RECURRENT, *tiny.GEMMA4)]
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


@pytest.fixture(scope="module", params=DENSE)
def family(request, tmp_path_factory):
    return tiny.write_random(tmp_path_factory.mktemp(request.param), 1, model_type=request.param)


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
