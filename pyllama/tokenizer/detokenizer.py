"""Token ids to text, one at a time, never showing half a character.

A character's bytes may lie in several tokens. Bytes are held back while they can still become a character, and
turned into U+FFFD once they cannot.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable

_ERRORS = "pyllama-replace-each"


def _replace_each(error: UnicodeError) -> tuple[str, int]:
    """One U+FFFD for each bad byte, as SentencePiece writes them; Python's "replace" has one for a cut-off run."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_ERRORS, _replace_each)


class StreamDecoder:
    """push(id) gives the text that has become certain; finish() gives the rest. Their sum is decode(ids).

    token_bytes     id -> bytes; empty for the tokens that are not shown
    strip_space     drop one space at the very start (SentencePiece's dummy prefix)
    replace_each    one U+FFFD for each invalid byte instead of each cut-off run
    """

    def __init__(self, token_bytes: Callable[[int], bytes], *, strip_space: bool, replace_each: bool) -> None:
        self._token_bytes = token_bytes
        self._strip_space = strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(_ERRORS if replace_each else "replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes; often "" in the middle of a character."""
        return self._shown(self._decoder.decode(self._token_bytes(token_id)))

    def finish(self) -> str:
        """What is still held back, as U+FFFD: no more bytes will come."""
        return self._shown(self._decoder.decode(b"", final=True))

    def _shown(self, text: str) -> str:
        if text and self._strip_space:
            self._strip_space = False
            return text.removeprefix(" ")
        return text
