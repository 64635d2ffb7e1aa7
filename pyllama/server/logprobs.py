"""Steps to the two shapes OpenAI reports log-probabilities in."""

from typing import TYPE_CHECKING, Any

from pyllama.generation import Step

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


def of_completion(steps: list[Step], offsets: list[int], tokenizer: "Tokenizer", top: int) -> dict[str, Any]:
    """choices[].logprobs of a completion. offsets: where in the text each token's begins."""

    def text(token_id: int) -> str:
        return _text(tokenizer.token_bytes(token_id))

    return {
        "tokens": [text(step.token_id) for step in steps],
        "token_logprobs": [step.logprob for step in steps],
        "top_logprobs": [{text(i): logprob for i, logprob in step.top_logprobs[:top]} for step in steps]
        if top
        else None,
        "text_offset": offsets,
    }
