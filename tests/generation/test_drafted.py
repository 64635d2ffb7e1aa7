"""Drafting changes nothing but time: tokens, texts, log-probabilities, fingerprints and pages are those without it."""

import random

import drafters
import numpy as np
import pytest
import tiny
from conftest import END

import pyllama
from pyllama.errors import PyllamaError
from pyllama.generation import Generation, Tree
from pyllama.generation.sampler import SamplingParams

VOCAB = 101  # tiny.tiny_config's
SHAPES = [
    {},
    {"num_key_value_heads": 1},
    {"model_type": "qwen2"},
    {"model_type": "qwen3"},
    {"model_type": "mistral", "sliding_window": 40},
    {"model_type": "lfm2"},
    {"model_type": "qwen3_5_text"},
    {"model_type": "lfm2_moe"},
    {"model_type": "qwen3_5_moe_text"},
]
SAMPLING = [
    {},
    {"temperature": 0.8},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.7, "repetition_penalty": 1.2, "frequency_penalty": 0.5, "presence_penalty": 0.3},
    {"temperature": 0.9, "logit_bias": {3: 4.0, 7: -50.0}, "logprobs": 3},
]


@pytest.fixture(scope="module", params=range(len(SHAPES)), ids=lambda i: str(SHAPES[i].get("model_type", f"llama{i}")))
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drafted")
    config = tiny.tiny_config(**SHAPES[request.param])
    tiny.write_huggingface(folder, config, tiny.random_tensors(config, seed=request.param))
    with pyllama.load(folder, context_length=160) as model:
        yield model


def answered(model, prompt_ids, drafting, steps=None, **options):
    """What an answer was in the end, pass by pass; steps: close it after so many."""
    model.drafting = drafting
    try:
        before = model.passes
        generation = model.generate(prompt_ids, fingerprint=True, ignore_eos=True, **options)
        taken = []
        for step in generation:
            taken.append(step)
            if len(taken) == steps:
                generation.close()
                break
        assert [step.token_id for step in taken] == generation.token_ids
        passes = model.passes - before
        return taken, generation.fingerprint.hexdigest(), generation.finish_reason, generation, passes
    finally:
        model.drafting = None


@pytest.mark.parametrize("sampling", SAMPLING, ids=lambda s: "+".join(s) or "greedy")
def test_answers_are_those_of_no_drafter(model, sampling):
    rng = random.Random(str(sampling))
    used = model.decoder.cache.pages.used
    for case in range(4):
        prompt_ids = [rng.randrange(VOCAB) for _ in range(rng.choice((1, 5, 31, 32, 33, 70)))]
        options = {**sampling, "seed": case, "max_tokens": rng.choice((1, 2, 9, 40, None))}
        plain = answered(model, prompt_ids, None, **options)
        texts = {tuple(prompt_ids): plain[3].token_ids}
        for drafting in (
            drafters.seer(texts, rng.choice((1, 3, 8, 40))),
            drafters.half_seer(texts, case, VOCAB),
            drafters.half_seer(texts, -case, VOCAB, nodes=60),
            drafters.fool(case),
        ):
            drafted = answered(model, prompt_ids, drafting, **options)
            assert drafted[:3] == plain[:3]
            assert drafted[4] <= plain[4]
            assert sum(steps for _, steps in drafting.told) == len(plain[0])
            assert len(drafting.forgotten) == 1
            assert drafted[3].accepted_tokens <= drafted[3].proposed_tokens
            assert model.decoder.cache.pages.used == used


def test_a_seer_saves_the_passes_it_foresees(model):
    plain = answered(model, [1, 2, 3], None, max_tokens=40)
    seen = answered(model, [1, 2, 3], drafters.seer({(1, 2, 3): plain[3].token_ids}, 8), max_tokens=40)
    assert seen[:3] == plain[:3]
    assert seen[4] == 5  # 9 tokens a pass
    assert seen[3].accepted_tokens == seen[3].proposed_tokens == 35


@pytest.mark.parametrize("steps", [1, 2, 5, 7])
def test_an_answer_closed_early_is_as_long_as_what_was_taken(model, steps):
    texts = {(9, 8): answered(model, [9, 8], None, max_tokens=30)[3].token_ids}
    plain = answered(model, [9, 8], None, steps, max_tokens=30)
    drafted = answered(model, [9, 8], drafters.seer(texts), steps, max_tokens=30)
    assert drafted[0] == plain[0]
    assert drafted[1] == plain[1]
    assert drafted[3].text == plain[3].text


def test_a_stop_string_ends_it_in_the_midst_of_a_branch(chat_folder):
    with pyllama.load(chat_folder, context_length=128) as model:
        plain = answered(model, [1, 2, 3], None, max_tokens=30)
        text = plain[3].text
        texts = {(1, 2, 3): plain[3].token_ids}
        for start in range(0, len(text) - 3, 4):
            options = {"max_tokens": 30, "stop": [text[start : start + 3]]}
            expected = answered(model, [1, 2, 3], None, **options)
            assert answered(model, [1, 2, 3], drafters.seer(texts, 12), **options)[:3] == expected[:3]


def test_what_ends_the_answer_is_not_proposed(chat_folder):
    with pyllama.load(chat_folder, context_length=128) as model:
        seen = []

        def tree_of(task, room):
            tree = drafters.chain([END, 5])
            tree.add(-1, 6, 0.1)
            seen.append(task)
            return tree

        model.drafting = drafters.Scripted(tree_of)
        model.generate([1, 2], max_tokens=3).read()
        assert seen[0].proposed <= 3  # 6, and never END or what follows it


class Picky:
    """A guide that lets every third id come next, and can be asked beforehand."""

    def __init__(self, far=True):
        self.taken = []
        if far:
            self.fitting = self._fitting

    def allowed(self):
        return np.arange(len(self.taken) % 3, VOCAB, 3)

    def accept(self, token_id):
        assert token_id % 3 == len(self.taken) % 3
        self.taken.append(token_id)
        return len(self.taken) == 25

    def _fitting(self, token_ids):
        for number, token_id in enumerate(token_ids):
            if token_id % 3 != (len(self.taken) + number) % 3 or len(self.taken) + number >= 24:
                return number
        return len(token_ids)


def test_a_guide_says_what_may_be_proposed(model):
    plain = answered(model, [4, 5], None, guide=Picky(), temperature=0.5, seed=1)
    assert plain[2] == "stop"
    texts = {(4, 5): plain[3].token_ids}
    for drafting in (drafters.seer(texts), drafters.half_seer(texts, 3, VOCAB), drafters.fool(1)):
        assert answered(model, [4, 5], drafting, guide=Picky(), temperature=0.5, seed=1)[:3] == plain[:3]
    assert answered(model, [4, 5], drafters.seer(texts), guide=Picky(), temperature=0.5, seed=1)[4] < 5


def test_nothing_is_proposed_under_a_guide_that_cannot_be_asked(model):
    plain = answered(model, [4, 5], None, guide=Picky(far=False))
    drafting = drafters.seer({(4, 5): plain[3].token_ids})
    drafted = answered(model, [4, 5], drafting, guide=Picky(far=False))
    assert drafted[:3] == plain[:3]
    assert drafted[3].proposed_tokens == 0


def test_nothing_is_proposed_while_a_prompt_is_scored(model):
    answers = []
    for drafting in (None, drafters.fool(5)):
        sequence = model.new_sequence()
        generation = Generation(
            model.decoder, model.tokenizer, sequence, list(range(50)), SamplingParams(max_tokens=12),
            prompt_logprobs=2, drafting=drafting,
        )  # fmt: skip
        generation.read()
        answers.append((generation.token_ids, generation._answer.scored))
        sequence.close()
    assert answers[0] == answers[1]


def test_a_pass_that_fails_leaves_text_and_pages_as_they_were(model):
    used = model.decoder.cache.pages.used
    plain = answered(model, [1, 2, 3], None, max_tokens=20)
    model.drafting = drafters.half_seer({(1, 2, 3): plain[3].token_ids}, 1, VOCAB)
    calls = []

    def now_and_then(layer):
        calls.append(layer)
        if len(calls) == 7:
            raise KeyboardInterrupt

    model.decoder.on_layer = now_and_then
    try:
        sequence = model.new_sequence()
        generation = Generation(
            model.decoder, model.tokenizer, sequence, [1, 2, 3], SamplingParams(max_tokens=20, ignore_eos=True),
            drafting=model.drafting,
        )  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            generation.read()
        length = sequence.length
        assert generation.token_ids == plain[3].token_ids[: len(generation.token_ids)]
        assert length == 2 + len(generation.token_ids)
        again = Generation(
            model.decoder, model.tokenizer, sequence, [1, 2, 3, *generation.token_ids],
            SamplingParams(max_tokens=20 - len(generation.token_ids), ignore_eos=True), drafting=model.drafting,
        )  # fmt: skip
        model.decoder.on_layer = None
        model.drafting = again._drafting = drafters.fool(3)
        again.read()
        assert generation.token_ids + again.token_ids == plain[3].token_ids
        sequence.close()
    finally:
        model.decoder.on_layer = model.drafting = None
    assert model.decoder.cache.pages.used == used


def test_two_answers_taken_in_turns_keep_apart(model):
    prompts = ([3, 1, 4], [1, 5, 9, 2])
    texts = {tuple(p): answered(model, p, None, max_tokens=24)[3].token_ids for p in prompts}
    model.drafting = drafters.half_seer(texts, 8, VOCAB)
    try:
        running = [model.generate(p, max_tokens=24, ignore_eos=True) for p in prompts]
        while [step for g in running if (step := next(g, None))]:
            pass
        assert [g.token_ids for g in running] == list(texts.values())
    finally:
        model.drafting = None


def test_a_chat_goes_on_as_without_a_drafter(chat_folder):
    with pyllama.load(chat_folder, context_length=256) as model:
        talks = []
        for drafting in (None, drafters.fool(2), drafters.Scripted(lambda task, room: drafters.chain([5] * 8))):
            model.drafting = drafting
            with model.chat("be brief", max_tokens=12) as chat:
                for text in ("hello", "and again"):
                    chat.send(text).read()
                stopped = chat.send("more")
                next(stopped), next(stopped)
                stopped.close()
                chat.send("last").read()
                talks.append(chat.messages)
        assert talks[0] == talks[1] == talks[2]


def test_an_error_of_the_logits_is_told(model, monkeypatch):
    extend = model.decoder.extend

    def broken(*arguments, **options):
        logits, rows = extend(*arguments, **options)
        logits[0, 3] = np.nan
        return logits, rows

    used = model.decoder.cache.pages.used
    monkeypatch.setattr(model.decoder, "extend", broken)
    with pytest.raises(PyllamaError, match="not finite|finite"):
        answered(model, [1, 2], drafters.Scripted(lambda task, room: drafters.chain([1, 2, 3])), max_tokens=5)
    assert model.decoder.cache.pages.used == used


def test_an_empty_tree_is_no_tree(model):
    plain = answered(model, [7], None, max_tokens=6)
    drafted = answered(model, [7], drafters.Scripted(lambda task, room: Tree()), max_tokens=6)
    assert drafted[:3] == plain[:3]
    assert drafted[4] == plain[4]
