"""A chat's text that ends where its last message ends, so that an answer goes on there.

A template knows no such thing: it closes every message. So the last one is rendered with a character at its end that
nothing else has, and the text is cut there. Knows messages and text; no templates and no tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyllama.errors import RequestError

# Symbols that hardly any text has. They must be printable, or a template that shows an object would escape them.
_MARKS = tuple(map(chr, range(0x2BCA, 0x2BFF)))


class FinalMessage:
    """The last of some messages, and the mark at its end.

    messages  a copy of them with the mark
    """

    def __init__(self, messages: Sequence[Mapping[str, Any]], template: str):
        """Raises RequestError if the last message has no text that could go on."""
        content = messages[-1].get("content") if messages and isinstance(messages[-1], Mapping) else None
        if not isinstance(content, str):
            raise RequestError("continue_final_message: the last message has no text, expected one to go on with")
        taken = set(template).union(*(str(message) for message in messages))
        unused = [mark for mark in _MARKS if mark not in taken]
        if not unused:
            raise RequestError("continue_final_message: the messages use every symbol that could mark an end")
        self._mark = unused[0]
        words = content.rstrip()
        self._spaces = content[len(words) :]
        marked = {**messages[-1], "content": words + self._mark + self._spaces}
        self.messages: list[Mapping[str, Any]] = [*messages[:-1], marked]

    def cut(self, text: str) -> str:
        """The rendered text up to the mark, and the spaces after it if the template left them.

        Raises RequestError if the template does not show the message as it is.
        """
        before, mark, after = text.rpartition(self._mark)
        if not mark:
            raise RequestError("continue_final_message: the chat template does not show the last message as it is")
        return before.replace(self._mark, "") + (self._spaces if after.startswith(self._spaces) else "")
