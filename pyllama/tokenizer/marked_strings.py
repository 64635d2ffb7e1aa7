"""What Python and Jinja do with strings, for strings with marks: the answer is that of the text as it was.

Where the result is a part of a string it keeps its marks; where it is a number or a truth, there are none to keep.
marks.py says what marks are. Only what looks at characters is here: joining, slicing and measuring need no care.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from markupsafe import Markup, escape

from pyllama.tokenizer.marks import Marks

_SPLIT = frozenset(("split", "rsplit", "partition", "rpartition"))
_STRIP = frozenset(("strip", "lstrip", "rstrip"))
_CASE = frozenset(("capitalize", "casefold", "lower", "swapcase", "title", "upper"))
_JUDGE = frozenset("count endswith find index rfind rindex startswith".split())


def call_method(marks: Marks, text: str, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
    """text.name(*args, **kwargs)"""
    if name in _SPLIT:
        parts = getattr(marks.plain(text), name)(*marks.plain(args), **marks.plain(kwargs))
        separator = args[0] if args else kwargs.get("sep")
        return _cut(marks, text, parts, 0 if isinstance(parts, tuple) else separator and len(separator))
    if name in _STRIP:
        return strip(marks, text, name, *args)
    if name == "replace":
        return replace(marks, text, *args, **kwargs)
    if name == "removeprefix":
        return text[len(args[0]) :] if marks.plain(text).startswith(marks.plain(args[0])) else text
    if name == "removesuffix":
        length = len(args[0])
        return text[:-length] if length and marks.plain(text).endswith(marks.plain(args[0])) else text
    if name in _CASE:
        return changed(marks, text, lambda plain: getattr(plain, name)())
    if name in _JUDGE or name.startswith("is"):
        return getattr(marks.plain(text), name)(*marks.plain(args), **kwargs)
    return getattr(text, name)(*args, **kwargs)


def strip(marks: Marks, text: str, name: str = "strip", characters: str | None = None) -> str:
    plain, characters = marks.plain(text), marks.plain(characters)
    start = 0 if name == "rstrip" else len(plain) - len(plain.lstrip(characters))
    stop = len(plain) if name == "lstrip" else len(plain.rstrip(characters))
    return text[start : max(start, stop)]


def replace(marks: Marks, text: str, old: str, new: str, count: int | None = -1) -> str:
    count = -1 if count is None else count
    if not old:
        return text.replace(old, new, count)
    return new.join(_cut(marks, text, marks.plain(text).split(marks.plain(old), count), len(old)))


def changed(marks: Marks, text: str, function: Callable[[str], str]) -> str:
    """function(text), which changes letters alone: other characters are as many as before, in their order."""
    plain = marks.plain(text)
    result = function(plain)
    originals = set(marks.originals.values())
    if len(result) != len(plain) and any(map(str.isalpha, originals)):
        return function(text)
    if len(result) == len(plain):
        places: Iterable[int] = range(len(plain))
    else:
        places = (place for place, character in enumerate(plain) if character in originals)
    characters, at = list(result), iter(range(len(result)))
    for place in places:
        if plain[place] not in originals:
            next(at)
            continue
        here = next(at)
        while result[here] != plain[place] and len(result) != len(plain):
            here = next(at)
        if result[here] == plain[place]:
            characters[here] = text[place]
    return "".join(characters)


def escaped(marks: Marks, text: str) -> str:
    """For HTML, after what else was in the text has been escaped."""
    return text.translate({ord(s): str(escape(c)) for s, c in marks.originals.items() if escape(c) != c})


def escaped_beside(marks: Marks, left: Any, right: Any) -> tuple[Any, Any]:
    """The operands of left + right: beside a text for HTML, one that is none will be escaped."""
    if isinstance(left, Markup) and type(right) is str:
        return left, Markup(escaped(marks, escape(right)))
    if isinstance(right, Markup) and type(left) is str:
        return Markup(escaped(marks, escape(left))), right
    return left, right


def url_encoded(marks: Marks, text: str) -> str:
    for stand_in in marks.originals:
        text = text.replace(quote(stand_in), stand_in)
    return text.translate({ord(s): quote(c) for s, c in marks.originals.items() if quote(c) != c})


def json_unescaped(marks: Marks, text: str) -> str:
    """JSON in ASCII: marks are no characters to escape."""
    escapes = {json.dumps(stand_in)[1:-1]: stand_in for stand_in in marks.originals}
    if not escapes:
        return text
    written = "|".join(map(re.escape, escapes))
    return re.sub(rf"((?<!\\)(?:\\\\)*)({written})", lambda match: match[1] + escapes[match[2]], text)


def chosen(marks: Marks, value: Any, function: Callable[[Any], Any]) -> Any:
    """function(value), which picks or orders items without changing them."""
    known: dict[int, Any] = {}
    kept: list[Any] = []  # so that ids stay their own

    def plain(item: Any) -> Any:
        if isinstance(item, str) and not marks.is_marked(item):
            return item
        if isinstance(item, list):
            copy: Any = [plain(x) for x in item]
        elif type(item) is tuple:
            copy = tuple(plain(x) for x in item)
        elif isinstance(item, dict):
            copy = {plain(key): plain(x) for key, x in item.items()}
        elif isinstance(item, str):
            copy = marks.plain(item)
        else:
            return item
        known[id(copy)] = item
        kept.append(copy)
        return copy

    def back(item: Any) -> Any:
        if id(item) in known:
            return known[id(item)]
        if isinstance(item, list):
            return [back(x) for x in item]
        if isinstance(item, tuple):
            parts = [back(x) for x in item]
            return type(item)(*parts) if hasattr(item, "_fields") else tuple(parts)
        return item

    return back(function(plain(value)))


def key_in(marks: Marks, mapping: dict, key: str) -> str | None:
    """The key of an object that is this one but for its marks."""
    plain = marks.plain(key)
    return next((k for k in mapping if isinstance(k, str) and marks.plain(k) == plain), None)


def _cut(marks: Marks, text: str, parts: Any, between: int | None) -> Any:
    """Parts that follow each other in a text, cut out of the text with marks; None between them is white space."""
    plain = marks.plain(text)
    out, at = [], 0
    for part in parts:
        if between is None:
            at = plain.index(part, at)
        out.append(text[at : at + len(part)])
        at += len(part) + (between or 0)
    return tuple(out) if isinstance(parts, tuple) else out
