"""echo with logprobs: a prompt's own log-probabilities, as lm-evaluation-harness asks for them."""

import json
import threading

import numpy as np
import pytest
from conftest import END, TURN
from running_server import running

pytest.importorskip("starlette")

from pyllama.generation import answer as answer_module

SCORE = {"echo": True, "logprobs": 2, "max_tokens": 1, "temperature": 0}
PROMPTS = [
    "hello and",
    "x",
    "é😀 ñ",
    "<|im_start|>user\nhello<|im_end|>\n",
    " hello \n\n and",
    "hello and " * 20,
    "\u0301a\u200d",
]


def logprobs_of(model, ids):
    """float64 (T, vocab_size): log-softmax of what the model computes."""
    logits = model.forward(ids).astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def check(choice, model, ids, top, max_tokens):
    """A choice's log-probabilities against the model's; how many tokens of the prompt there are."""
    got, expected = choice["logprobs"], logprobs_of(model, ids)
    count = len(ids)
    assert {len(got[name]) for name in ("tokens", "token_logprobs", "text_offset")} == {count + max_tokens}
    assert got["token_logprobs"][0] is None
    assert np.allclose(got["token_logprobs"][1:count], [expected[i - 1, ids[i]] for i in range(1, count)], atol=2e-5)
    if not top:
        assert got["top_logprobs"] is None
        return
    assert got["top_logprobs"][0] is None
    for position in range(1, count):
        best = np.sort(expected[position - 1])[::-1][:top]
        alternatives = got["top_logprobs"][position]
        assert 1 <= len(alternatives) <= top, "tokens of the same text are one"
        assert np.isclose(max(alternatives.values()), best[0], atol=2e-5)
        assert min(alternatives.values()) >= best[-1] - 2e-5


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("top", [0, 1, 20])
def test_a_prompt_is_scored_as_the_model_scores_it(server, reference, prompt, top):
    ids = reference.encode_prompt(prompt)
    for max_tokens in (1, 3, 0):
        body = SCORE | {"logprobs": top, "max_tokens": max_tokens, "ignore_eos": True}
        answer = server.post("/v1/completions", body | {"prompt": prompt})
        (choice,) = answer["choices"]
        check(choice, reference, ids, top, max_tokens)
        assert answer["usage"]["completion_tokens"] == max_tokens
        assert answer["usage"]["prompt_tokens"] == len(ids)
        assert choice["text"].startswith(prompt) and (max_tokens or choice["text"] == prompt)
        assert choice["finish_reason"] == "length"
        given = server.post("/v1/completions", body | {"prompt": ids})["choices"][0]
        assert given["logprobs"] == choice["logprobs"] and given["text"] == choice["text"]
    alone = server.post("/v1/completions", body | {"prompt": prompt, "max_tokens": 3, "echo": False})["choices"][0]
    assert (
        answer["choices"][0]["text"] + alone["text"]
        == server.post(
            "/v1/completions", {"prompt": prompt, "echo": True, "max_tokens": 3, "temperature": 0, "ignore_eos": True}
        )["choices"][0]["text"]
    )


def test_offsets_are_of_characters(server, reference):
    """A token in the middle of a character begins where the character does."""
    prompt = "aé😀<|im_start|>b"
    choice = server.post("/v1/completions", SCORE | {"prompt": prompt, "max_tokens": 0})["choices"][0]
    ids = reference.encode_prompt(prompt)
    assert ids[7] == TURN
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 2, 2, 2, 2, 3, 15]
    assert choice["logprobs"]["tokens"][7:] == ["<|im_start|>", "b"]
    more = server.post("/v1/completions", SCORE | {"prompt": prompt, "max_tokens": 2, "ignore_eos": True})["choices"][0]
    assert more["logprobs"]["text_offset"][:9] == choice["logprobs"]["text_offset"]
    assert more["logprobs"]["text_offset"][9] == len(prompt)


def test_the_token_that_ends_the_answer_is_counted(server):
    """lm-evaluation-harness leaves out the last token of max_tokens 1, whatever it is: it must be there."""
    bias = {str(END): 100}
    for body in (SCORE, SCORE | {"echo": False}, SCORE | {"stop_token_ids": [END], "ignore_eos": True}):
        choice = server.post("/v1/completions", body | {"prompt": "hello", "logit_bias": bias})["choices"][0]
        assert choice["finish_reason"] == "stop" and choice["logprobs"]["tokens"][-1] == "<|im_end|>"
        assert len(choice["logprobs"]["tokens"]) == (2 if body["echo"] else 1)
        assert choice["text"] == ("hello" if body["echo"] else "")


def test_several_prompts_of_several_choices(server, reference):
    prompts = ["hello", "and hello and hello", "x y"]
    body = SCORE | {"prompt": prompts, "n": 3, "max_tokens": 2, "temperature": 1, "seed": 4, "ignore_eos": True}
    answer = server.post("/v1/completions", body)
    assert [choice["index"] for choice in answer["choices"]] == list(range(9))
    for index, choice in enumerate(answer["choices"]):
        check(choice, reference, reference.encode_prompt(prompts[index // 3]), 2, 2)
        assert choice["text"].startswith(prompts[index // 3])
    assert len({json.dumps(choice["logprobs"]["tokens"]) for choice in answer["choices"][:3]}) == 3
    nothing = server.post("/v1/completions", body | {"max_tokens": 0})
    assert [choice["text"] for choice in nothing["choices"]] == [prompt for prompt in prompts for _ in range(3)]
    assert nothing["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("max_tokens", [0, 1, 4])
def test_streamed_is_the_same(server, max_tokens):
    body = SCORE | {"prompt": ["hello é", "and"], "max_tokens": max_tokens, "n": 2, "seed": 1, "ignore_eos": True}
    whole = server.post("/v1/completions", body)["choices"]
    texts, reported = (
        [""] * 4,
        [{"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []} for _ in range(4)],
    )
    for event in server.events("/v1/completions", body):
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
            for name, values in (choice["logprobs"] or {}).items():
                reported[choice["index"]][name] += values
    assert texts == [choice["text"] for choice in whole]
    assert reported == [choice["logprobs"] for choice in whole]


def test_what_is_known_already_is_scored_all_the_same(server):
    """The cache has keys and values, not logits."""
    body = SCORE | {"prompt": "hello and " * 12, "max_tokens": 0}
    first = server.post("/v1/completions", body)
    again = server.post("/v1/completions", body)
    assert again["choices"] == first["choices"]
    longer = server.post("/v1/completions", body | {"prompt": body["prompt"] + "x"})["choices"][0]["logprobs"]
    assert longer["token_logprobs"][: len(first["choices"][0]["logprobs"]["tokens"])][:-1] == first["choices"][0][
        "logprobs"]["token_logprobs"][:-1]  # fmt: skip
    assert server.post("/v1/completions", body | {"echo": False, "logprobs": None, "max_tokens": 1})["usage"][
        "prompt_tokens_details"]["cached_tokens"] > 0  # fmt: skip


def test_neither_company_nor_the_bound_of_a_pass_changes_a_bit(chat_folder, monkeypatch):
    bodies = [SCORE | {"prompt": "hello and x " * (1 + 5 * i), "max_tokens": 2, "ignore_eos": True} for i in range(6)]
    found = []
    for nbytes, running_at_once in ((8 << 20, 8), (1, 8), (1, 1)):
        monkeypatch.setattr(answer_module, "SCORED_NBYTES", nbytes)
        with running(chat_folder, max_running=running_at_once) as server:
            answers = [None] * len(bodies)

            def ask(i, server=server, answers=answers):
                answers[i] = server.post("/v1/completions", bodies[i])["choices"]

            threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(bodies))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        found.append(answers)
    assert found[0] == found[1] == found[2] and None not in found[0]


def test_rows_of_logits_are_few_in_every_pass(chat_folder, monkeypatch):
    """Those of all prompts together: each row has as many numbers as the vocabulary has tokens."""
    monkeypatch.setattr(answer_module, "SCORED_NBYTES", 16 * 4 * 269)
    with running(chat_folder) as server:
        decoder, rows = server.model.decoder, []
        extend = decoder.extend
        monkeypatch.setattr(
            decoder, "extend", lambda batch, wanted, *more: (rows.append(sum(wanted)), extend(batch, wanted, *more))[1]
        )
        server.post("/v1/completions", SCORE | {"prompt": ["hello and x " * 20] * 8, "max_tokens": 0})
        assert max(rows) <= 16 + 8 and sum(rows) >= 8 * 60


def test_a_preempted_request_goes_on_where_its_scores_end(chat_folder):
    prompts = ["hello and " * 30, "x y z " * 30, "and and " * 30]
    bodies = [SCORE | {"prompt": prompt, "max_tokens": 60, "ignore_eos": True} for prompt in prompts]
    with running(chat_folder, context_length=256) as roomy:
        expected = [roomy.post("/v1/completions", body)["choices"] for body in bodies]
        page = roomy.stats.page_nbytes
    with running(chat_folder, context_length=256, kv_nbytes=page * 9) as tight:
        answers = [None] * 3
        threads = [
            threading.Thread(
                target=lambda i=i: answers.__setitem__(i, tight.post("/v1/completions", bodies[i])["choices"])
            )
            for i in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == expected and tight.stats.preemptions > 0


def test_token_ids_show_what_they_are(server, reference):
    ids = [TURN, *reference.tokenizer.encode("hello"), END]
    choice = server.post("/v1/completions", SCORE | {"prompt": ids, "max_tokens": 0})["choices"][0]
    assert choice["text"] == "<|im_start|>hello<|im_end|>" and choice["logprobs"]["text_offset"] == [0, 12, 17]
    half = server.post("/v1/completions", SCORE | {"prompt": [0xC3], "max_tokens": 0})["choices"][0]
    assert half["text"] == "\ufffd" and half["logprobs"]["tokens"] == ["bytes:\\xc3"]


def test_without_echo_or_without_logprobs(server):
    alone = server.post("/v1/completions", {"prompt": "hello", "echo": True, "max_tokens": 0})["choices"][0]
    assert (alone["text"], alone["logprobs"]) == ("hello", None)
    nothing = server.post("/v1/completions", {"prompt": "hello", "max_tokens": 0, "logprobs": 1})
    assert nothing["choices"][0]["text"] == "" and nothing["choices"][0]["logprobs"]["tokens"] == []
    assert nothing["usage"]["completion_tokens"] == 0 and nothing["choices"][0]["finish_reason"] == "length"
