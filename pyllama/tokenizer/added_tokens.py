"""Added tokens: the strings cut out of a text before anything else looks at it.

Turns text into stretches of text and token ids, as the AddedVocabulary of Hugging Face's tokenizers does: leftmost
longest match, with its flags.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from pyllama.tokenizer.pattern import compile_class
from pyllama.tokenizer.pattern_syntax import WHITE_SPACE

_SPACES = re.compile(f"[{WHITE_SPACE}]*")


class AddedToken(NamedTuple):
    """One added token and its flags.

    special      a control token: found only where the caller asks for it
    shown        a special one that an answer shows all the same
    lstrip       takes the white space before it along; rstrip, after it
    single_word  counts only between characters that are no letters or digits
    normalized   searched in the normalized text instead of the raw one
    """

    id: int
    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    shown: bool = False


class AddedTokens:
    """Finds a set of added tokens; `contents` replaces each token's content (its normalized form)."""

    def __init__(self, tokens: Iterable[AddedToken], contents: dict[int, str] | None = None) -> None:
        self._tokens: dict[str, AddedToken] = {}
        for token in tokens:
            content = (contents or {}).get(token.id, token.content)
            if content:
                self._tokens[content] = token
        lengths: dict[str, set[int]] = {}
        for content in self._tokens:
            lengths.setdefault(content[0], set()).add(len(content))
        self._lengths = {first: sorted(sizes, reverse=True) for first, sizes in lengths.items()}
        self._first = re.compile("[" + "".join(map(re.escape, self._lengths)) + "]") if lengths else None

    def split(self, text: str, parse_special: bool, marked: str | None = None) -> list[str | AddedToken]:
        """Stretches of text and the tokens between them, in order; empty stretches are left out.

        marked  the same text, character for character, with others in some places: no special token is made of those.
                The stretches are stretches of this one
        """
        shown = text if marked is None else marked
        if self._first is None:
            return [shown] if shown else []
        out: list[str | AddedToken] = []
        done = 0  # text before this is in `out`
        at = 0
        while (candidate := self._first.search(text, at)) is not None:
            at = candidate.start()
            found = self._at(text, at)
            if found is None:
                at += 1
                continue
            start, stop, token = found
            if marked is not None and token.special and marked[start:stop] != text[start:stop]:
                # The first special token that begins in it, of what is marked.
                own = (self._at(marked, begin, special=True) for begin in range(start, stop))
                if not parse_special or (found := next(filter(None, own), None)) is None:
                    at = stop
                    continue
                start, stop, token = found
            at = stop  # a match that is not taken still hides what overlaps it
            if token.special and not parse_special:
                continue
            if token.single_word:
                letter = compile_class("WORD")
                before = start > 0 and letter.match(text[start - 1])
                after = stop < len(text) and letter.match(text[stop])
                if before or after:
                    continue
            if token.lstrip:
                while start > done and text[start - 1] in WHITE_SPACE:
                    start -= 1
            start = max(start, done)
            if token.rstrip:
                stop = _SPACES.match(text, stop).end()  # type: ignore[union-attr]
            if start > done:
                out.append(shown[done:start])
            out.append(token)
            done = stop
        if done < len(text):
            out.append(shown[done:])
        return out

    def _at(self, text: str, at: int, *, special: bool = False) -> tuple[int, int, AddedToken] | None:
        """The longest token, or special token, that begins there, behind its start and stop."""
        for length in self._lengths.get(text[at], ()):
            content = text[at : at + length]  # shorter at the end of the text
            token = self._tokens.get(content)
            if token is not None and (token.special or not special):
                return at, at + len(content), token
        return None
