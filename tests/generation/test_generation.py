"""The generate loop against a decoder and a tokenizer whose every answer can be worked out by hand."""

import hashlib

import numpy as np
import pytest

from pyllama.errors import ContextOverflowError, RequestError
from pyllama.generation import Answer, Fingerprint, Generation, StopStrings, Task, compute, share_out
from pyllama.generation.sampler import SamplingParams

VOCAB = 40
EOS = 39


class FakeConfig:
    vocab_size = VOCAB


class FakeSequence:
    def __init__(self):
        self.tokens = []
        self.closed = False

    @property
    def length(self):
        return len(self.tokens)

    def restorable(self, length):
        return min(length, len(self.tokens))

    def mark(self, length, exactly=False, common=0):
        pass

    def truncate(self, length):
        assert 0 <= length <= len(self.tokens)
        del self.tokens[length:]

    def close(self):
        self.closed = True


class FakeDecoder:
    """Says `script` token by token; each row of logits depends on all tokens before it."""

    config = FakeConfig()

    def __init__(self, script, prompt_length, context_length=64, fail_at=None):
        self.script = script
        self.prompt_length = prompt_length
        self.context_length = context_length
        self.max_pass_tokens = 512
        self.fail_at = fail_at
        self.passes = []

    def row(self, sequence):
        index = sequence.length - self.prompt_length
        if index == self.fail_at:
            raise KeyboardInterrupt
        seed = int.from_bytes(hashlib.sha256(bytes(sequence.tokens)).digest()[:4], "little")
        logits = np.random.default_rng(seed).standard_normal(VOCAB).astype(np.float32)
        logits[self.script[index]] = 9.0
        return logits

    def extend(self, batch, wanted, on_layer=None, hidden=False):
        ((sequence, ids),) = batch
        sequence.tokens.extend(ids)
        self.passes.append(list(ids))
        rows = [self.row(sequence)] if wanted[0] else []
        return np.array(rows, np.float32).reshape(-1, VOCAB), [np.arange(len(rows))]


class FakeTokenizer:
    """Token i is PIECES[i]; "é" comes in two tokens, half a character each."""

    PIECES = {i: bytes([ord("a") + i]) for i in range(26)} | {27: b"\xc3", 28: b"\xa9", 29: b"xyz"}
    eos_token_ids = (EOS,)

    def stream(self, continuation=False):
        return FakeStream()


class FakeStream:
    def __init__(self):
        self.pending = b""

    def push(self, token_id):
        self.pending += FakeTokenizer.PIECES.get(token_id, b"")
        try:
            text, self.pending = self.pending.decode(), b""
        except UnicodeDecodeError:
            return ""
        return text

    def finish(self):
        text, self.pending = self.pending.decode(errors="replace"), b""
        return text


def ids(text):
    return [ord(c) - ord("a") for c in text]


def answer(script, prompt=(1, 2, 3), context_length=64, sequence=None, **options):
    decoder = FakeDecoder(list(script) + [0] * 64, len(prompt), context_length)
    generation = Generation(
        decoder,
        FakeTokenizer(),
        sequence or FakeSequence(),
        prompt,
        SamplingParams(**options),
        fingerprint=True,
    )
    return generation, decoder


def test_a_prompt_is_one_pass_and_a_token_is_one_pass():
    generation, decoder = answer([*ids("abc"), EOS])
    steps = list(generation)
    assert [step.text for step in steps] == ["a", "b", "c", ""]
    assert [step.finish_reason for step in steps] == [None, None, None, "stop"]
    assert generation.token_ids == [0, 1, 2, EOS]
    assert generation.text == "abc"
    assert (generation.prompt_tokens, generation.completion_tokens) == (3, 4)
    assert decoder.passes == [[1, 2, 3], [0], [1], [2]]


def test_the_first_step_comes_before_the_second_pass():
    generation, decoder = answer(ids("abc"))
    next(generation)
    assert decoder.passes == [[1, 2, 3]]


def test_only_what_the_cache_lacks_is_computed():
    sequence = FakeSequence()
    sequence.tokens = [1, 2]
    generation, decoder = answer([EOS], sequence=sequence)
    generation.read()
    assert decoder.passes == [[3]]
    assert generation.cached_tokens == 2


def test_a_prompt_that_is_cached_whole_computes_its_last_token_again():
    sequence = FakeSequence()
    sequence.tokens = [1, 2, 3]
    generation, decoder = answer([EOS], sequence=sequence)
    generation.read()
    assert decoder.passes == [[3]]
    assert sequence.tokens == [1, 2, 3]


def test_max_tokens():
    generation, _ = answer(ids("abcdef"), max_tokens=3)
    assert generation.read() == "abc"
    assert generation.finish_reason == "length"
    assert generation.token_ids == ids("abc")


def test_the_end_of_text_at_max_tokens_is_a_stop():
    generation, _ = answer([0, EOS], max_tokens=2)
    generation.read()
    assert generation.finish_reason == "stop"


def test_a_full_context_ends_with_length():
    generation, decoder = answer(ids("abcdefgh"), context_length=5)
    assert generation.read() == "abc"  # two fit beside the prompt of 3, and the last need not be fed back
    assert generation.finish_reason == "length"
    assert sum(map(len, decoder.passes)) == 5


def test_a_prompt_as_long_as_the_context_gives_one_token():
    generation, _ = answer(ids("abc"), context_length=3)
    assert generation.read() == "a"
    assert generation.finish_reason == "length"


def test_a_longer_prompt_is_an_error_before_anything_runs():
    with pytest.raises(ContextOverflowError, match="prompt is too long: 3 tokens, .* 2"):
        answer(ids("abc"), context_length=2)


def test_an_empty_prompt_is_an_error():
    with pytest.raises(RequestError, match="prompt: no tokens"):
        answer(ids("abc"), prompt=())


def test_ignore_eos():
    generation, _ = answer([0, EOS, 1], ignore_eos=True, max_tokens=3)
    assert generation.read() == "ab"
    assert generation.token_ids == [0, EOS, 1]


def test_stop_token_ids_end_the_answer_and_are_not_shown():
    generation, _ = answer(ids("abcd"), stop_token_ids=[2])
    assert generation.read() == "ab"
    assert generation.finish_reason == "stop"
    assert generation.token_ids == ids("abc")


def test_a_stop_string_across_tokens_is_never_shown():
    generation, _ = answer(ids("helloworld"), stop="low")
    steps = list(generation)
    assert [step.text for step in steps] == ["h", "e", "", "l", "", ""]
    assert generation.text == "".join(step.text for step in steps) == "hel"
    assert steps[-1].finish_reason == "stop"


def test_text_held_back_for_a_stop_string_is_shown_at_the_end():
    generation, _ = answer([*ids("abc"), EOS], stop=["cd"])
    assert [step.text for step in generation] == ["a", "b", "", "c"]
    generation, _ = answer(ids("abcx"), stop=["cd"], max_tokens=3)
    assert generation.read() == "abc"


def test_a_stop_string_inside_one_token_cuts_it():
    generation, _ = answer([0, 29, 1], stop=["y"])
    assert generation.read() == "ax"


def test_half_a_character_waits_for_the_other_half():
    generation, _ = answer([0, 27, 28, 1, EOS])
    assert [step.text for step in generation] == ["a", "", "é", "b", ""]


def test_half_a_character_at_the_end_is_shown_as_a_replacement():
    generation, _ = answer([0, 27, EOS])
    assert generation.read() == "a\ufffd"
    assert generation.finish_reason == "stop"


def test_every_cut_of_a_text_shows_the_same():
    text = "one two\n\nthree two four"
    cases = (["two"], ["wo\n", "\n\n"], ["\n\nthree"], ["e t", "three"], ["zz"], ["r", "four"], ["on", "one"])
    for stops in cases:
        shown = set()
        for cut in range(1, len(text)):
            for size in (1, 2, 3, 7, 100):
                pieces = [text[:cut], *(text[i : i + size] for i in range(cut, len(text), size))]
                stop = StopStrings(stops)
                out = "".join(stop.push(piece) for piece in pieces)
                shown.add(out + stop.finish())
        assert len(shown) == 1, (stops, shown)
        (only,) = shown
        assert text.startswith(only)
        assert not any(s in only for s in stops)


def test_the_stop_string_that_ends_first_wins():
    stop = StopStrings(["abcd", "c"])
    assert stop.push("xabcd") == "xab"
    assert stop.found
    assert stop.push("more") == ""


def test_nothing_is_held_back_that_cannot_become_a_stop_string():
    stop = StopStrings(["aab"])
    assert [stop.push(c) for c in "aaac"] == ["", "", "a", "aac"]


def test_close_gives_the_sequence_back_once():
    closed = []
    decoder = FakeDecoder(ids("abcdef"), 2)
    generation = Generation(
        decoder, FakeTokenizer(), FakeSequence(), [1, 2], SamplingParams(), on_close=lambda: closed.append(1)
    )
    next(generation)
    generation.close()
    generation.close()
    assert closed == [1]
    assert list(generation) == []
    assert generation.finish_reason is None


@pytest.mark.parametrize("fail_at", [0, 2])
def test_an_error_gives_the_sequence_back(fail_at):
    closed = []
    decoder = FakeDecoder(ids("abcdef"), 2, fail_at=fail_at)
    generation = Generation(
        decoder, FakeTokenizer(), FakeSequence(), [1, 2], SamplingParams(), on_close=lambda: closed.append(1)
    )
    with pytest.raises(KeyboardInterrupt):
        generation.read()
    assert closed == [1]


def test_the_end_gives_the_sequence_back():
    closed = []
    decoder = FakeDecoder([0, EOS], 2)
    generation = Generation(
        decoder, FakeTokenizer(), FakeSequence(), [1, 2], SamplingParams(), on_close=lambda: closed.append(1)
    )
    generation.read()
    assert closed == [1]


def test_fingerprint_is_sha256_of_the_sampled_rows():
    generation, decoder = answer([*ids("ab"), EOS])
    generation.read()
    sequence, expected = FakeSequence(), hashlib.sha256()
    for tokens in ([1, 2, 3], [0], [1]):
        sequence.tokens.extend(tokens)
        expected.update(decoder.row(sequence).astype("<f4").tobytes())
    assert generation.fingerprint.hexdigest() == expected.hexdigest()


def test_fingerprint_sees_every_bit():
    logits = np.arange(5, dtype=np.float32)
    one, other = Fingerprint(), Fingerprint()
    one.update(logits)
    logits[4] = np.nextafter(logits[4], np.float32(9))
    other.update(logits)
    assert one.hexdigest() != other.hexdigest()


def test_logprobs_come_with_the_steps():
    generation, _ = answer([*ids("a"), EOS], logprobs=3)
    step = next(generation)
    assert step.top_logprobs[0] == (0, step.logprob)
    assert len(step.top_logprobs) == 3
    assert -1 < step.logprob < 0


def test_penalties_see_prompt_and_answer():
    # The script's token has 9.0 each time; the penalty takes it below the noise once it has been said.
    generation, _ = answer([4, 4, 4, 4], presence_penalty=50.0, max_tokens=2)
    generation.read()
    assert generation.token_ids[0] == 4 and generation.token_ids[1] != 4
    generation, _ = answer([2, 2], repetition_penalty=100.0, max_tokens=1)
    generation.read()
    assert generation.token_ids[0] != 2


def test_the_same_seed_writes_the_same_text():
    def write(seed):
        generation, _ = answer([], seed=seed, temperature=20.0, max_tokens=20, ignore_eos=True)
        generation.read()
        return generation.token_ids

    assert write(1) == write(1)
    assert write(1) != write(2)


def test_a_drawn_seed_can_be_used_again():
    generation, _ = answer([], temperature=20.0, max_tokens=20, ignore_eos=True)
    generation.read()
    again, _ = answer([], temperature=20.0, max_tokens=20, ignore_eos=True, seed=generation.seed)
    again.read()
    assert generation.token_ids == again.token_ids


class Alternating:
    """Allows the two ids in turn and is complete after `length` tokens."""

    def __init__(self, length):
        self.left = length
        self.turn = 0

    def allowed(self):
        return np.array([3 + self.turn])

    def accept(self, token_id):
        assert token_id == 3 + self.turn
        self.turn = 1 - self.turn
        self.left -= 1
        return self.left == 0


def test_a_guide_decides_what_may_come_and_when_it_is_complete():
    response = Answer(
        FakeTokenizer(), [1, 2], SamplingParams(), vocab_size=VOCAB, context_length=64, guide=Alternating(3)
    )
    row = np.zeros(VOCAB, np.float32)
    reasons = []
    while not response.finish_reason:
        reasons.append(response.push(row).finish_reason)
    assert response.text == "ded"
    assert reasons == [None, None, "stop"]


def test_tokens_are_those_of_prompt_and_answer():
    response = Answer(FakeTokenizer(), [1, 2, 3], SamplingParams(), vocab_size=VOCAB, context_length=64)
    response.token_ids += [4, 5, 6]
    everything = [1, 2, 3, 4, 5, 6]
    for start in range(7):
        assert response.tokens(start) == everything[start:]
        for stop in range(start, 7):
            assert response.tokens(start, stop) == everything[start:stop]


def share(lengths, max_pass_tokens, shared_prefill=None):
    """Tokens of each task that has so many left, by its place."""
    tasks = [
        Task(Answer(FakeTokenizer(), [1] * length, SamplingParams(), vocab_size=VOCAB, context_length=1000))
        for length in lengths
    ]
    return [(tasks.index(task), count) for task, count in share_out(tasks, max_pass_tokens, shared_prefill)]


def test_a_pass_is_shared_out_in_equal_parts():
    assert share([300], 128) == [(0, 128)]
    assert share([100], 128) == [(0, 100)]
    assert share([1, 300, 1], 128) == [(0, 1), (1, 126), (2, 1)]
    assert share([1, 300, 1], 128, 16) == [(0, 1), (1, 16), (2, 1)]
    assert share([300, 200], 128, 16) == [(0, 64), (1, 64)], "nobody waits for its next token"
    assert share([300, 10, 200], 130) == [(0, 60), (1, 10), (2, 60)], "what a short prompt leaves is the others'"
    assert share([1, 1, 50], 2) == [(0, 1), (1, 1)]
    assert share([], 128) == []


def test_a_piece_of_a_prompt_asks_for_no_logits():
    generation, decoder = answer([*ids("ab"), EOS], prompt=tuple(range(1, 11)))
    decoder.max_pass_tokens = 4
    wanted, extend = [], decoder.extend
    decoder.extend = lambda batch, rows, *more: wanted.append(rows) or extend(batch, rows, *more)
    assert generation.read() == "ab"
    assert decoder.passes == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10], [0], [1]]
    assert wanted == [[0], [0], [1], [1], [1]]


def test_a_task_without_a_sequence_cannot_be_computed():
    task = Task(Answer(FakeTokenizer(), [1, 2], SamplingParams(), vocab_size=VOCAB, context_length=64))
    assert task.remaining == 2
    with pytest.raises(ValueError, match="without a sequence"):
        compute(FakeDecoder([], 2), [(task, 2)])
