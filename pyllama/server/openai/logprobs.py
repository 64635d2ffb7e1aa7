"""Steps to the two shapes OpenAI reports log-probabilities in."""

from typing import TYPE_CHECKING, NamedTuple

from pyllama.generation import Step
from pyllama.server.json_object import JsonObject

if TYPE_CHECKING:
    from pyllama.tokenizer import Tokenizer


def is_ending(step: Step, tokenizer: "Tokenizer") -> bool:
    """Whether the token only ended the answer: it is no part of the text, and of no report."""
    return step.finish_reason == "stop" and not step.text and step.token_id in tokenizer.eos_token_ids


def _text(data: bytes) -> str:
    """A token's text. As OpenAI has it, one that is no whole character shows its bytes, or two would look alike."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def of_chat(step: Step, tokenizer: "Tokenizer", top: int) -> JsonObject:
    """An element of choices[].logprobs.content."""
    return {
        **_entry(step.token_id, step.logprob, tokenizer),
        "top_logprobs": [_entry(token_id, logprob, tokenizer) for token_id, logprob in step.top_logprobs[:top]],
    }


def _entry(token_id: int, logprob: float | None, tokenizer: "Tokenizer") -> JsonObject:
    data = tokenizer.token_bytes(token_id)
    return {"token": _text(data), "logprob": logprob, "bytes": list(data)}


class Reported(NamedTuple):
    """A token of a completion, and where in the text its own begins."""

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    offset: int


class Echo(NamedTuple):
    """A prompt as text, and where in it each token's begins."""

    text: str
    offsets: list[int]


def echo_of(prompt: str | list[int], ids: list[int], tokenizer: "Tokenizer") -> Echo:
    """A prompt's echo: a text as it was sent, token ids as what they stand for, control tokens among them.

    prompt  as it was sent
    ids     its tokens, those that the tokenizer puts around a text among them
    """
    shown = range(len(ids))
    if isinstance(prompt, str):
        own = tokenizer.encode(prompt, add_special_tokens=False, parse_special=True)
        starts = [at for at in range(len(ids) - len(own) + 1) if ids[at : at + len(own)] == own]
        shown = range(starts[-1], starts[-1] + len(own)) if starts else shown
    stream, text, offsets = tokenizer.stream(skip_special_tokens=False), "", []
    for index, token_id in enumerate(ids):
        offsets.append(len(text))
        text += stream.push(token_id) if index in shown else ""
    text += stream.finish()
    if isinstance(prompt, str):  # a normalizer may have changed it on its way
        text, offsets = prompt, [min(offset, len(prompt)) for offset in offsets]
    return Echo(text, offsets)


def of_completion(reported: list[Reported], tokenizer: "Tokenizer", top: int) -> JsonObject:
    """choices[].logprobs of a completion. The first token of an echoed prompt has none: nothing comes before it."""

    def text(token_id: int) -> str:
        return _text(tokenizer.token_bytes(token_id))

    def alternatives(one: Reported) -> dict[str, float] | None:
        if one.logprob is None:
            return None
        found: dict[str, float] = {}
        for token_id, logprob in one.top[:top]:
            found.setdefault(text(token_id), logprob)  # of tokens that look alike the most probable
        return found

    return {
        "tokens": [text(one.token_id) for one in reported],
        "token_logprobs": [one.logprob for one in reported],
        "top_logprobs": [alternatives(one) for one in reported] if top else None,
        "text_offset": [one.offset for one in reported],
    }
