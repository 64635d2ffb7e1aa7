"""Steps, and the tokens of a prompt, to the two shapes OpenAI reports log-probabilities in."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyllama.generate import Step
from pyllama.sampler import Sample

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


def of_chat(step: Step, tokenizer: "Tokenizer", top: int) -> dict[str, Any]:
    """An element of choices[].logprobs.content."""
    return {
        **_entry(step.token_id, step.logprob, tokenizer),
        "top_logprobs": [_entry(token_id, logprob, tokenizer) for token_id, logprob in step.top_logprobs[:top]],
    }


def _entry(token_id: int, logprob: float | None, tokenizer: "Tokenizer") -> dict[str, Any]:
    data = tokenizer.token_bytes(token_id)
    return {"token": _text(data), "logprob": logprob, "bytes": list(data)}


def of_completion(
    tokens: Sequence[Step | Sample | int], offsets: list[int], tokenizer: "Tokenizer", top: int
) -> dict[str, Any]:
    """choices[].logprobs of a completion.

    tokens   steps of the answer, or of an echoed prompt what its tokens scored; a bare id for its first token, that
             comes after nothing and has no probability
    offsets  where in the text each token's begins, in characters
    """

    def text(token_id: int) -> str:
        return _text(tokenizer.token_bytes(token_id))

    ids = [token if isinstance(token, int) else token.token_id for token in tokens]
    scored = [None if isinstance(token, int) else token for token in tokens]
    return {
        "tokens": [text(token_id) for token_id in ids],
        "token_logprobs": [token and token.logprob for token in scored],
        "top_logprobs": [token and {text(i): logprob for i, logprob in _top(token)[:top]} for token in scored]
        if top
        else None,
        "text_offset": offsets,
    }


def _top(token: Step | Sample) -> tuple[tuple[int, float], ...]:
    return token.top if isinstance(token, Sample) else token.top_logprobs
