"""Gemma 4's calls: call:name{key:value,...}, with bare keys, strings in marks of their own, and else JSON's values.

reading.py and scan.py for one family, whose calls are no JSON. JSON after the name is read as well: a forced call is
written so.
"""

import json
import re
from typing import Any

from pyllama.server.tools.reading import Call, Offered, loaded

_QUOTE = '<|"|>'
_MAX_DEPTH = 64
_HEAD = re.compile(r"\s*call:\s*([^\s{}]+)\s*(?=\{)")
# What is not written as in JSON, and JSON's own strings, in which nothing is to be changed. Linear in the text: a
# string that does not end is one to the end, and a word is looked at from its beginning alone.
_UNLIKE_JSON = re.compile(
    r'<\|"\|>(?P<text>.*?)<\|"\|>|"(?:[^"\\]|\\.)*+"?'
    r'|(?<![^\s:{}\[\],"])(?P<key>[^\s:{}\[\],"]++)(?=\s*:)|(?P<none>\bNone\b)'
    r"|(?<![\s{\[,])(?P<comma>\s*,)(?=\s*[}\]])",
    re.DOTALL,
)


class GemmaScan:
    """One call as it comes: whether it may still be one, and whether it stands outside of strings."""

    open = False

    def __init__(self, names: Offered):
        self._heads = [f"call:{name}{{" for name in names]
        self._text = ""
        self._known = False  # whether the name is an offered one
        self._quoted = False
        self._last = ""  # the last characters, in which a mark may have begun

    @property
    def between(self) -> bool:
        return self._known and not self._quoted

    def feed(self, text: str) -> bool:
        if not self._known:
            self._text += text
            head = self._text.lstrip()
            if not any(known.startswith(head) or head.startswith(known) for known in self._heads):
                return False
            self._known = any(head.startswith(known) for known in self._heads)
        for char in text:
            self._last = (self._last + char)[-len(_QUOTE) :]
            if self._last == _QUOTE:
                self._quoted, self._last = not self._quoted, ""
        return True


def read_gemma(text: str, offered: Offered) -> list[Call] | None:
    """The call that a text is, if it is one of a function that is offered."""
    head = _HEAD.match(text)
    if head is None or head[1] not in offered:
        return None
    arguments = loaded(_UNLIKE_JSON.sub(_as_json, text[head.end() :]))
    if arguments is None or not _is_within(_MAX_DEPTH, arguments):
        return None
    return [(head[1], arguments)]


def _is_within(depth: int, value: Any) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_is_within(depth - 1, item) for item in inside)


def _as_json(found: re.Match[str]) -> str:
    text = found["text"] if found["text"] is not None else found["key"]
    if text is not None:
        return json.dumps(text)
    return "null" if found["none"] else "" if found["comma"] else found[0]
