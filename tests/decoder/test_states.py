"""Layers that carry a state: cut, taken back, forked, failed and streamed, a text has the bits of one pass over it."""

import random

import numpy as np
import pytest
import tiny

from pyllama.checkpoint import open_checkpoint
from pyllama.decoder import Decoder
from pyllama.decoder.states import History, Numbers, States, steps_of
from pyllama.errors import BudgetError, RequestError
from pyllama.packing import pack
from pyllama.streaming import StreamedWeights

CONTEXT = 160
IDS = [1, *((11 * i * i + 5 * i) % 101 for i in range(120))]


def decoder_of(path, **options):
    checkpoint = open_checkpoint(path)
    weights = StreamedWeights(checkpoint, **options)
    return Decoder(checkpoint.config, weights, context_length=CONTEXT, rope_interleaved=checkpoint.rope_interleaved)


@pytest.fixture(scope="module", params=tiny.RECURRENT)
def folder(request, tmp_path_factory):
    config = tiny.tiny_config(model_type=request.param)
    return tiny.write_huggingface(tmp_path_factory.mktemp(request.param), config, tiny.random_tensors(config, seed=4))


@pytest.fixture(scope="module")
def decoder(folder):
    return decoder_of(folder)


@pytest.fixture(scope="module")
def whole(decoder):
    with decoder.new_sequence() as sequence:
        return decoder.forward([(sequence, IDS)], "all")


def in_use(decoder):
    states = decoder.cache.states
    return states.slots.used, states.rows.used, decoder.cache.pages.used


def same(a, b):
    return a.shape == b.shape and bool((a.view(np.uint32) == b.view(np.uint32)).all())


@pytest.mark.parametrize("seed", range(6))
def test_what_is_taken_back_leaves_no_trace(decoder, whole, seed):
    """Known tokens and branches of proposed ones, of which some are kept, until the text is through."""
    draw, at, before = random.Random(seed), 0, in_use(decoder)
    with decoder.new_sequence() as text, decoder.new_sequence() as stranger:
        while at < len(IDS) - 16:
            known, deep = draw.choice([1, 1, 1, 2, 5]), draw.choice([0, 1, 3, 7])
            coming = IDS[at + known : at + known + deep]
            kept = draw.randrange(deep + 1)
            right = [*coming[:kept], *((token + 1) % 101 for token in coming[kept:])]
            paths = [
                right,
                *([draw.randrange(101) for _ in range(deep)] for _ in range(draw.choice([0, 2]) if deep else 0)),
            ]
            draw.shuffle(paths)
            branches = [text, *(text.fork() for _ in paths[1:])]
            segments = [(branch, IDS[at : at + known] + path) for branch, path in zip(branches, paths, strict=True)]
            for branch, path in zip(branches, paths, strict=True):
                branch.provisional = len(path)
            others = [(stranger, [draw.randrange(101)])] if stranger.length < CONTEXT else []
            logits, rows = decoder.extend([*segments, *others], [len(ids) for _, ids in [*segments, *others]])
            chosen = paths.index(right)
            assert same(logits[rows[chosen][: known + kept]], whole[at : at + known + kept])
            if branches[chosen] is not text:
                text.commit(branches[chosen])
            for branch in branches:
                if branch is not text:
                    branch.close()
            at += known + kept
            text.truncate(at)
        assert same(decoder.forward([(text, IDS[at:])], "all"), whole[at:])
    assert in_use(decoder) == before


def test_a_pass_that_fails_has_changed_nothing(decoder, whole):
    def fail(layer):
        if layer == 3:
            raise KeyboardInterrupt

    before = in_use(decoder)
    with decoder.new_sequence() as text:
        decoder.forward([(text, IDS[:30])])
        text.provisional = 4
        decoder.forward([(text, IDS[30:40])])
        for _ in range(2):
            text.provisional = 3
            with pytest.raises(KeyboardInterrupt):
                decoder.forward([(text, [5, 6, 7, 8])], on_layer=fail)
        assert text.length == 40 and text.restorable(37) == 37 and text.restorable(35) == 0
        assert same(decoder.forward([(text, IDS[40:])], "all"), whole[40:])
    assert in_use(decoder) == before


def test_it_goes_back_to_states_that_were_kept_and_no_further(decoder, whole):
    before = in_use(decoder)
    with decoder.new_sequence() as text:
        text.mark(100, exactly=True)
        decoder.forward([(text, IDS[:70])])
        decoder.forward([(text, IDS[70:110])])
        assert [text.restorable(length) for length in (110, 109, 99, 98, 96, 95)] == [110, 99, 99, 96, 96, 0]
        with pytest.raises(RequestError, match="truncate: got 98, expected a position whose state is kept, such as 96"):
            text.truncate(98)
        assert text.length == 110
        fork = text.fork()
        decoder.forward([(fork, [7, 7])])
        text.truncate(99)
        assert same(decoder.forward([(text, IDS[99:])], "all"), whole[99:])
        text.truncate(96)
        assert text.restorable(99) == 96, "the state of 99 was that of another text perhaps"
        assert same(decoder.forward([(text, IDS[96:])], "all"), whole[96:])
        text.commit(fork)
        assert text.length == 112
    assert in_use(decoder) == before


def test_a_sequence_begins_with_a_state_or_not_at_all(decoder, whole):
    with decoder.new_sequence() as text, decoder.new_sequence() as other:
        decoder.forward([(text, IDS[:64])])
        with pytest.raises(RequestError, match="adopt: 64 positions without their state"):
            other.adopt(text.pages, 64)
        states = text.take_states()
        assert list(states) == [64]
        other.adopt(text.pages, 64, states[64])
        text.give_states_back(states)
        for sequence in (other, text):
            assert same(decoder.forward([(sequence, IDS[64:])], "all"), whole[64:])


@pytest.mark.parametrize("room", [None, 0, 1])
def test_states_from_before_are_kept_while_there_is_room(decoder, room):
    slots, used = decoder.cache.states.slots, in_use(decoder)
    slots.enough = None if room is None else 2 + room
    try:
        with decoder.new_sequence() as text:
            for end in (40, 80, 120):
                text.mark(end)
                decoder.forward([(text, IDS[text.length : end])])
            kept = [text.restorable(length) for length in (32, 64, 96)]
        assert kept == {None: [32, 64, 96], 0: [0, 0, 0], 1: [0, 0, 96]}[room]
    finally:
        slots.enough = None
    assert in_use(decoder) == used


def test_without_a_slot_nothing_changes(decoder, whole):
    slots, used = decoder.cache.states.slots, in_use(decoder)
    with decoder.new_sequence() as text, decoder.new_sequence() as other:
        decoder.forward([(text, IDS[:20])])
        slots.limit = len(slots)
        held = [slots.take() for _ in range(slots.limit - slots.used)]
        try:
            for segments in ([(text, [3])], [(other, [3])], [(text, [3]), (other, [4, 5])]):
                with pytest.raises(BudgetError, match="states: all of the [0-9]+ states of texts are in use"):
                    decoder.forward(segments)
        finally:
            slots.limit = None
            for slot in held:
                slots.give_back(slot)
        assert (text.length, other.length) == (20, 0)
        assert same(decoder.forward([(text, IDS[20:])], "all"), whole[20:])
    assert in_use(decoder) == used


def test_budgets_and_packing_change_no_bit(folder, whole, tmp_path):
    packed = pack(folder, tmp_path / "packed")
    for path, options in ((folder, {"pinned_nbytes": 0}), (packed, {}), (packed, {"pinned_nbytes": 0, "slots": 3})):
        other = decoder_of(path, **options)
        with other.new_sequence() as text:
            first = other.forward([(text, IDS[:50])], "all")
            assert same(np.concatenate([first, other.forward([(text, IDS[50:])], "all")]), whole)


def test_numbers_are_taken_and_given_back():
    numbers = Numbers("things")
    assert [numbers.take(), numbers.take()] == [0, 1]
    numbers.hold(0)
    numbers.give_back(0)
    assert (len(numbers), numbers.used, numbers.spare, numbers.holders(0)) == (2, 2, None, 1)
    numbers.limit = 2
    given: list[int] = [1]
    numbers.reclaim = lambda: bool(given) and numbers.give_back(given.pop()) is None
    assert numbers.take() == 1
    with pytest.raises(BudgetError, match="all of the 2 things are in use"):
        numbers.take()
    numbers.enough = 1
    assert numbers.spare == -1


def test_steps_are_integers():
    states = States()
    one, two = History(states), History(states)
    planned = steps_of(states, [(one, [0, 1, 2], 1), (two, [3], 0)], 4)
    assert planned.sources.tolist() == [-1, -1] and planned.starts.tolist() == [0, 3, 4]
    assert planned.stores.tolist() == [[1, 0], [3, 1]] and planned.journal.tolist() == [[2, 0]]
    one.advance(), two.advance()
    assert (one.at, one.pending, two.at, two.pending) == (2, [0], 1, [])
    planned = steps_of(states, [(one, [0], 0)], 1)
    assert planned.gathered.tolist() == [0] and planned.steps.tolist() == [1, 0] and planned.stores.tolist() == [[1, 2]]
    one.undo()
    assert (one.length, states.slots.used, states.rows.used) == (3, 2, 1)
    one.clear(), two.clear()
    assert (states.slots.used, states.rows.used) == (0, 0)
