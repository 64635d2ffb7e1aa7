"""The public API as a type checker sees it from a program of a user's. Checked by mypy --strict; never run."""

from collections.abc import Iterator
from typing import assert_type

import numpy as np

import pyllama


def everything() -> None:
    with pyllama.load("smollm2", memory="2G", context_length=1024, kv_dtype="f16", threads=2) as model:
        assert_type(model, pyllama.Model)
        assert_type(model.context_length, int)
        assert_type(model.bytes_read, int)
        assert_type(model.config.hidden_size, int)
        assert_type(model.forward([1, 2, 3]), np.ndarray)
        assert_type(model.encode_prompt("hello"), list[int])
        answer = model.generate([{"role": "user", "content": "Why?"}], max_tokens=3, temperature=0.5, stop=["x"])
        assert_type(answer, pyllama.Generation)
        for step in answer:
            assert_type(step, pyllama.Step)
            assert_type(step.text, str)
            assert_type(step.finish_reason, str | None)
        assert_type(answer.read(), str)
        assert_type(answer.token_ids, list[int])
        with model.chat("Be brief.", seed=1) as chat:
            assert_type(chat, pyllama.Chat)
            assert_type(chat.send("Hello"), pyllama.Generation)
            assert_type(chat.messages, list[dict[str, str]])


def texts(model: pyllama.Model) -> Iterator[str]:
    try:
        yield from (step.text for step in model.generate("Once", logprobs=2))
    except pyllama.ContextOverflowError as error:
        yield str(error)


assert_type(pyllama.__version__, str)
pyllama.lod  # type: ignore[attr-defined]  # a name that is none: that the comment is needed is what is checked
params = pyllama.SamplingParams(temperature=0.0, max_tokens=5)
assert_type(params.temperature, float)
