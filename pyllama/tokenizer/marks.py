"""Marks: which characters of a rendered chat came out of a message, and not out of the template.

A control token written out in a message is text; the same spelling out of the template is the token. Once both are one
string nobody can tell, so the strings of a request are marked before they are rendered: each character that a control
token begins or ends with is replaced by a stand-in, a character that occurs nowhere else. What is rendered is turned
back character for character, and a control token counts only where none of its characters was a stand-in. One
character for one: lengths, slices and positions are the ones they would have been. What a template compares or
searches is the text as it was (marked_strings.py). Knows neither templates nor tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from typing import Any

# What stands in: symbols that no language is written with. They must be printable, for a template may show a list or
# an object, and Python writes what is not printable as an escape; the private ones are for texts that use all others.
_STAND_INS = ((0x2801, 0x2900), (0x1D800, 0x1DA00), (0x1D000, 0x1D0F6), (0xE000, 0xF900), (0xF0000, 0xFFFFE))
# Roles that templates make tokens of, as in '<|' + role + '|>'.
_ROLES = frozenset(
    "assistant context control developer documents environment function human ipython model observation system tool "
    "user".split()
)
_MAX_REMEMBERED = 4096
_ESCAPE = re.compile(r"\\u([0-9A-Fa-f]{4})")


class Marks:
    """The stand-ins of one request.

    originals  stand-in -> the character it stands for
    """

    def __init__(self, originals: dict[str, str]) -> None:
        self.originals = originals
        self._back = {ord(stand_in): character for stand_in, character in originals.items()}
        self._any = re.compile("[" + "".join(originals) + "]") if originals else None

    def __bool__(self) -> bool:
        return bool(self.originals)

    def is_marked(self, text: str) -> bool:
        return self._any is not None and not text.isascii() and self._any.search(text) is not None

    def plain(self, value: Any) -> Any:
        """A text, list, tuple or object with every stand-in turned back; itself where there is none."""
        return with_texts(value, lambda text: text.translate(self._back) if self.is_marked(text) else text)


NO_MARKS = Marks({})


class Marker:
    """Marks the strings that are given to one template.

    spellings  the control tokens as text
    source     the template's text: what it says just before and after a value tells which values may become a token
    """

    def __init__(self, spellings: Collection[str], source: str) -> None:
        self._spellings = sorted({spelling for spelling in spellings if spelling})
        # Characters may be written as escapes in the template's own strings.
        self._source = source + _ESCAPE.sub(lambda match: chr(int(match[1], 16)), source)
        self._ends: set[str] = set()
        loose = []  # spelled without a character that can be marked wherever it stands
        for spelling in self._spellings:
            usable = [character for character in spelling if _is_usable(character)]
            self._ends.update(c for c in (spelling[0], spelling[-1]) if c in usable)
            if not {spelling[0], spelling[-1]} & self._ends:
                if usable:
                    self._ends.add(usable[0])
                else:
                    loose.append(spelling)
        self._loose = re.compile("(?=(" + "|".join(map(re.escape, loose)) + "))") if loose else None
        self._joined = "\0".join(self._spellings)
        self._longest = max(map(len, self._spellings), default=0)
        self._fills = lru_cache(_MAX_REMEMBERED)(self._stands_in_a_token)
        self._is_border = lru_cache(_MAX_REMEMBERED)(self._is_beside_a_value)

    def mark(self, values: dict[str, Any]) -> tuple[dict[str, Any], Marks]:
        """A copy of the variables a template is given, "messages" among them, with marks; and the marks."""
        if not self._spellings:
            return values, NO_MARKS
        taken: set[str] = set()
        for text in texts_of(values):
            if not text.isascii():
                taken.update(text)
        stand_ins = (c for low, high in _STAND_INS for c in map(chr, range(low, high)) if c not in taken)
        unused = (character for character in stand_ins if character not in self._source)
        # One character has the same stand-in everywhere: equal texts stay equal.
        stand_in_of: dict[str, str] = {character: next(unused) for character in sorted(self._ends)}
        table = {ord(character): stand_in for character, stand_in in stand_in_of.items()}
        used: set[str] = set()

        def stand_in(character: str) -> str:
            if character not in stand_in_of:
                stand_in_of[character] = next(unused)
            used.add(character)
            return stand_in_of[character]

        def marked(text: str) -> str:
            out = text
            found = self._ends.intersection(text) if len(text) > 64 else [c for c in text if c in self._ends]
            if found:
                used.update(found)
                out = text.translate(table)
            if self._loose is not None:
                places = {match.start() + _visible(match[1]) for match in self._loose.finditer(text)}
                if places:
                    out = "".join([stand_in(text[i]) if i in places else c for i, c in enumerate(out)])
            if not found and self._fills_a_token(text):
                at = _visible(text)
                out = out[:at] + stand_in(text[at]) + out[at + 1 :]
            return out

        def message(value: dict[str, Any]) -> dict[str, Any]:
            return {
                marked(key): item if key == "role" and item in _ROLES else with_texts(item, marked)
                for key, item in value.items()
            }

        result = {  # the names of the variables stay
            name: [message(one) for one in value] if name == "messages" else with_texts(value, marked)
            for name, value in values.items()
        }
        return result, Marks({stand_in_of[character]: character for character in sorted(used)})

    def _fills_a_token(self, text: str) -> bool:
        """Whether the template may put a text between two pieces of its own that make a token of it."""
        text = text.strip()
        return bool(text) and len(text) < self._longest and text in self._joined and self._fills(text)

    def _stands_in_a_token(self, text: str) -> bool:
        return any(
            self._is_border(spelling[:at], True) and self._is_border(spelling[at + len(text) :], False)
            for spelling in self._spellings
            for at in _places(spelling, text)
        )

    def _is_beside_a_value(self, piece: str, before: bool) -> bool:
        """Whether the template has a piece just before, or after, a place where a value is put."""
        if not piece:
            return True
        text = re.escape(piece)
        pattern = rf"{text}(?:['\"%{{]|\s*\{{)" if before else rf"(?:['\"}}]|\}}\s*|%[a-z]){text}"
        return piece in self._source and re.search(pattern, self._source) is not None


def _is_usable(character: str) -> bool:
    """Whether a character may be replaced wherever it stands: nothing that templates strip, change or quote."""
    return not (character.isalnum() or character.isspace() or character in "_\"'\\")


def _visible(text: str) -> int:
    """The first place that is no white space; 0 where all is."""
    return len(text) - len(text.lstrip()) if text.strip() else 0


def _places(text: str, part: str) -> Iterator[int]:
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a value made of lists, tuples and objects, with every text in it changed, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [with_texts(item, change) for item in value]
    if type(value) is tuple:
        return tuple(with_texts(item, change) for item in value)
    if isinstance(value, dict):
        return {with_texts(key, change): with_texts(item, change) for key, item in value.items()}
    return value


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a value made of lists and objects, keys too."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            waiting += item.keys()
            waiting += item.values()
