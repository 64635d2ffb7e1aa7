"""The store of experts: what stays, what is guessed and counted, what a fork or a failing disk does; and the plan."""

import json
import os
import threading
import time

import golden
import numpy as np
import pytest
import tiny

import pyllama
from pyllama import _kernels
from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.files import SECTOR
from pyllama.checkpoint.outline import outline
from pyllama.decoder import Decoder
from pyllama.decoder.weights import DOWN, GATE_UP
from pyllama.errors import BudgetError, CheckpointError
from pyllama.packing.pack import pack
from pyllama.planning.memory import TooSmallError, make_plan
from pyllama.planning.time import GUESSED, OF_DRAM, Rates, forecast, pass_seconds
from pyllama.streaming import StreamedWeights, blocks, experts
from pyllama.streaming.expert_counts import LEAST, NAME, counts_path, hit_share, read_counts, write_counts
from pyllama.streaming.experts import LEAST_SLOTS, ExpertStore, sizes
from pyllama.streaming.pieces import extents, together

IDS = [1, *((7 * i * i + 3 * i) % 101 for i in range(40))]
EXPERTS, CHOSEN, LAYERS = 7, 3, 3


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    config = tiny.tiny_config(
        model_type="qwen3_moe", num_hidden_layers=LAYERS, hidden_size=128, moe_intermediate_size=96
    )
    tensors = tiny.random_tensors(config, seed=8)
    tiny.write_huggingface(root / "hf", config, tensors)
    tiny.write_gguf(root / "m.gguf", config, tensors, dtype="BF16")
    pack(root / "hf", root / "packed")
    return root


def store_of(checkpoint, **options):
    files = {}

    def read(span, memory):
        file = files.setdefault(span.file, open(span.file, "rb"))
        skip = span.offset % 4096
        data = os.pread(file.fileno(), span.nbytes, span.offset)
        memory[skip : skip + span.nbytes] = np.frombuffer(data, np.uint8)
        return memory[skip : skip + span.nbytes]

    options = {"chosen": CHOSEN, "room": 1 << 50, "slots": 1000, "read": read} | options
    return ExpertStore(blocks.expert_matrices(checkpoint), **options)


def take(store, layer, wanted):
    return [number for number, steps in store.take(layer, wanted, [1] * len(wanted)) if list(steps)]


def until(condition):
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("not within 20 s")


def test_an_expert_of_a_packed_file_is_one_read(models):
    for name, reads in (("packed", 1), ("hf", 1), ("m.gguf", 3)):
        with open_checkpoint(models / name) as checkpoint:
            for of_layer in blocks.expert_matrices(checkpoint).values():
                for expert in of_layer:
                    found = together([block for tensor in expert for block in blocks.cut(tensor, 1 << 50)])
                    assert len(found.spans) == reads


def test_what_is_here_comes_first_and_is_not_read_again(models):
    with open_checkpoint(models / "hf") as checkpoint:
        store = store_of(checkpoint)
        assert sorted(take(store, 0, [1, 3, 5])) == [1, 3, 5]
        read = store.counters.nbytes
        assert take(store, 0, [0, 3, 5])[:2] == [3, 5]
        assert store.counters.nbytes == read * 4 / 3
        assert (store.counters.asked, store.counters.hits) == (6, 2)
        store.close()


def test_the_least_recently_used_goes_first(models):
    with open_checkpoint(models / "hf") as checkpoint:
        store = store_of(checkpoint, slots=LEAST_SLOTS)
        store._protected[:] = False
        for expert in (0, 1, 2, 3):
            take(store, 1, [expert])
        take(store, 1, [0])
        take(store, 1, [4])  # in place of 1
        assert {key[1] for key in store._held} == {0, 2, 3, 4}
        store.close()


def test_what_is_chosen_most_stays(models):
    with open_checkpoint(models / "hf") as checkpoint:
        counts = np.zeros((LAYERS, EXPERTS), np.int64)
        counts[0, 2] = counts[1, 5] = 1000
        store = store_of(checkpoint, slots=LEAST_SLOTS, counts=counts)
        take(store, 0, [2])
        take(store, 1, [5])
        for _ in range(3):
            for expert in range(EXPERTS):
                take(store, 2, [expert])
        assert {(0, 2, 0), (1, 5, 0)} <= set(store._held)
        assert counts[2].tolist() == [3] * EXPERTS and counts[0, 2] == 1001
        store.close()


def test_guesses_are_read_while_nothing_else_is_and_counted_once_used(models):
    with open_checkpoint(models / "hf") as checkpoint:
        busy = threading.Event()
        busy.set()
        store = store_of(checkpoint, slots=4 * CHOSEN, busy=busy.is_set)
        take(store, 0, [0])
        store.guess(1, [4, 6])
        time.sleep(0.05)
        assert store.counters.guesses == 0  # the disk has something else to do
        busy.clear()
        store.guess(1, [4, 6])
        until(lambda: store.counters.guesses == 2 and not store.reading)
        assert sorted(take(store, 1, [2, 4])) == [2, 4]
        assert (store.counters.hits, store.counters.guessed, store.counters.guesses) == (1, 1, 2)
        take(store, 1, [4])
        assert store.counters.guessed == 1
        store.close()


class Halting:
    """A store whose reads of two experts wait until they are let through, part by part: 4 of layer 1, which is guessed,
    and 1 of layer 0, which is needed. read: the parts of the first that were read."""

    def __init__(self, checkpoint, **options):
        self.let, self.let_needed = threading.Semaphore(0), threading.Semaphore(0)
        self.read, self.waiting = [], 0
        sound = store_of(checkpoint)._read
        layers = blocks.expert_matrices(checkpoint)

        def belongs(span, layer, number):
            return any(
                span.file == of.file and of.offset // SECTOR * SECTOR <= span.offset < of.offset + of.nbytes
                for of in extents(layers[layer][number])
            )

        def read(span, memory):
            if belongs(span, 1, 4):
                self.waiting += 1
                self.let.acquire()
                self.read.append(span)
            elif belongs(span, 0, 1):
                self.let_needed.acquire()
            return sound(span, memory)

        self.store = store_of(checkpoint, read=read, slots=4 * CHOSEN, **options)

    def interrupted(self):
        """A guess of which one part has been read, when something else was needed."""
        store = self.store
        take(store, 0, [6])
        store.guess(1, [4])
        until(lambda: self.waiting == 1)
        taking = store.take(0, [1], [1])
        self.let.release()
        until(lambda: store._held[1, 4, 0].rest)
        self.let_needed.release(1000)
        assert [number for number, steps in taking if list(steps)] == [1]
        slot = store._held[1, 4, 0]
        assert len(self.read) == 1 and slot.rest and slot.rows is None
        return store


def contents(store, layer, wanted):
    """What the matrices of experts are, as float32, in whatever order their rows are kept."""
    found = {}
    for number, steps in store.take(layer, wanted, [1] * len(wanted)):
        for which, _, stack in steps:
            ones = np.ones((1, 96 if which == DOWN else 128), np.float32)
            outs = [np.empty((1, 128 if which == DOWN else 96), np.float32) for _ in range(2)]
            _kernels.matmul(stack, ones, tuple(outs) if which == GATE_UP else outs[0])
            found[number, which] = [out.tobytes() for out in outs[: 2 if which == GATE_UP else 1]]
    return found


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(experts, "GUESS_NBYTES", SECTOR)


@pytest.mark.parametrize("name", ["hf", "m.gguf"])
def test_a_guess_makes_way_and_is_not_read_again_from_the_start(models, small_parts, name):
    with open_checkpoint(models / name) as checkpoint:
        expected = contents(store_of(checkpoint), 1, [4])
        halting = Halting(checkpoint)
        store = halting.interrupted()
        halting.let.release(1000)
        assert contents(store, 1, [4]) == expected
        assert len(set(halting.read)) == len(halting.read)  # no part twice
        assert (store.counters.hits, store.counters.guessed, store.counters.guesses) == (0, 0, 1)
        store.close()


def test_a_guess_that_made_way_is_gone_on_with_once_the_disk_is_idle(models, small_parts):
    with open_checkpoint(models / "hf") as checkpoint:
        halting = Halting(checkpoint)
        store = halting.interrupted()
        halting.let.release(1000)
        store.guess(1, [4])
        until(lambda: store._held[1, 4, 0].rows is not None)
        assert len(set(halting.read)) == len(halting.read) and store.counters.guesses == 1
        store.close()


def test_a_guess_that_turns_out_to_be_needed_is_read_by_all_readers(models, small_parts):
    with open_checkpoint(models / "hf") as checkpoint:
        expected = contents(store_of(checkpoint), 1, [4])
        halting = Halting(checkpoint)
        store = halting.store
        take(store, 0, [0])
        store.guess(1, [4])
        until(lambda: halting.waiting == 1)
        found = {}
        asking = threading.Thread(target=lambda: found.update(contents(store, 1, [4])))
        asking.start()
        until(lambda: store.counters.guessed == 1)
        halting.let.release()
        until(lambda: halting.waiting == 1 + experts.READERS)
        halting.let.release(1000)
        asking.join()
        assert found == expected and len(set(halting.read)) == len(halting.read)
        store.close()


def test_the_slot_of_a_guess_that_made_way_is_given_to_others(models, small_parts):
    with open_checkpoint(models / "hf") as checkpoint:
        expected = contents(store_of(checkpoint), 1, [4])
        halting = Halting(checkpoint)
        store = halting.interrupted()
        for layer in (0, 2):
            assert sorted(take(store, layer, list(range(EXPERTS)))) == list(range(EXPERTS))
        assert (1, 4, 0) not in store._held
        halting.let.release(1000)
        assert contents(store, 1, [4]) == expected
        store.close()


def test_a_guess_never_takes_the_place_of_what_is_chosen_most(models):
    with open_checkpoint(models / "hf") as checkpoint:
        store = store_of(checkpoint, slots=4 * CHOSEN)
        every = [(layer, expert) for layer in range(2) for expert in range(6)]
        for layer in range(2):
            take(store, layer, range(6))
        store._protected[:2, :6] = True
        store.guess(2, [0, 1, 2])
        time.sleep(0.1)
        assert {key[:2] for key in store._held} == set(every) and store.counters.guesses == 0
        few = store_of(checkpoint, slots=4 * CHOSEN - 1)
        assert not few.guesses_help and store.guesses_help
        assert not store_of(checkpoint).guesses_help  # all of them are here soon enough
        store.close()


def test_an_expert_that_cannot_be_read_is_told_and_the_next_try_reads_it_again(models):
    before = set(threading.enumerate())  # other tests leave models open
    with open_checkpoint(models / "hf") as checkpoint:
        sound = store_of(checkpoint)._read
        broken = True

        def read(span, memory):
            if broken:
                raise CheckpointError("cannot read: the disk is gone")
            return sound(span, memory)

        for room in (1 << 50, 0):
            broken = True
            store = store_of(checkpoint, read=read, room=room)
            for _ in range(3):
                with pytest.raises(CheckpointError, match="the disk is gone"):
                    take(store, 0, [1, 2, 3, 4, 5])
            store.guess(1, [1])
            broken = False
            assert sorted(set(take(store, 0, [1, 2, 3, 4, 5]))) == [1, 2, 3, 4, 5]
            store.close()
        assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("pyllama-expert")]


def test_a_pass_that_is_given_up_leaves_the_next_one_whole(models):
    with open_checkpoint(models / "hf") as checkpoint:
        for room in (1 << 50, 0):
            store = store_of(checkpoint, slots=LEAST_SLOTS, room=room)
            taking = store.take(0, list(range(EXPERTS)), [1] * EXPERTS)
            next(next(taking)[1])
            taking.close()
            for layer in range(LAYERS):
                assert sorted(take(store, layer, list(range(EXPERTS)))) == list(range(EXPERTS))
            store.close()


@pytest.mark.parametrize("room", [1 << 50, 0])
def test_a_forked_child_goes_on_by_itself(models, room):
    with open_checkpoint(models / "packed") as checkpoint:
        weights = StreamedWeights(checkpoint, expert_slots=LEAST_SLOTS, expert_room=room)
        decoder = Decoder(checkpoint.config, weights, context_length=64)
        with decoder.new_sequence() as sequence:
            expected = decoder.forward([(sequence, IDS)], "all")
        child = os.fork()
        if child == 0:
            with decoder.new_sequence() as sequence:
                same = (decoder.forward([(sequence, IDS)], "all") == expected).all()
            os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with decoder.new_sequence() as sequence:
            assert (decoder.forward([(sequence, IDS)], "all") == expected).all()
        weights.close()


# ------------------------------------------------------------------------------------------------ guesses and counts


def fingerprint(model, count):
    with model.generate(IDS[:8], max_tokens=count, ignore_eos=True, fingerprint=True) as generation:
        generation.read()
        return generation.fingerprint.hexdigest(), model.decoder.weights.expert_counters


def test_neither_guesses_nor_counts_change_a_bit(models, tmp_path, monkeypatch):
    pack(models / "hf", tmp_path / "m")
    prints = set()
    for budget in (None, "smallest", 1 << 20):
        for guessing in (True, False):
            plan_bytes = smallest(tmp_path / "m") if budget else None
            memory = None if plan_bytes is None else plan_bytes + (budget if isinstance(budget, int) else 0)
            if not guessing:
                monkeypatch.setattr(ExpertStore, "guesses_help", False)
            with pyllama.load(tmp_path / "m", memory=memory, context_length=512) as model:
                prints.add(fingerprint(model, 300)[0])
            monkeypatch.undo()
    assert len(prints) == 1
    counts = read_counts(counts_path(tmp_path / "m"), LAYERS, EXPERTS)
    assert counts is not None and (counts.sum(axis=1) == 6 * CHOSEN * 307).all()


@pytest.mark.parametrize("kind", [*tiny.MIXTURES, "gemma4_mixture", "gpt_oss"])
def test_a_layer_that_gets_what_the_one_before_it_got_is_guessed_right(tmp_path, monkeypatch, kind):
    if kind == "gpt_oss":
        case = golden.load_case("gpt_oss_mxfp4")
        config, tensors = case.huggingface, dict(golden.stored_weights(case.config, case.seed))
    else:
        config = tiny.tiny_config(**(tiny.GEMMA4_MIXTURE if kind == "gemma4_mixture" else {"model_type": kind}))
        tensors = tiny.random_tensors(config, 3)
    for name, values in tensors.items():  # whatever is added to a token, by a mixer or by experts
        if any(f"{part}_proj" in name for part in ("o", "out", "down")) or ".output_linear." in name or ".w2." in name:
            values[:] = 0
        elif name.endswith("router.bias"):  # which decide as much as the products
            values[:] = np.linspace(-1, 1, len(values))
    seen = []
    monkeypatch.setattr(ExpertStore, "guesses_help", True)
    monkeypatch.setattr(ExpertStore, "guess", lambda self, layer, experts: seen.append((layer, sorted(experts))))
    asked = ExpertStore.take
    needed = []

    def take(self, layer, wanted, tokens, then=()):
        needed.append((layer, sorted(wanted)))
        return asked(self, layer, wanted, tokens, then)

    monkeypatch.setattr(ExpertStore, "take", take)
    with open_checkpoint(tiny.write_huggingface(tmp_path, config, tensors)) as checkpoint:
        decoder = Decoder(checkpoint.config, StreamedWeights(checkpoint), context_length=64)
        with decoder.new_sequence() as sequence:
            for token in IDS[:12]:
                decoder.forward([(sequence, [token])])
                if not seen:  # the first pass has no routers in memory yet
                    needed.clear()
    first = needed[0][0]  # before which nobody guesses
    assert seen and seen == [of for of in needed if of[0] != first]


def smallest(path):
    with pytest.raises(TooSmallError) as caught:
        pyllama.load(path, memory=1 << 20, context_length=512)
    return caught.value.smallest + (4 << 20)  # resident memory grows a little meanwhile


def test_counts_are_written_after_some_tokens_and_read_at_the_next_start(models, tmp_path):
    pack(models / "hf", tmp_path / "m")
    with pyllama.load(tmp_path / "m", context_length=512) as model:
        fingerprint(model, LEAST // 2)
    assert not (tmp_path / "m" / NAME).exists()
    with pyllama.load(tmp_path / "m", context_length=512) as model:
        fingerprint(model, LEAST)
    first = json.loads((tmp_path / "m" / NAME).read_text())["chosen"]
    with pyllama.load(tmp_path / "m", context_length=512) as model:
        fingerprint(model, LEAST)
    assert json.loads((tmp_path / "m" / NAME).read_text())["chosen"] == [[2 * n for n in row] for row in first]
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors", NAME]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"chosen": 1}', '{"chosen": [[1, 2], [3]]}', '{"chosen": [[1, -2], [3, 4]]}',
     '{"chosen": [[1, 2.5], [3, 4]]}', '{"chosen": [[1, 2]]}', '{"chosen": [[1, true], [3, 4]]}', "\0" * 100],
)  # fmt: skip
def test_a_file_of_counts_that_is_none_is_as_if_there_were_none(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    assert read_counts(tmp_path / "c.json", 2, 2) is None
    write_counts(tmp_path / "nowhere" / "c.json", np.ones((2, 2), np.int64))  # and says nothing


def test_counts_are_halved_before_they_are_too_large(tmp_path):
    write_counts(tmp_path / "c.json", np.array([[1 << 41, 8], [0, 2]], np.int64))
    assert read_counts(tmp_path / "c.json", 2, 2).tolist() == [[1 << 40, 4], [0, 1]]
    assert hit_share(np.array([[6, 1], [0, 3]]), 2) == 0.9 and hit_share(np.zeros((2, 2), np.int64), 1) is None


# ------------------------------------------------------------------------------------------------ the plan


QWEN = {
    "num_hidden_layers": 48, "hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128, "num_experts_per_tok": 8,
    "moe_intermediate_size": 768, "max_position_embeddings": 40960,
}  # fmt: skip


@pytest.fixture(scope="module")
def large():
    from pyllama.checkpoint.huggingface_config import huggingface_config

    return outline(huggingface_config(tiny.tiny_config(model_type="qwen3_moe", **QWEN)), "BF16")


def test_a_plan_never_spends_more_than_there_is(large):
    before = 0.0
    for budget in (400 << 20, 1 << 30, 2 << 30, 4 << 30, 8 << 30, 64 << 30):
        plan = make_plan(large, budget, context_length=1024)
        assert plan.process + plan.cache + plan.activations + plan.ring + plan.pinned + plan.experts <= budget
        assert plan.expert_slots >= LEAST_SLOTS and plan.experts_share >= before
        before = plan.experts_share
    assert before == 1.0
    with pytest.raises(BudgetError, match=r"needs at least \d+ MB.*experts"):
        make_plan(large, 100 << 20, context_length=1024)


def test_a_forecast_names_its_hit_rates(large):
    rates = Rates(0.85, 10.5, 75, 2)
    plan = make_plan(large, 4 << 30, context_length=1024)
    found = forecast(large, plan, rates, counted=0.6)
    assert [rate.name for rate in found.by_hit_rate[:2]] == ["uniform routing", "as counted so far"]
    assert found.by_hit_rate[0].token_s == found.token_s
    seconds = {rate.hits: rate.token_s for rate in found.by_hit_rate}
    assert all(a <= b for (_, a), (_, b) in zip(sorted(seconds.items())[1:], sorted(seconds.items()), strict=False))
    missed = (1 - 0.6) * plan.active + plan.streamed
    reading, dram = missed / (0.85e9 * 0.95), 10.5e9 * OF_DRAM
    kept = {name: tensor.nbytes for name, tensor in blocks.matrices(large)}
    head = plan.pinned / dram * kept["lm_head.weight"] / sum(kept.values())
    assert plan.pinned / dram - head < GUESSED * reading  # the disk has guesses to read while the rest is computed,
    assert abs(seconds[0.6] - reading - head) < 1e-3  # but none while the head is
    few = make_plan(large, plan.budget - (plan.expert_slots - 10) * plan.expert_room, context_length=1024)
    assert few.expert_slots < experts.GUESSING * 8  # too few for guesses
    without, _ = pass_seconds(large, few, rates, 1, 512, hits=0.6)
    assert abs(without - (0.4 * few.active + few.streamed) / (0.85e9 * 0.95) - few.pinned / dram) < 1e-3
    whole = forecast(large, make_plan(large, 80 << 30, context_length=1024), rates)
    assert [rate.hits for rate in whole.by_hit_rate] == [1.0]


def test_where_few_layers_lack_an_expert_their_reads_are_waited_for(large):
    """By the formula of docs/plan.md: it is products that take the time, and a read has one layer's to hide behind."""
    rates = Rates(0.3, 10.5, 1e6, 2)
    plan = make_plan(large, 16 << 30, context_length=1024)
    assert plan.streamed == 0 and plan.experts_share < 1
    hits = 0.99
    seconds, bound = pass_seconds(large, plan, rates, 1, 512, hits=hits)
    reading, dram = (1 - hits) * plan.active / (0.3e9 * 0.95), 10.5e9 * OF_DRAM
    lacking = 1 - hits**8
    waiting = (1 - GUESSED) * reading - lacking * hits * plan.active / dram
    assert waiting > 0 and reading < plan.active / dram
    assert bound == "disk" and abs(seconds - (plan.pinned + plan.active) / dram - waiting) < 1e-9


def test_sizes_are_those_of_the_slots(models):
    with open_checkpoint(models / "packed") as checkpoint:
        layers = blocks.expert_matrices(checkpoint)
        every = [expert for of_layer in layers.values() for expert in of_layer]
        of = sizes(every)
        store = store_of(checkpoint)
        assert store.room == of.whole and store.slots == LAYERS * EXPERTS
        assert store.nbytes_stored == of.nbytes
        assert experts.READERS < store.slots
        store.close()
