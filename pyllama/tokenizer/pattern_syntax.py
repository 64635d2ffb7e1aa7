"""The text of a pre-tokenizer pattern to a tree of what it means.

The syntax is the part of Oniguruma's that tokenizer files use: sets, properties, groups, alternatives, repeats,
lookaheads and the end of a line. What is not understood is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pyllama.errors import TokenizerError
from pyllama.tokenizer import unicode_classes

MAX_PATTERN = 4096
_MAX_DEPTH = 50
_MAX_REPEAT = 4096
_END_OF_UNICODE = 0x110000

Spans = tuple[tuple[int, int], ...]

PARTS = {
    "L": ("LU", "LL", "LT", "LM", "LO"),
    "Lu": ("LU",),
    "Ll": ("LL",),
    "Lt": ("LT",),
    "Lm": ("LM",),
    "Lo": ("LO",),
    "M": ("M",),
    "N": ("N",),
    "P": ("P",),
    "S": ("S",),
}
#: The Unicode property White_Space; Python's \s and str.strip() have four control characters more.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
PLAIN_IN_CLASS = frozenset("(){}|*+?$.^")
TOKEN = re.compile(
    r"(?P<property>\\p\{(?P<name>\w+)\})"
    r"|(?P<space>\\[sS])"
    r"|(?P<escape>\\[rnt\\\[\](){}|.*+?^$/\-'\"]|\\u[0-9A-Fa-f]{4}|\\x[0-9A-Fa-f]{2})"
    r"|(?P<group>\(\?i:|\(\?:|\(\?!|\(\?=|\(|\)|\|)"
    r"|(?P<repeat>[?*+][+?]?|\{\d{1,4}(?:,\d{0,4})?\}\+?)"
    r"|(?P<open>\[\^?)"
    r"|(?P<close>\])"
    r"|(?P<anchor>[$^])"
    r"|(?P<char>[^\\\[\](){}|*+?^$.])",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Characters:
    """One character out of half-open ranges of code points, in ascending order, apart from each other.

    What a lookahead looks at may also be the end of the text, which has the code END.
    """

    spans: Spans


@dataclass(frozen=True, slots=True)
class Sequence:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alternatives:
    """The first that leads to a match."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """Nothing, where the body begins; not positive: where it does not."""

    body: Node
    positive: bool


@dataclass(frozen=True, slots=True)
class Repeat:
    """most: None for no bound. lazy: as few as possible. possessive: as many as possible, and never fewer."""

    body: Node
    least: int
    most: int | None
    lazy: bool
    possessive: bool


Node = Characters | Sequence | Alternatives | Look | Repeat

END = -1
# A line's end or the text's: what a dollar is to Oniguruma.
_AT_END = Look(Characters(((END, 0), (10, 11))), True)


def union(spans: list[tuple[int, int]] | Spans) -> Spans:
    """Ranges in order, neighbours joined."""
    joined: list[list[int]] = []
    for start, stop in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(stop, joined[-1][1])
        else:
            joined.append([start, stop])
    return tuple((start, stop) for start, stop in joined)


_SPACE = union([(ord(character), ord(character) + 1) for character in WHITE_SPACE])


def _others(spans: Spans) -> Spans:
    edges = [0, *(edge for span in spans for edge in span), _END_OF_UNICODE]
    return tuple((a, b) for a, b in zip(edges[::2], edges[1::2]) if a < b)


def spans_of_class(name: str) -> Spans:
    """The ranges of a stored class such as "LU"."""
    numbers = [int(number, 36) for number in getattr(unicode_classes, name).split()]
    stop, spans = 0, []
    for gap, length in zip(numbers[::2], numbers[1::2]):
        spans.append((stop + gap, stop + gap + length))
        stop += gap + length
    return tuple(spans)


def _spans_of_property(name: str) -> Spans:
    return union([span for part in PARTS[name] for span in spans_of_class(part)])


def _folded(spans: Spans) -> Spans:
    """With both cases of ASCII letters, and what folds to them."""
    more = list(spans)
    for lower in range(ord("a"), ord("z") + 1):
        if any(start <= code < stop for start, stop in spans for code in (lower, lower - 32)):
            more += [(lower, lower + 1), (lower - 32, lower - 31)]
            if chr(lower) == "s":
                more.append((0x17F, 0x180))  # the long s
            if chr(lower) == "k":
                more.append((0x212A, 0x212B))  # the kelvin sign
    return union(more)


_ESCAPES = {"r": 13, "n": 10, "t": 9}


def _code(escape: str) -> int:
    if escape[1] in "ux":
        return int("0x" + escape[2:], 0)
    return _ESCAPES.get(escape[1], ord(escape[1]))


def parse(pattern: str, where: str) -> Node:
    """The tree of a pattern. Raises TokenizerError for what is not understood; where: the file, for the error."""
    if len(pattern) > MAX_PATTERN:
        raise TokenizerError(f"{where}: pattern of {len(pattern)} characters, expected at most {MAX_PATTERN}")
    parser = _Parser(pattern, where)
    tree = parser.alternatives(0, False)
    if parser.at < len(pattern):
        raise parser.error()
    return tree


class _Parser:
    def __init__(self, pattern: str, where: str) -> None:
        self._pattern, self._where = pattern, where
        self._properties: dict[str, Spans] = {}
        self.at = 0

    def error(self) -> TokenizerError:
        rest = self._pattern[self.at : self.at + 20]
        return TokenizerError(f"{self._where}: pattern not understood at {rest!r} in {self._pattern[:200]!r}")

    def _next(self) -> re.Match[str]:
        match = TOKEN.match(self._pattern, self.at)
        if match is None:
            raise self.error()
        return match

    def alternatives(self, depth: int, folding: bool) -> Node:
        """Up to the parenthesis that ends it, or the pattern's end."""
        if depth > _MAX_DEPTH:
            raise self.error()
        found: list[list[Node]] = [[]]
        may_repeat = False
        while self.at < len(self._pattern):
            match = self._next()
            text = match.group()
            if text == ")":
                break
            if text == "|":
                self.at = match.end()
                found.append([])
                may_repeat = False
            elif match["repeat"]:
                if not may_repeat:
                    raise self.error()
                found[-1][-1] = self._repeated(found[-1][-1])
                may_repeat = False
            else:
                found[-1].append(self._item(match, depth, folding))
                may_repeat = text not in ("(?=", "(?!", "$")
        parts = tuple(part[0] if len(part) == 1 else Sequence(tuple(part)) for part in found)
        return parts[0] if len(parts) == 1 else Alternatives(parts)

    def _item(self, match: re.Match[str], depth: int, folding: bool) -> Node:
        text = match.group()
        if match["group"]:
            self.at = match.end()
            body = self.alternatives(depth + 1, folding or text == "(?i:")
            if self._pattern[self.at : self.at + 1] != ")":
                raise self.error()
            self.at += 1
            return Look(body, text == "(?=") if text in ("(?=", "(?!") else body
        if match["open"]:
            return self._set(match, folding)
        if text in ("]", "^"):
            raise self.error()
        found = _AT_END if text == "$" else Characters(self._spans(match, folding))
        self.at = match.end()
        return found

    def _spans(self, match: re.Match[str], folding: bool) -> Spans:
        """The characters that one token outside a set, or in it, stands for."""
        text = match.group()
        if match["property"]:
            if match["name"] not in PARTS:
                raise self.error()
            if match["name"] not in self._properties:
                self._properties[match["name"]] = _spans_of_property(match["name"])
            return self._properties[match["name"]]
        if match["space"]:
            return _SPACE if text == r"\s" else _others(_SPACE)
        code = _code(text) if match["escape"] else ord(text)
        spans = ((code, code + 1),)
        return _folded(spans) if folding else spans

    def _set(self, match: re.Match[str], folding: bool) -> Characters:
        self.at = match.end()
        spans: list[tuple[int, int]] = []
        first = True
        while True:
            if self.at >= len(self._pattern):
                raise self.error()
            if self._pattern[self.at] == "]":
                if first:
                    raise self.error()
                self.at += 1
                break
            start = self._code_in_set()
            if start is None:  # more than one character: no end of a range
                spans += self._many_in_set()
            else:
                stop = start
                rest = self._pattern[self.at : self.at + 2]
                if rest.startswith("-") and len(rest) == 2 and rest[1] != "]":
                    self.at += 1
                    end = self._code_in_set()
                    if end is None or end < start:
                        raise self.error()
                    stop = end
                spans.append((start, stop + 1))
            first = False
        found = union(spans)
        found = _folded(found) if folding else found
        return Characters(_others(found) if match.group() == "[^" else found)

    def _code_in_set(self) -> int | None:
        """The next character of a set, passed over; None if a property or \\s stands there."""
        character = self._pattern[self.at]
        if character in PLAIN_IN_CLASS:
            self.at += 1
            return ord(character)
        match = self._next()
        if match["property"] or match["space"]:
            return None
        if not match["escape"] and not match["char"]:
            raise self.error()
        self.at = match.end()
        return _code(match.group()) if match["escape"] else ord(match.group())

    def _many_in_set(self) -> Spans:
        match = self._next()
        if match.group() == r"\S":
            raise self.error()
        spans = self._spans(match, False)
        self.at = match.end()
        return spans

    def _repeated(self, body: Node) -> Repeat:
        text = self._next().group()
        if text.startswith("{"):
            # `{1,3}+` is a possessive repeat to Python and a repeated repeat to Oniguruma.
            least, comma, most = text.strip("{}+").partition(",")
            lazy = self._pattern.startswith("?", self.at + len(text))
            if text.endswith("+") or (comma and most and int(most) < int(least)):
                raise self.error()
            last = None if comma and not most else int(most or least)
            if max(int(least), last or 0) > _MAX_REPEAT:
                raise self.error()
            self.at += len(text) + lazy
            return Repeat(body, int(least), last, lazy, False)
        self.at += len(text)
        return Repeat(
            body, int(text[0] == "+"), 1 if text[0] == "?" else None, text.endswith("?") and len(text) == 2,
            text.endswith("+") and len(text) == 2,
        )  # fmt: skip
