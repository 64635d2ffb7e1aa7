"""Branches of one text in one pass: each node computed once, the bits those of separate sequences, no page lost."""

import pickle
import random

import numpy as np
import pytest
import tiny

from pyllama import _kernels as kernels
from pyllama.checkpoint import open_checkpoint
from pyllama.decoder import Decoder
from pyllama.decoder.buffers import Buffers, buffers_nbytes, widths
from pyllama.decoder.page_pool import POSITIONS, PagePool, View, cache_nbytes
from pyllama.decoder.passes import build
from pyllama.decoder.shape import Heads, Shape
from pyllama.errors import BudgetError, ContextOverflowError, PyllamaError, RequestError
from pyllama.streaming import StreamedWeights

CONTEXT = 320
VOCAB = 101
KINDS = {
    "grouped": {},
    "windows": {"model_type": "mistral", "sliding_window": 40},
    "alone": {"num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 24},
}


@pytest.fixture(scope="module", params=[(kind, dtype) for kind in KINDS for dtype in ("f16", "f32")], ids="-".join)
def decoder(request, tmp_path_factory):
    kind, kv_dtype = request.param
    config = tiny.tiny_config(**KINDS[kind])
    path = tmp_path_factory.mktemp(kind)
    tiny.write_huggingface(path, config, tiny.random_tensors(config, seed=4), dtype="BF16")
    checkpoint = open_checkpoint(path)
    return Decoder(checkpoint.config, StreamedWeights(checkpoint), context_length=CONTEXT, kv_dtype=kv_dtype)


@pytest.fixture
def no_page_lost(decoder):
    yield
    assert decoder.cache.pages.used == 0
    assert decoder.cache.take_copies() == []


pytestmark = pytest.mark.usefixtures("no_page_lost")


def bits(rows):
    return np.ascontiguousarray(rows).view(np.uint32)


def same(a, b):
    return a.shape == b.shape and bool((bits(a) == bits(b)).all())


def text(length, seed=0):
    return random.Random(f"{seed} {length}").choices(range(VOCAB), k=length)


class Alone:
    """Logits of texts, each computed as a sequence of its own; kept, since trees ask for the same ones again."""

    def __init__(self, decoder):
        self.decoder = decoder
        self.known = {}

    def __call__(self, ids, last):
        """The last rows, (last, vocab_size)."""
        key = tuple(ids)
        if key not in self.known:
            with self.decoder.new_sequence() as sequence:
                self.known[key] = self.decoder.forward([(sequence, ids)], "all")
        return self.known[key][len(ids) - last :]


@pytest.fixture(scope="module")
def alone(decoder):
    return Alone(decoder)


def branches_of(draw, leaves, depth):
    """Paths of a random tree: each leaves an earlier one at a random node, or begins anew; some end within others."""
    paths = [draw.choices(range(VOCAB), k=draw.randint(1, depth))]
    while len(paths) < leaves:
        trunk = draw.choice(paths)
        kept = draw.randint(0, len(trunk))
        more = draw.randint(0 if kept else 1, max(1, depth - kept))
        paths.append(trunk[:kept] + draw.choices(range(VOCAB), k=more))
    draw.shuffle(paths)
    return paths


def nodes_of(paths):
    return {tuple(path[:n]) for path in paths for n in range(1, len(path) + 1)}


def computed(decoder, monkeypatch):
    """The tokens of each pass from now on."""
    tokens, run = [], decoder.run
    monkeypatch.setattr(
        decoder, "run", lambda planned, *more: tokens.append(len(planned.token_ids)) or run(planned, *more)
    )
    return tokens


@pytest.mark.parametrize("length", [1, 5, 31, 32, 33, 63, 64, 250, 255, 256, 257])
def test_a_tree_has_the_bits_of_separate_sequences(decoder, alone, monkeypatch, length):
    """Its logits, and whatever each of its branches goes on with, whichever is committed."""
    draw = random.Random(length)
    trunk_ids = text(length)
    passes = computed(decoder, monkeypatch)
    for leaves, depth in ((2, 3), (5, 8), (9, 12)):
        paths = branches_of(draw, leaves, depth)
        for committed in {0, leaves // 2, leaves - 1}:
            with decoder.new_sequence() as trunk:
                decoder.prefill(trunk, trunk_ids)
                branches = [trunk.fork() for _ in paths]
                out, rows = decoder.extend(list(zip(branches, paths)), [len(path) for path in paths])
                assert passes[-1] == len(nodes_of(paths)) == len(out), "a node is computed once"
                for path, indices in zip(paths, rows):
                    assert same(out[indices], alone(trunk_ids + path, len(path)))
                kept = draw.randint(1, len(paths[committed]))  # as many as were accepted
                branches[committed].truncate(length + kept)
                trunk.commit(branches[committed])
                assert trunk.length == length + kept and branches[committed].length == 0
                others = [(b, p) for b, p in zip(branches, paths) if b.length]
                going_on = [(trunk, paths[committed][:kept]), *others]
                tail = text(3, seed=leaves)
                after = decoder.forward([(sequence, tail) for sequence, _ in going_on], "all")
                for i, (_, path) in enumerate(going_on):
                    assert same(after[3 * i : 3 * i + 3], alone(trunk_ids + path + tail, 3))
                for branch in branches:
                    branch.close()


def test_forks_of_forks(decoder, alone):
    """A drafter's tree, a level a pass: each node is a fork of its parent."""
    draw = random.Random(7)
    with decoder.new_sequence() as trunk:
        ids = text(30)
        decoder.prefill(trunk, ids)
        level = [(trunk.fork(), ids)]
        for _ in range(4):  # past the end of a page
            children = []
            for sequence, path in level:
                for token in draw.sample(range(VOCAB), 2):
                    children.append((sequence.fork(), [*path, token]))
            out = decoder.forward([(sequence, path[-1:]) for sequence, path in children])
            for row, (_, path) in zip(out, children):
                assert same(row[None], alone(path, 1))
            for sequence, _ in level:
                sequence.close()
            level = draw.sample(children, 5) if len(children) > 5 else children
            for sequence, _ in [child for child in children if child not in level]:
                sequence.close()
        trunk.commit(level[-1][0])
        assert same(decoder.forward([(trunk, [9])]), alone([*level[-1][1], 9], 1))
        for sequence, _ in level:
            sequence.close()


def test_a_trunk_is_a_branch_too(decoder, alone):
    """Forks and what they come from go on together, and with strangers."""
    ids, other = text(40), text(12, seed=1)
    with decoder.new_sequence() as trunk, decoder.new_sequence() as stranger, trunk.fork() as empty:
        decoder.forward([(trunk, ids), (stranger, other)])
        with trunk.fork() as fork, stranger.fork() as strange_fork:
            out = decoder.forward(
                [(trunk, [1, 2, 3]), (strange_fork, [1, 2]), (fork, [1, 2, 4]), (stranger, [1, 2]), (empty, [1, 2])],
                "all",
            )
        assert same(out[:3], alone([*ids, 1, 2, 3], 3))
        assert same(out[3:5], alone([*other, 1, 2], 2))
        assert same(out[5:8], alone([*ids, 1, 2, 4], 3))
        assert same(out[8:10], out[3:5])
        assert same(out[10:], alone([1, 2], 2))


def test_forks_have_a_text_in_common_as_long_as_they_have(decoder, alone, monkeypatch):
    passes = computed(decoder, monkeypatch)
    ids = text(20)

    def cost(first, second, tokens=(5, 6)):
        out = decoder.forward([(first, tokens), (second, tokens)], "all")
        for sequence in (first, second):
            sequence.truncate(sequence.length - 2)
        return passes[-1], out

    with decoder.new_sequence() as one, decoder.new_sequence() as two:
        assert cost(one, two)[0] == 4, "nobody knows that two empty sequences are alike"
        decoder.forward([(one, ids)])
        with one.fork() as fork, one.fork() as third:
            assert cost(one, fork)[0] == 2
            assert cost(one, fork)[0] == 2, "they shrank back to what they have in common"
            decoder.forward([(one, [7])])
            assert cost(one, fork)[0] == 4
            assert cost(fork, third)[0] == 2
            for sequence in (one, fork):  # as long as before, but of other tokens
                sequence.truncate(10)
                decoder.forward([(sequence, [8] * 10 if sequence is one else [9] * 10)])
            count, out = cost(one, fork)
            assert count == 4
            assert same(out[:2], alone([*ids[:10], *[8] * 10, 5, 6], 2))
            assert same(out[2:], alone([*ids[:10], *[9] * 10, 5, 6], 2))
            with third.fork() as spare:
                one.commit(third)
                assert one.length == 20 and third.length == 0
                assert cost(one, spare)[0] == 2
            assert same(decoder.forward([(one, [3])]), alone([*ids, 3], 1))


def test_rows_that_nobody_wants_are_not_computed(decoder, alone):
    ids = text(10)
    with decoder.new_sequence() as trunk:
        decoder.forward([(trunk, ids)])
        with trunk.fork() as a, trunk.fork() as b, trunk.fork() as c:
            out, rows = decoder.extend([(a, [1, 2, 3]), (b, [1, 4]), (c, [1, 2])], [2, 0, 1])
        assert out.shape == (2, VOCAB)
        assert [list(indices) for indices in rows] == [[0, 1], [], [0]]
        assert same(out, alone([*ids, 1, 2, 3], 2))


def test_a_pass_is_integers_that_can_be_run_twice(decoder, alone):
    ids = text(33)
    with decoder.new_sequence() as trunk:
        decoder.forward([(trunk, ids)])
        with trunk.fork() as a, trunk.fork() as b:
            planned, rows = build(decoder.cache, [(a, [1, 2]), (b, [1, 3])], [2, 2], 512)
            assert planned.token_ids.tolist() == [1, 2, 3]
            assert planned.positions.tolist() == [33, 34, 34]
            assert planned.sequences.tolist() == [0, 0, 1]
            first, tail = trunk.pages
            assert planned.pages[:, 0].tolist() == [first, first], "a full page is not copied"
            assert (
                sorted(planned.pages[:, 1].tolist()) == sorted({a.pages[1], b.pages[1]}) and tail not in planned.pages
            )
            assert planned.copies.tolist() == [[tail, a.pages[1]], [tail, b.pages[1]]]
            assert (planned.pages[:, 2:] == -1).all()
            assert planned.writes.tolist() == [[0, a.pages[1]], [1, a.pages[1]], [0, b.pages[1]], [2, b.pages[1]]]
            assert planned.rows.tolist() == [0, 1, 2]
            assert [list(indices) for indices in rows] == [[0, 1], [0, 2]]
            *arrays, page_count, steps = (getattr(planned, name) for name in planned.__slots__)
            assert steps is None, "no layer carries a state"
            assert all(array.dtype.kind == "i" for array in arrays) and page_count == len(decoder.cache.pool)
            out = decoder.run(planned)
            assert same(out, decoder.run(planned))
            assert same(out[rows[0]], alone([*ids, 1, 2], 2)) and same(out[rows[1]], alone([*ids, 1, 3], 2))


def test_passes_are_all_that_another_process_needs(decoder, monkeypatch):
    """A second decoder that is told the passes of the first, as bytes, and never sees a sequence."""
    other = Decoder(decoder.config, decoder.weights, context_length=CONTEXT, kv_dtype=decoder.cache.dtype)
    run = decoder.run
    draw = random.Random(3)

    def twice(planned, *more):
        told = pickle.loads(pickle.dumps(planned))
        first, second = run(planned), other.run(told)
        assert same(first, second)
        return first

    monkeypatch.setattr(decoder, "run", twice)
    with decoder.new_sequence() as trunk, decoder.new_sequence() as stranger:
        decoder.forward([(trunk, text(62)), (stranger, text(30, seed=1))])
        for _ in range(6):
            paths = branches_of(draw, 4, 5)
            branches = [trunk.fork() for _ in paths]
            decoder.extend([*zip(branches, paths), (stranger, [1])], [len(path) for path in paths] + [1])
            trunk.commit(branches[draw.randrange(4)])
            for branch in branches:
                branch.close()
    assert other.cache.pages.used == 0


def test_what_a_page_holds_is_there_before_the_next_pass(decoder):
    """A copy is only noted until then; whoever looks at a page must not see that."""
    cache = decoder.cache
    with decoder.new_sequence() as trunk:
        decoder.forward([(trunk, text(5))])
        with trunk.fork() as branch:
            branch.reserve(6)
            (before,), (after,) = trunk.pages, branch.pages
            assert before != after
            assert (cache.read(after) == cache.read(before)).all()


def test_a_pass_that_fails_leaves_the_branches_as_they_were(decoder, alone):
    ids = text(31)
    with decoder.new_sequence() as trunk:
        decoder.forward([(trunk, ids)])
        with trunk.fork() as a, trunk.fork() as b:

            def give_up(layer):
                if layer == 1:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                decoder.extend([(a, [1, 2, 3]), (b, [1, 4])], [1, 1], give_up)
            assert [len(sequence.pages) for sequence in (trunk, a, b)] == [1, 1, 1]
            out, rows = decoder.extend([(a, [5, 6]), (b, [5, 7]), (trunk, [5])], [2, 2, 1])
            for ids_of, indices in zip(([5, 6], [5, 7], [5]), rows):
                assert same(out[indices], alone([*ids, *ids_of], len(indices)))


def test_layers_are_told_of_to_the_decoder_and_to_the_pass(decoder):
    told = []
    decoder.on_layer = lambda layer: told.append(("decoder", layer))
    try:
        with decoder.new_sequence() as sequence:
            decoder.forward([(sequence, [1])], on_layer=lambda layer: told.append(("pass", layer)))
            decoder.forward([(sequence, [1])])
    finally:
        decoder.on_layer = None
    both = [(whom, layer) for layer in range(2) for whom in ("decoder", "pass")]
    assert told == both + [("decoder", 0), ("decoder", 1)]


def test_bad_branches_are_refused_and_leave_nothing_behind(decoder):
    cache = decoder.cache
    with decoder.new_sequence() as trunk:
        decoder.forward([(trunk, text(CONTEXT - 2))])
        with trunk.fork() as a, trunk.fork() as b:
            with pytest.raises(ContextOverflowError):
                decoder.extend([(a, [1, 2]), (b, [1, 2, 3])], [1, 1])
            assert a.length == b.length == CONTEXT - 2
            with pytest.raises(RequestError):
                trunk.commit(trunk)
            with pytest.raises(RequestError):
                trunk.adopt(a.pages, a.length)
    with decoder.new_sequence() as trunk:
        decoder.forward([(trunk, text(5))])
        before = cache.pages.limit
        with trunk.fork() as a, trunk.fork() as b, trunk.fork() as c:
            cache.pages.limit = max(3, cache.pool.nbytes // cache.page_nbytes)
            taken = [cache.pages.take() for _ in range(cache.pages.limit - cache.pages.used - 2)]
            with pytest.raises(BudgetError):
                decoder.forward([(s, [1]) for s in (a, b, c)])
            assert a.length == b.length == c.length == 5
            c.close()
            decoder.forward([(s, [1]) for s in (a, b)])
            for page in taken:
                cache.pages.give_back(page)
        cache.pages.limit = before
    other = Decoder(decoder.config, decoder.weights, context_length=CONTEXT)
    with decoder.new_sequence() as one, other.new_sequence() as two:
        with pytest.raises(RequestError):
            one.commit(two)


def test_more_tokens_than_a_pass_takes_are_counted_as_nodes(decoder):
    narrow = Decoder(decoder.config, decoder.weights, context_length=64, max_pass_tokens=8)
    with narrow.new_sequence() as trunk:
        narrow.forward([(trunk, [1])])
        with trunk.fork() as a, trunk.fork() as b:
            narrow.extend([(a, [1] * 6 + [2, 3]), (b, [1] * 6 + [2])], [1, 1])
        with trunk.fork() as a, trunk.fork() as b, pytest.raises(RequestError, match="9 tokens in one pass"):
            narrow.extend([(a, [1] * 6 + [2, 3]), (b, [1] * 6 + [4])], [1, 1])
        assert narrow.cache.pages.used == 1


# --- the memory of a pass ---


@pytest.mark.parametrize("tokens", [1, 2, 512])
def test_the_planner_counts_the_bytes_that_buffers_have(tokens):
    shape = Shape(
        hidden_size=48,
        attention=(Heads(6, 3, 10, 0), Heads(6, 3, 8, 1)),
        intermediate_size=90,
        vocab_size=101,
        rotated=(10, 6),
    )
    buffers = Buffers(shape, tokens)
    made = {name: getattr(buffers, name).base for name in widths(shape)}
    assert {name: array.shape for name, array in made.items()} == {n: (tokens, w) for n, w in widths(shape).items()}
    packed, whole = (kernels.input_nbytes(tokens, 90, [dtype]) for dtype in ("BF16", "Q8_0"))
    assert packed == (0 if tokens == 1 else 4 * tokens * 90)
    assert whole == tokens * 3 * 96  # blocks of 32 columns: 64 bytes, their scale and sums
    assert (buffers.input.tokens, buffers.input.cols) == (tokens, 90)
    plain, few, many = ["BF16", "F32"], ["Q4_K", "Q4_0"], ["F16", "Q4_K", "Q6_K", "Q8_0"]
    for dtypes, forms in ((plain, packed), (few, whole), (many, packed + 2 * whole)):
        made_nbytes = sum(array.nbytes for array in made.values())
        assert buffers_nbytes(shape, tokens, dtypes) == made_nbytes + forms + 4 * 101


def test_a_rank_with_fewer_heads_has_smaller_pages_and_buffers(decoder):
    whole = Shape.whole(decoder.config)
    third = [of._replace(heads=of.heads // 3, kv_heads=of.kv_heads // 3) for of in whole.attention]
    half = whole._replace(attention=tuple(third))
    assert 3 * cache_nbytes(half, 100, "f16") == cache_nbytes(whole, 100, "f16")
    pools = [PagePool(shape, [View(None, 1)] * shape.layers) for shape in (whole, half)]
    assert pools[0].page_nbytes == 3 * pools[1].page_nbytes
    assert 3 * widths(half)["q"] == widths(whole)["q"] and 3 * widths(half)["v"] == widths(whole)["v"]
    assert decoder.shape == whole


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_a_rank_computes_the_bits_of_its_heads(dtype):
    """Attention over a third of the heads, in pages of its own, is that third of the whole."""
    whole = Shape(60, (Heads(12, 3, 10, 0), Heads(12, 3, 10, 1)), intermediate_size=8, vocab_size=8)
    share = whole._replace(attention=(Heads(4, 1, 10, 0), Heads(4, 1, 10, 1)))
    tokens = 70
    draw = np.random.default_rng(1)
    q = draw.standard_normal((tokens, whole.q_size), np.float32)
    k, v = (draw.standard_normal((tokens, whole.kv_size), np.float32) for _ in range(2))

    def attend(shape, q, k, v):
        pool = PagePool(shape, [View(None, 0.3), View(20, 0.3)], dtype)
        pool.grow(3)
        at = np.arange(tokens)
        writes = np.stack([at, at // POSITIONS], 1).astype(np.int32)
        batch = kernels.Batch(
            pool.addresses, np.arange(3, dtype=np.int32)[None], at, np.zeros(tokens, np.int32), writes
        )
        outs = []
        for attention in pool.attention:
            outs.append(np.full((tokens, shape.q_size), np.nan, np.float32))
            attention.append(batch, k, v)
            attention.attend(batch, q, outs[-1])
        return np.stack(outs)

    expected = attend(whole, q, k, v)
    for rank in range(3):
        of_q, of_kv = (slice(rank * size, (rank + 1) * size) for size in (share.q_size, share.kv_size))
        parts = [np.ascontiguousarray(x) for x in (q[:, of_q], k[:, of_kv], v[:, of_kv])]
        assert same(attend(share, *parts), expected[:, :, of_q])


def test_pages_are_zeroed_and_aligned(decoder):
    pool = PagePool(decoder.shape, [View(None, 1)] * decoder.shape.layers, "f32")
    pool.grow(3)
    assert len(pool) == 3 and pool.nbytes == 3 * cache_nbytes(decoder.shape, POSITIONS, "f32")
    for page in range(3):
        assert not pool.read(page).any()
        assert pool.addresses[page] == pool.read(page).ctypes.data and pool.addresses[page] % 64 == 0
    pool.read(0)[:] = 7
    pool.copy(0, 2)
    assert (pool.read(2) == 7).all() and not pool.read(1).any()
    with pytest.raises(RequestError, match="kv_dtype"):
        PagePool(decoder.shape, [View(None, 1)], "f8")
    with pytest.raises(PyllamaError, match="attention"):
        PagePool(decoder.shape._replace(attention=(Heads(2, 3, 10, 0),)), [View(None, 1)])


def test_prefill_asks_for_the_last_row_alone(decoder, alone, monkeypatch):
    ids = text(50)
    expected = alone(ids, 1)
    rows, run = [], decoder.run
    monkeypatch.setattr(decoder, "run", lambda planned, *more: rows.append(len(planned.rows)) or run(planned, *more))
    monkeypatch.setattr(decoder, "max_pass_tokens", 20)
    with decoder.new_sequence() as sequence:
        last = decoder.prefill(sequence, ids)
    assert rows == [0, 0, 1]
    assert same(last[None], expected)
