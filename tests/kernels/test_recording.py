"""Calls of kernels, recorded and made again: the bits of asking for each, and nothing where they cannot be had."""

import threading

import numpy as np
import pytest

from pyllama import _kernels as kernels
from pyllama.errors import PyllamaError

HEADS, KV_HEADS, DIM = 4, 2, 8
WIDTH, KV_WIDTH = HEADS * DIM, KV_HEADS * DIM
KEYS = 32 * KV_WIDTH * 4  # bytes of a page's keys
PAGE = KEYS + 32 * KV_HEADS * 32 * 4  # its values lie in panels of 32 dimensions


class Block:
    """What a layer does: a norm, products, a rotation, attention, an activation, sums."""

    def __init__(self, tokens=2):
        rng = np.random.default_rng(3)
        self.tokens = tokens
        self.x, self.q, self.gate, self.up, self.attended = (
            kernels.Floats(np.zeros((tokens, WIDTH), np.float32)) for _ in range(5)
        )
        self.k, self.v = (kernels.Floats(np.zeros((tokens, KV_WIDTH), np.float32)) for _ in range(2))
        self.cos, self.sin = (rng.standard_normal((tokens, DIM // 2)).astype(np.float32) for _ in range(2))
        self.norm, self.bias = (rng.standard_normal(WIDTH).astype(np.float32) for _ in range(2))
        self.wide, self.narrow = (self.matrix(rng, rows) for rows in (WIDTH, KV_WIDTH))
        self.input = kernels.Input(tokens, WIDTH)
        self.pages = np.zeros(3 * PAGE, np.uint8)
        self.pool = self.pages.ctypes.data + PAGE * np.arange(3, dtype=np.uint64)
        options = {"f16": False, "window": 0, "scale": 0.3, "k_offset": 0, "v_offset": KEYS}
        self.attention = kernels.Attention(HEADS, KV_HEADS, DIM, **options)

    def matrix(self, rng, rows):
        data = rng.integers(0, 128, (rows, WIDTH // 32, 34), np.uint8)
        data[:, :, :2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
        flat = kernels.Matrix("Q8_0", rows, WIDTH, data.reshape(-1))
        panels = np.empty(kernels.panels_nbytes("Q8_0", rows, WIDTH), np.uint8)
        kernels.to_panels(flat, panels)
        return kernels.Matrix("Q8_0", rows, WIDTH, panels, "panels")

    def batch(self, first, tokens=None):
        positions = np.arange(first, first + (tokens or self.tokens), dtype=np.int64)
        owners = np.zeros(len(positions), np.int32)
        pages = np.arange(3, dtype=np.int32)[None]
        writes = np.stack([np.arange(len(positions)), positions // 32], 1).astype(np.int32)
        return kernels.Batch(self.pool, pages, positions, owners, writes)

    def ask(self, batch):
        kernels.rmsnorm(self.x, self.norm, 1e-5, self.gate)
        qkv = kernels.Blocks([self.wide], [self.narrow], [self.narrow])
        kernels.matmul(qkv, self.input.take(self.gate), (self.q, self.k, self.v))
        kernels.add(self.q, self.bias, self.q)
        kernels.rope(self.q, self.cos, self.sin, HEADS)
        self.attention.append(batch, self.k, self.v)
        self.attention.attend(batch, self.q, self.attended)
        kernels.matmul(self.wide, self.input.take(self.attended), self.up)
        kernels.swiglu(self.gate, self.up, self.gate)
        kernels.geglu(self.gate, self.up, self.up)
        kernels.scale(self.up, np.full(1, 0.5, np.float32), self.up)
        kernels.add(self.x, self.up, self.x, 0.25)

    def begin(self, seed):
        self.x.array[:] = np.random.default_rng(seed).standard_normal((self.tokens, WIDTH))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("isa", kernels.supported_isas())
def test_replay_is_asking_again_to_the_bit(isa, threads):
    before, count = kernels.isa(), kernels.num_threads()
    asked, replayed = Block(), Block()
    with kernels.Recording() as recording:
        replayed.ask(replayed.batch(0))
    assert len(recording) == 13  # products twice, their input once for each that was taken
    try:  # as the threads and the instruction set are then, not as they were
        kernels.set_isa(isa)
        kernels.set_num_threads(threads)
        for first in (0, 2, 31, 60):
            for block in (asked, replayed):
                block.begin(first)
            asked.ask(asked.batch(first))
            recording.replay(replayed.batch(first))
            assert asked.x.array.any()
            assert np.array_equal(asked.x.array.view(np.uint32), replayed.x.array.view(np.uint32))
            assert np.array_equal(asked.pages, replayed.pages)
    finally:
        kernels.set_isa(before)
        kernels.set_num_threads(count)


def test_what_was_used_is_kept_alive():
    block = Block()
    block.begin(1)
    with kernels.Recording() as recording:
        kernels.add(block.x, np.full(WIDTH, 2.0, np.float32), block.x)
    before = block.x.array.copy()
    rubbish = [np.full(WIDTH, 7.0, np.float32) for _ in range(100)]
    recording.replay(block.batch(0))
    assert np.array_equal(block.x.array, before + 2) and rubbish


def test_a_batch_of_other_tokens_is_refused():
    block = Block()
    with kernels.Recording() as recording:
        block.ask(block.batch(0))
    with pytest.raises(PyllamaError, match="replay: a batch of 1 tokens, recorded were 2"):
        recording.replay(block.batch(0, tokens=1))


def test_what_cannot_be_recorded_is_refused_while_recording_only():
    x = np.ones((1, 4), np.float32)
    with pytest.raises(PyllamaError, match="softcap: cannot be recorded"), kernels.Recording():
        kernels.softcap(x, 1.0, x)
    kernels.softcap(x, 1.0, x)


def test_nothing_is_left_of_a_block_that_raises():
    block = Block()
    with pytest.raises(ValueError, match="out of it"), kernels.Recording() as recording:
        block.ask(block.batch(0))
        raise ValueError("out of it")
    assert len(recording) == 0
    with recording:  # so it may be used after all
        block.ask(block.batch(0))
    with pytest.raises(PyllamaError, match="each once"), recording:
        pass


def test_one_recording_at_a_time_in_a_thread():
    with kernels.Recording(), pytest.raises(PyllamaError, match="one at a time"), kernels.Recording():
        pass


def test_threads_record_for_themselves():
    blocks, recordings = [Block(), Block()], []
    ready = threading.Barrier(2)

    def record(block):
        with kernels.Recording() as recording:
            ready.wait()
            block.ask(block.batch(0))
            ready.wait()
        recordings.append(recording)

    threads = [threading.Thread(target=record, args=(block,)) for block in blocks]
    for thread in threads:
        thread.start()
    kernels.exp(np.zeros((1, 4), np.float32), np.empty((1, 4), np.float32))  # this thread records nothing
    for thread in threads:
        thread.join()
    assert [len(recording) for recording in recordings] == [13, 13]
