"""Gemma 4's calls: call:name{key:value,...}, with bare keys, strings in marks of their own, and else JSON's values.

reading.py and scan.py for one family, whose calls are no JSON. JSON after the name is read as well: a forced call is
written so.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

_QUOTE = '<|"|>'
_HEAD = re.compile(r"\s*call:\s*([^\s{}]+)\s*(?=\{)")
_KEY = re.compile(r'\s*(?:<\|"\|>(.*?)<\|"\|>|"((?:[^"\\]|\\.)*)"|([^\s:{}\[\],"]+))\s*:', re.DOTALL)
_BARE = re.compile(r"[^\s,{}\[\]]+")
_MAX_DEPTH = 64


class GemmaScan:
    """One call as it comes: whether it may still be one, and whether it stands outside of strings."""

    open = False

    def __init__(self, names: Mapping[str, Any]):
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


def read_gemma(text: str, offered: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]] | None:
    """The call that a text is, if it is one of a function that is offered."""
    head = _HEAD.match(text)
    if head is None or head[1] not in offered:
        return None
    body = text[head.end() :].strip()
    try:
        arguments, end = _value(body, 0, 0)
    except (ValueError, IndexError):
        return None
    if end != len(body) or not isinstance(arguments, dict):
        return None
    return [(head[1], arguments)]


def _value(text: str, at: int, depth: int) -> tuple[Any, int]:
    """The value at a place, and where it ends. Raises ValueError or IndexError where there is none."""
    if depth > _MAX_DEPTH:
        raise ValueError("too deep")
    at = _spaces(text, at)
    if text.startswith(_QUOTE, at):
        end = text.index(_QUOTE, at + len(_QUOTE))
        return text[at + len(_QUOTE) : end], end + len(_QUOTE)
    if text[at] == '"':
        return json.JSONDecoder().raw_decode(text, at)
    if text[at] == "{":
        return _object(text, at, depth)
    if text[at] == "[":
        return _list(text, at, depth)
    bare = _BARE.match(text, at)
    if bare is None:
        raise ValueError("no value")
    word = bare[0]
    if word == "None":
        return None, bare.end()
    return json.loads(word, parse_constant=_refuse), bare.end()


def _object(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    at = _spaces(text, at + 1)
    while text[at] != "}":
        key = _KEY.match(text, at)
        if key is None:
            raise ValueError("no key")
        name = next(part for part in key.groups() if part is not None)
        found[name], at = _value(text, key.end(), depth + 1)
        at = _after(text, at, "}")
    return found, at + 1


def _list(text: str, at: int, depth: int) -> tuple[list[Any], int]:
    found = []
    at = _spaces(text, at + 1)
    while text[at] != "]":
        value, at = _value(text, at, depth + 1)
        found.append(value)
        at = _after(text, at, "]")
    return found, at + 1


def _after(text: str, at: int, closing: str) -> int:
    """Past a comma, or at what closes."""
    at = _spaces(text, at)
    if text[at] == ",":
        return _spaces(text, at + 1)
    if text[at] != closing:
        raise ValueError("neither a comma nor the end")
    return at


def _spaces(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
