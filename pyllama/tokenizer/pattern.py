"""Pre-tokenizer patterns: the regular expressions of tokenizer files, ready to split text.

Turns a pattern as Hugging Face's tokenizers writes it (Oniguruma) into a compiled one whose classes are those of
unicode_classes.py. Not by `re`: it backtracks, so that a stranger's pattern takes exponential time, and it lets no
other thread run until a text is done; linear_pattern.py finds the same matches about as fast (on 190 KB of a README:
GPT-2's pattern 0.12 s to 0.08, Llama 3's 0.14 to 0.13, Tekken's 0.20 to 0.53). Nor by the `regex` package: it knows
the syntax, but has another Unicode version (it calls 17,144 more code points letters), so ids would differ, and differ
again with its next release.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from pyllama.tokenizer import pattern_syntax as syntax
from pyllama.tokenizer.linear_pattern import LinearPattern

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _WORDS_TAIL
QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _WORDS_TAIL
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Pattern = re.Pattern[str] | LinearPattern


def class_body(names: tuple[str, ...]) -> str:
    """The inside of a character class: the union of stored classes, neighbouring ranges joined."""
    joined = syntax.union([span for name in names for span in syntax.spans_of_class(name)])
    return "".join(f"\\U{start:08x}" + (f"-\\U{end - 1:08x}" if end - start > 1 else "") for start, end in joined)


@lru_cache(maxsize=32)
def compile_pattern(pattern: str, where: str) -> LinearPattern:
    """A pattern of a tokenizer file, ready to split text in linear time.

    Raises TokenizerError for what is not understood, and for what is too large. So does splitting with it, for a text
    on which it takes too many steps (linear_pattern.py).
    """
    return LinearPattern(pattern, where)


@lru_cache(maxsize=32)
def compile_class(name: str, repeat: str = "") -> re.Pattern[str]:
    """One character of a stored class, or with repeat "+" a run of them."""
    return re.compile(f"[{class_body((name,))}]{repeat}")


def literal(text: str) -> re.Pattern[str]:
    """Exactly this text."""
    return re.compile(re.escape(text))


def split_isolated(pattern: Pattern, text: str) -> list[str]:
    """Matches and what lies between them, in order; their concatenation is the text."""
    pieces, end = [], 0
    for start, stop in _spans(pattern, text):
        if start > end:
            pieces.append(text[end:start])
        if stop > start:
            pieces.append(text[start:stop])
        end = stop
    if end < len(text):
        pieces.append(text[end:])
    return pieces


def _spans(pattern: Pattern, text: str) -> Iterator[tuple[int, int]]:
    if isinstance(pattern, LinearPattern):
        return pattern.spans(text)
    return (match.span() for match in pattern.finditer(text))
