"""Streaming: the same bits from any budget, and a clear error for whatever a disk can do."""

import gc
import os
import threading

import numpy as np
import pytest
import tiny

from pyllama import _kernels as kernels
from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.huggingface_config import huggingface_config
from pyllama.checkpoint.outline import outline
from pyllama.decoder import Decoder, Shape
from pyllama.decoder.page_pool import cache_nbytes
from pyllama.errors import BudgetError, CheckpointError
from pyllama.planning.memory import INTERPRETER, LEAST_SLOTS, make_plan
from pyllama.streaming import StreamedWeights, blocks, direct, ring

IDS = [1, *((7 * i * i + 3 * i) % 101 for i in range(40))]
SIZES = {"hidden_size": 192, "intermediate_size": 320, "head_dim": 32, "num_key_value_heads": 2, "vocab_size": 102}


def same_bits(a, b):
    return a.shape == b.shape and bool((a.view(np.uint32) == b.view(np.uint32)).all())


def decoder_of(checkpoint, weights):
    return Decoder(checkpoint.config, weights, context_length=128, rope_interleaved=checkpoint.rope_interleaved)


def logits_of(path, **options):
    """Logits of a prompt and of three single tokens: four passes."""
    with open_checkpoint(path) as checkpoint:
        weights = StreamedWeights(checkpoint, **options)
        try:
            decoder = decoder_of(checkpoint, weights)
            with decoder.new_sequence() as sequence:
                parts = [decoder.forward([(sequence, IDS[:38])], "all")]
                parts += [decoder.forward([(sequence, [i])]) for i in IDS[38:]]
            return np.concatenate(parts)
        finally:
            weights.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    config = tiny.tiny_config(**SIZES)
    tensors = tiny.random_tensors(config, seed=4)
    tiny.write_huggingface(root / "hf", config, tensors, dtype="BF16", shards=2)
    tiny.write_huggingface(root / "f16", config, tensors, dtype="F16")
    (root / "split").mkdir()
    tiny.write_gguf(root / "split/bf16.gguf", config, tensors, dtype="BF16", split=3)
    tiny.write_gguf(root / "q8.gguf", config, tensors, dtype="Q8_0")
    tiny.write_meta(root / "meta", config, tensors, shards=2)
    tied = tiny.tiny_config(**SIZES, tie_word_embeddings=True)
    tiny.write_huggingface(root / "tied", tied, tiny.random_tensors(tied, seed=5), dtype="BF16")
    return root


FORMS = ("hf", "f16", "split", "q8.gguf", "meta", "tied")


@pytest.mark.parametrize("form", FORMS)
def test_no_budget_changes_a_bit(models, form):
    expected = logits_of(models / form)
    with open_checkpoint(models / form) as checkpoint:
        total = checkpoint.nbytes
    for pinned in (0, 1, 40_000, total // 3, total // 2, total * 3 // 4, total, 3 * total):
        for slots, room in ((3, 0), (5, 100_000), (8, 4 << 20)):
            got = logits_of(models / form, slots=slots, room=room, pinned_nbytes=pinned)
            assert same_bits(got, expected), (pinned, slots)


def test_what_is_dropped_without_being_closed_keeps_no_file_open(models):
    def opened():
        return len(os.listdir("/proc/self/fd"))

    gc.collect()
    before = opened()
    weights = StreamedWeights(open_checkpoint(models / "hf"))
    assert opened() > before
    del weights
    gc.collect()
    assert opened() == before


@pytest.mark.parametrize("form", FORMS)
def test_with_room_for_all_nothing_is_read_after_the_first_pass(models, form):
    before = set(threading.enumerate())
    with open_checkpoint(models / form) as checkpoint:
        weights = StreamedWeights(checkpoint)
        decoder = decoder_of(checkpoint, weights)
        with decoder.new_sequence() as sequence:
            decoder.forward([(sequence, [1])])
            stored = sum(t.nbytes for _, t in blocks.matrices(checkpoint))
            once = weights._read_nbytes
            assert once == stored
            assert weights.nbytes_streamed == 0
            decoder.forward([(sequence, [2])])
            assert weights._read_nbytes == once
            names = [f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkv"]
            whole = weights.resident(*names)
            assert whole.rows == tuple(checkpoint.tensors[name].rows for name in names)
            assert weights.resident(*names) is whole
            # The readers have gone, and the ring with them; those of other tests may still be there.
            left = set(threading.enumerate()) - before
            assert not [thread for thread in left if thread.name.startswith("pyllama-")]
        weights.close()


def test_what_is_pinned_is_read_once_and_the_rest_every_pass(models):
    with open_checkpoint(models / "f16") as checkpoint:  # float16 does not pack: kept as large as stored
        total = sum(t.nbytes for _, t in blocks.matrices(checkpoint))
        weights = StreamedWeights(checkpoint, slots=3, room=0, pinned_nbytes=total // 2)
        decoder = decoder_of(checkpoint, weights)
        with decoder.new_sequence() as sequence:
            for i in range(4):
                decoder.forward([(sequence, [i])])
        weights.close()
        kept = total - weights.nbytes_streamed
        assert weights.resident("model.layers.0.mlp.down_proj.weight") is None
        assert 0.8 * total / 2 < kept <= total / 2
        # up to three slots may have been read ahead for a fifth pass
        assert total + 3 * weights.nbytes_streamed <= weights._read_nbytes <= total + 4 * weights.nbytes_streamed


@pytest.mark.parametrize("form", ["hf", "f16"])
@pytest.mark.parametrize("passes", [0, 1, 3])
def test_more_may_be_pinned_between_passes(models, form, passes):
    with open_checkpoint(models / form) as checkpoint:
        total = sum(t.nbytes for _, t in blocks.matrices(checkpoint))
        weights = StreamedWeights(checkpoint, slots=3, room=0, pinned_nbytes=total // 8)
        whole = StreamedWeights(checkpoint)
        decoder, other = decoder_of(checkpoint, weights), decoder_of(checkpoint, whole)
        with decoder.new_sequence() as sequence, other.new_sequence() as expected:
            for i in range(passes + 5):
                if i in (passes, passes + 2):
                    before = weights.nbytes_streamed
                    weights.pin_more(total // 8)
                    assert weights.nbytes_streamed < before
                assert same_bits(decoder.forward([(sequence, [i])]), other.forward([(expected, [i])]))
            left = weights.nbytes_streamed
            weights.pin_more(2 * total)
            for i in range(3):
                assert same_bits(decoder.forward([(sequence, [i])]), other.forward([(expected, [i])]))
        assert weights.nbytes_streamed == 0 < left
        assert weights.resident("model.layers.0.mlp.down_proj.weight") is not None
        assert weights.waited_s > 0
        weights.close()
        whole.close()


@pytest.mark.parametrize("form, files", [("hf", 2), ("split", 3), ("meta", 2), ("tied", 1)])
def test_each_file_is_opened_once_and_closed(models, form, files):
    """A board allows 1024 open files, and a 7B has 3,000 blocks."""
    with open_checkpoint(models / form) as checkpoint:
        before = len(os.listdir("/proc/self/fd"))
        weights = StreamedWeights(checkpoint, slots=3, room=0, pinned_nbytes=0)
        assert len(os.listdir("/proc/self/fd")) == before + files
        weights.close()
        assert len(os.listdir("/proc/self/fd")) == before


def test_pinned_blocks_are_spread_over_the_pass(models):
    with open_checkpoint(models / "f16") as checkpoint:
        weights = StreamedWeights(checkpoint, slots=3, room=0, pinned_nbytes=checkpoint.nbytes // 2)
        flags = [place.to_pin for place in weights._places]
        weights.close()
    runs = "".join("x" if flag else "." for flag in flags)
    assert flags.count(True) > len(flags) // 3 and "xxxxx" not in runs and "....." not in runs


def test_bfloat16_is_kept_in_twelve_bits(models):
    with open_checkpoint(models / "hf") as checkpoint:
        weights = StreamedWeights(checkpoint)
        decoder = decoder_of(checkpoint, weights)
        with decoder.new_sequence() as sequence:
            decoder.forward([(sequence, [1])])
        layouts = {place.matrix.layout for place in weights._places}
        assert layouts == {"packed"}
        weights.close()


def test_a_pass_given_up_leaves_the_next_one_whole(models):
    expected = logits_of(models / "hf")
    with open_checkpoint(models / "hf") as checkpoint:
        weights = StreamedWeights(checkpoint, slots=3, room=0, pinned_nbytes=checkpoint.nbytes // 3)
        decoder = decoder_of(checkpoint, weights)

        def give_up(layer):
            if layer == stop_at:
                raise KeyboardInterrupt

        decoder.on_layer = give_up
        with decoder.new_sequence() as sequence:
            for stop_at in (0, 1, 0, 1):
                with pytest.raises(KeyboardInterrupt):
                    decoder.forward([(sequence, IDS[:3])])
            stop_at = None
            assert same_bits(decoder.forward([(sequence, IDS[:38])], "all"), expected[:38])
            stop_at = 1
            with pytest.raises(KeyboardInterrupt):
                decoder.forward([(sequence, [5])])
            stop_at = None
            rest = [decoder.forward([(sequence, [i])]) for i in IDS[38:]]
        weights.close()
    assert same_bits(np.concatenate(rest), expected[38:])


def test_a_kernel_that_fails_inside_a_block_leaves_the_next_pass_whole(models, monkeypatch):
    expected = logits_of(models / "hf")
    with open_checkpoint(models / "hf") as checkpoint:
        weights = StreamedWeights(checkpoint, slots=3, room=0, pinned_nbytes=0)
        decoder = decoder_of(checkpoint, weights)
        good = kernels.matmul
        with decoder.new_sequence() as sequence:
            for fail_at in (1, 2, 9):
                calls = iter(range(1, 1000))

                def failing(*args, calls=calls, fail_at=fail_at):
                    if next(calls) == fail_at:
                        raise MemoryError
                    good(*args)

                monkeypatch.setattr("pyllama._kernels.matmul", failing)
                with pytest.raises(MemoryError):
                    decoder.forward([(sequence, [1])])
                monkeypatch.setattr("pyllama._kernels.matmul", good)
            assert same_bits(decoder.forward([(sequence, IDS[:38])], "all"), expected[:38])
        weights.close()


# ------------------------------------------------------------------------------------------------ what disks do


@pytest.fixture
def streamed(tmp_path):
    """A model of its own, streamed whole, that a test may damage."""
    config = tiny.tiny_config(**SIZES)
    tiny.write_huggingface(tmp_path, config, tiny.random_tensors(config, seed=6), dtype="BF16")
    checkpoint = open_checkpoint(tmp_path)
    weights = StreamedWeights(checkpoint, slots=3, room=0, pinned_nbytes=0)
    decoder = decoder_of(checkpoint, weights)
    yield decoder, tmp_path / "model.safetensors"
    weights.close()
    checkpoint.close()


def run(decoder):
    with decoder.new_sequence() as sequence:
        for _ in range(4):
            decoder.forward([(sequence, [1])])


def test_a_file_truncated_under_way_is_an_error(streamed):
    decoder, file = streamed
    run(decoder)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"model.safetensors: (changed|nothing)"):
        run(decoder)
    with pytest.raises(CheckpointError):  # and stays one
        run(decoder)


def test_a_file_changed_under_way_is_an_error(streamed):
    decoder, file = streamed
    run(decoder)
    with open(file, "r+b") as out:
        out.seek(-1, os.SEEK_END)
        out.write(b"x")
        out.flush()
        os.utime(file, ns=(1, 1))
    with pytest.raises(CheckpointError, match="changed while in use"):
        run(decoder)


def test_a_file_removed_under_way_is_read_on(streamed):
    decoder, file = streamed
    run(decoder)
    file.unlink()
    run(decoder)


@pytest.mark.parametrize("number, text", [(5, "input/output error"), (116, "stale file handle")])
def test_an_io_error_names_file_and_place(streamed, monkeypatch, number, text):
    decoder, file = streamed
    run(decoder)
    good, calls = os.preadv, iter(range(1000))

    def failing(fd, buffers, offset):
        if next(calls) == 4:
            raise OSError(number, os.strerror(number))
        return good(fd, buffers, offset)

    monkeypatch.setattr(direct.os, "preadv", failing)
    with pytest.raises(CheckpointError, match=rf"cannot read \d+ bytes at \d+ of .*model.safetensors: {text}"):
        run(decoder)
    monkeypatch.setattr(direct.os, "preadv", good)


def test_short_reads_are_continued(models, monkeypatch):
    expected = logits_of(models / "hf")
    good, rng, lock = os.preadv, np.random.default_rng(0), threading.Lock()

    def short(fd, buffers, offset):
        with lock:
            n = int(rng.integers(1, 9)) * 4096
        return good(fd, [buffers[0][:n]], offset)

    monkeypatch.setattr(direct.os, "preadv", short)
    assert same_bits(logits_of(models / "hf", slots=3, room=0, pinned_nbytes=0), expected)


def test_without_direct_io_reads_are_buffered(models, monkeypatch):
    expected = logits_of(models / "hf")
    good, good_open = os.preadv, os.open

    def no_direct(path, flags, *rest):
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return good_open(path, flags, *rest)

    monkeypatch.setattr(direct.os, "open", no_direct)
    assert same_bits(logits_of(models / "hf", slots=3, room=0, pinned_nbytes=0), expected)
    monkeypatch.setattr(direct.os, "open", good_open)

    def refused(fd, buffers, offset):
        import fcntl

        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return good(fd, buffers, offset)

    monkeypatch.setattr(direct.os, "preadv", refused)
    assert same_bits(logits_of(models / "hf", slots=3, room=0, pinned_nbytes=0), expected)


def test_a_reader_that_fails_is_reported_and_the_ring_stops():
    def fill(item, memory):
        if item == 5:
            raise CheckpointError("item 5")
        memory[:1] = item
        return memory[:1]

    items = iter(range(100))
    made = ring.Ring(3, 4096, lambda: next(items), fill)
    seen = []
    with pytest.raises(CheckpointError, match="item 5"):
        while True:
            item, memory = made.take()
            seen.append((item, int(memory[0])))
            made.give_back()
    made.close()
    assert seen == [(i, i) for i in range(len(seen))] and len(seen) <= 5


def test_the_ring_keeps_order_under_uneven_readers():
    import time

    def fill(item, memory):
        time.sleep(0.003 * (item % 3 == 0))
        memory[:1] = item % 251
        return memory[:1]

    items = iter(range(200))
    made = ring.Ring(4, 4096, lambda: next(items, None), fill)
    for i in range(200):
        item, memory = made.take()
        assert (item, memory[0]) == (i, i % 251)
        made.give_back()
    made.close()


# ------------------------------------------------------------------------------------------------------- budget


@pytest.mark.parametrize("form", FORMS)
def test_a_plan_never_exceeds_its_budget(models, form):
    with open_checkpoint(models / form) as checkpoint:
        least = None
        for megabytes in range(1, 140):
            try:
                plan = make_plan(checkpoint, megabytes << 20, context_length=100, interpreter=20 << 20)
            except BudgetError as error:
                assert least is None and "needs at least" in str(error)
                continue
            least = least or megabytes
            parts = plan.process + plan.cache + plan.activations + plan.ring + plan.pinned
            assert parts <= plan.budget and plan.pinned >= 0
            assert plan.cache == cache_nbytes(Shape.whole(checkpoint.config), 100, "f16")
            assert plan.slots >= LEAST_SLOTS and plan.max_pass_tokens >= 1
        assert least is not None
        assert plan.pinned == plan.weights and plan.streamed == 0


def test_the_ring_is_never_larger_than_a_layer(models):
    """But for what three slots of one panel take, which is more for the tiniest layers."""
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "head_dim": 64, "num_attention_heads": 9,
             "num_key_value_heads": 3, "vocab_size": 320}  # fmt: skip
    outlines = {"135m": 7_077_888, "7b": 404_750_336}
    for name, more in (("135m", sizes), ("7b", {"hidden_size": 4096, "intermediate_size": 11008, "head_dim": 128,
                                                "num_attention_heads": 32, "num_key_value_heads": 32})):  # fmt: skip
        config = huggingface_config(tiny.tiny_config(**more))
        model = outline(config, "BF16")
        layer = sum(t.nbytes for n, t in model.tensors.items() if ".layers.0." in n and len(t.shape) == 2)
        assert layer == outlines[name]
        for megabytes in (100, 200, 400, 3000, 30000):
            try:
                plan = make_plan(model, megabytes << 20, context_length=64)
            except BudgetError:
                continue
            assert plan.ring <= layer and plan.slots >= LEAST_SLOTS


def test_the_smallest_budget_named_is_the_smallest_that_works(models):
    """And works in the next process too, which may hold half a megabyte more before it plans."""
    with open_checkpoint(models / "hf") as checkpoint:
        with pytest.raises(BudgetError) as caught:
            make_plan(checkpoint, 1 << 20, context_length=100)
        named = int(str(caught.value).split("needs at least ")[1].split(" MB")[0]) * 1_000_000
        make_plan(checkpoint, named, context_length=100, interpreter=INTERPRETER + (1 << 19))
        with pytest.raises(BudgetError):
            make_plan(checkpoint, named - 2_000_000, context_length=100)


def test_blocks_cover_every_matrix_once_and_fit_their_slot(models):
    for form in FORMS:
        with open_checkpoint(models / form) as checkpoint:
            tensors = [t for _, t in blocks.matrices(checkpoint)]
            least = blocks.smallest_room(tensors)
            for room in (least, 2 * least + 4096, 4 << 20):
                for tensor in tensors:
                    row = 0
                    for block in blocks.cut(tensor, room):
                        assert block.row == row and block.room <= room
                        row += block.rows
                    assert row == tensor.rows
                    assert sum(b.nbytes for b in blocks.cut(tensor, room)) == tensor.nbytes
