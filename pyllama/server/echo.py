"""A prompt as `echo` shows it: its text, and where in it each of its tokens begins."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyllama.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Echo:
    """text, and the offsets of the prompt's tokens in it, in characters."""

    text: str
    offsets: tuple[int, ...]


NOTHING = Echo("", ())


def echo_of(prompt: str | list[int], ids: list[int], tokenizer: "Tokenizer") -> Echo:
    """A prompt's echo: a text as it was sent, token ids as what they stand for, control tokens among them.

    prompt  as it was sent
    ids     its tokens, those that the tokenizer put around a text among them
    """
    shown = range(len(ids))
    if isinstance(prompt, str):
        # What is put around a text is no part of it.
        own = tokenizer.encode(prompt, add_special_tokens=False, parse_special=True)
        starts = [at for at in range(len(ids) - len(own) + 1) if ids[at : at + len(own)] == own]
        if starts:
            shown = range(starts[-1], starts[-1] + len(own))
    stream = tokenizer.stream(skip_special_tokens=False)
    text, offsets = "", []
    for index, token_id in enumerate(ids):
        offsets.append(len(text))
        if index in shown:
            text += stream.push(token_id)
    text += stream.finish()
    if isinstance(prompt, str):  # a normalizer may have changed it on the way to tokens
        text, offsets = prompt, [min(offset, len(prompt)) for offset in offsets]
    return Echo(text, tuple(offsets))
