"""Normalizers and pre-tokenizers: the steps between raw text and the pieces a model encodes.

Each step is a function. A normalizer maps text to text; a pre-tokenizer maps a list of pieces to a longer list, told
whether the first piece begins the text. What each does is what the step of that name in Hugging Face's tokenizers
does; which steps a file asks for is read elsewhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal, TypeVar

from pyllama.tokenizer import pattern as patterns
from pyllama.tokenizer.pattern_syntax import WHITE_SPACE

Normalizer = Callable[[str], str]
PreTokenizer = Callable[[list[str], bool], list[str]]
T = TypeVar("T")

SPACE_MARK = "\u2581"  # how SentencePiece writes a space
_LONG_MARKS = 32
_DIGIT_RUN = re.compile("[0-9]{3,}")


def unicode_form(form: Literal["NFC", "NFD", "NFKC", "NFKD"]) -> Normalizer:
    """Unicode normalization to NFC, NFD, NFKC or NFKD, as the version of Unicode in tokenizers has it.

    Python's tables are newer, and newer again with each Python. Normal forms never change for a character once it is
    in Unicode, so only the characters that tokenizers does not know as changing need to be kept apart.
    """

    def normalize(text: str) -> str:
        if text.isascii():
            return text
        newer = [character for character in set(text) if _is_newer(character)]
        pieces = re.split("([" + "".join(map(re.escape, newer)) + "])", text) if newer else [text]
        for index in range(0, len(pieces), 2):
            piece = unicodedata.normalize(form, _sort_long_mark_runs(pieces[index]))
            for character in set(piece):
                if _is_newer(character):  # composed from parts that only newer tables compose
                    piece = piece.replace(character, unicodedata.normalize("NFD", character))
            pieces[index] = piece
        return "".join(pieces)

    return normalize


def _is_newer(character: str) -> bool:
    """Whether Python would decompose or reorder a character that tokenizers leaves alone."""
    if not (unicodedata.combining(character) or unicodedata.decomposition(character)):
        return False
    return patterns.compile_class("NORMALIZED").match(character) is None


def _sort_long_mark_runs(text: str) -> str:
    """Combining marks in canonical order where very many follow each other: Python orders them in quadratic time.

    Equivalent by definition of the normal forms; test_long_runs_take_linear_time fails without it.
    """
    out: list[str] = []
    done = 0
    at = 0
    combining = unicodedata.combining
    while at < len(text):
        if not combining(text[at]):
            at += 1
            continue
        start = at
        while at < len(text) and combining(text[at]):
            at += 1
        if at - start > _LONG_MARKS:
            out += [text[done:start], "".join(sorted(text[start:at], key=combining))]
            done = at
    return "".join([*out, text[done:]]) if out else text


def prepend(prefix: str) -> Normalizer:
    """Put a prefix before any text that is not empty."""
    return lambda text: prefix + text if text else text


def replace(old: str, new: str) -> Normalizer:
    """Replace a string everywhere."""
    return lambda text: text.replace(old, new)


def collapse_spaces(text: str) -> str:
    """SentencePiece's remove_extra_whitespaces: no spaces at the ends, one at a time between."""
    return re.sub(" {2,}", " ", text).strip(" ")


def in_turn(steps: Sequence[Callable[..., T]]) -> Callable[..., T]:
    """One normalizer, or one pre-tokenizer, after another."""

    def apply(done: T, *first: bool) -> T:
        for step in steps:
            done = step(done, *first)
        return done

    return apply


def crosses_words(piece: str) -> bool:
    """Whether a space mark follows another character."""
    return SPACE_MARK in piece.lstrip(SPACE_MARK)


def each(cut: Callable[[str], Iterable[str]]) -> PreTokenizer:
    """Every piece cut by itself; what is empty is left out."""
    return lambda pieces, first: [part for piece in pieces for part in cut(piece) if part]


def split_isolated(pattern: patterns.Pattern) -> PreTokenizer:
    """Each match and each stretch between matches is a piece."""
    return each(partial(patterns.split_isolated, pattern))


def split_after(text: str) -> PreTokenizer:
    """Each stretch up to and with the string is a piece: tokenizers' Split that merges with the previous."""

    def cut(piece: str) -> list[str]:
        *parts, last = piece.split(text)
        return [*(part + text for part in parts), last]

    return each(cut)


def keep_matches(pattern: patterns.Pattern) -> PreTokenizer:
    """Each match is a piece; the rest is dropped."""
    return each(pattern.findall)


@each
def spaces_at_end_apart(piece: str) -> Iterable[str]:
    """What the pattern `\\s+$` matches, isolated, in text without line ends; linear, as the pattern is not."""
    rest = piece.rstrip(WHITE_SPACE)
    return rest, piece[len(rest) :]


@each
def thousands(piece: str) -> Iterable[str]:
    """Runs of digits cut into threes from their end: splits at `(?=([0-9]{3})+(?![0-9]))`, in linear time."""
    done = 0
    for run in _DIGIT_RUN.finditer(piece):
        for cut in range(run.start() + (run.end() - run.start()) % 3, run.end(), 3):
            yield piece[done:cut]
            done = cut
    yield piece[done:]


def space_first(pieces: list[str], first: bool) -> list[str]:
    """Byte-level's add_prefix_space: a space before every piece that has none."""
    return [piece if piece.startswith(" ") else " " + piece for piece in pieces]


def metaspace(scheme: str, split: bool) -> PreTokenizer:
    """Spaces become marks; a mark goes before the text ("first"), every stretch ("always") or none ("never")."""

    words = re.compile(f"{SPACE_MARK}[^{SPACE_MARK}]*|[^{SPACE_MARK}]+")

    def apply(pieces: list[str], first: bool) -> list[str]:
        out: list[str] = []
        for index, piece in enumerate(pieces):
            piece = piece.replace(" ", SPACE_MARK)
            if not piece.startswith(SPACE_MARK) and (scheme == "always" or scheme == "first" and first and index == 0):
                piece = SPACE_MARK + piece
            if split:
                out += words.findall(piece)
            else:
                out.append(piece)
        return out

    return apply
