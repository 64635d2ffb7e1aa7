"""Pre-tokenizer patterns: the regular expressions of tokenizer files, translated for Python's `re`.

Turns a pattern as Hugging Face's tokenizers writes it (Oniguruma) into a compiled one whose classes are those of
unicode_classes.py. The `regex` package knows the syntax, but has another Unicode version (it calls 17,144 more
code points letters), so ids would differ, and differ again with its next release. What is not understood is refused.
"""

from __future__ import annotations

import re
from functools import lru_cache

from pyllama.errors import TokenizerError
from pyllama.tokenizer import unicode_classes

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

# White space is the Unicode property; Python's \s has four control characters more.
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_PARTS = {
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
_MAX_PATTERN = 4096
_PLAIN_IN_CLASS = frozenset("(){}|*+?$.^")
_TOKEN = re.compile(
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


def _spans(name: str) -> list[tuple[int, int]]:
    """Half-open ranges of a stored class such as "LU"."""
    numbers = [int(number, 36) for number in getattr(unicode_classes, name).split()]
    end, spans = 0, []
    for gap, length in zip(numbers[::2], numbers[1::2]):
        spans.append((end + gap, end + gap + length))
        end += gap + length
    return spans


def _body(names: tuple[str, ...]) -> str:
    """The inside of a character class: the union of stored classes, neighbouring ranges joined."""
    joined: list[list[int]] = []
    for start, end in sorted(span for name in names for span in _spans(name)):
        if joined and joined[-1][1] == start:
            joined[-1][1] = end
        else:
            joined.append([start, end])
    return "".join(
        f"\\U{start:08x}" + (f"-\\U{end - 1:08x}" if end - start > 1 else "") for start, end in joined
    )


@lru_cache(maxsize=None)
def _property_body(name: str) -> str:
    return _body(_PARTS[name])


def _letter(char: str, ignore_case: bool, in_class: bool) -> str:
    if not ignore_case or not char.isascii() or not char.isalpha():
        return re.escape(char)
    variants = char.lower() + char.upper()
    if char in "sS":
        variants += "\u017f"  # the long s folds to s
    if char in "kK":
        variants += "\u212a"  # and the kelvin sign to k
    return variants if in_class else f"[{variants}]"


def translate(pattern: str, where: str) -> str:
    """The pattern in `re` syntax with every class spelled out. Raises TokenizerError for what is not understood."""
    if len(pattern) > _MAX_PATTERN:
        raise TokenizerError(
            f"{where}: pattern of {len(pattern)} characters, expected at most {_MAX_PATTERN}"
        )
    out: list[str] = []
    in_class = False
    folding = [False]  # of each open group: letters match both cases
    at = 0
    while at < len(pattern):
        if in_class and pattern[at] in _PLAIN_IN_CLASS:
            out.append(re.escape(pattern[at]))
            at += 1
            continue
        match = _TOKEN.match(pattern, at)
        piece = None if match is None else _translated(match, in_class, folding, out)
        if match is None or piece is None:
            break
        if match["open"] or match["close"]:
            in_class = not in_class
        out.append(piece)
        at = match.end()
    if at < len(pattern) or in_class or len(folding) > 1:
        raise TokenizerError(
            f"{where}: pattern not understood at {pattern[at : at + 20]!r} in {pattern[:200]!r}"
        )
    return "".join(out)


def _translated(match: re.Match[str], in_class: bool, folding: list[bool], out: list[str]) -> str | None:
    """One token of a pattern in `re` syntax; None for what is not understood here. Keeps `folding` up to date."""
    text = match.group()
    if match["property"]:
        if match["name"] not in _PARTS:
            return None
        body = _property_body(match["name"])
        return body if in_class else f"[{body}]"
    if match["space"]:
        if in_class:
            return _SPACE if text == r"\s" else None
        return f"[{_SPACE}]" if text == r"\s" else f"[^{_SPACE}]"
    if match["escape"]:
        return text
    if match["open"]:
        return None if in_class else text
    if match["close"]:
        return text if in_class and out[-1] not in ("[", "[^") else None
    if match["group"]:
        if text == ")":
            if len(folding) == 1:
                return None
            folding.pop()
        elif text != "|":
            folding.append(text == "(?i:" or folding[-1])
        return "(?:" if text in ("(?i:", "(") else text
    if match["repeat"]:
        # `{1,3}+` is a possessive repeat to Python and a repeated repeat to Oniguruma.
        return None if text.startswith("{") and text.endswith("+") else text
    if match["anchor"]:
        # To Oniguruma a dollar is the end of any line.
        return r"(?=\n|\Z)" if text == "$" else None
    if text == "-" and in_class:
        return text
    return _letter(text, folding[-1], in_class)


@lru_cache(maxsize=32)
def compile_pattern(pattern: str, where: str) -> re.Pattern[str]:
    """A pattern of a tokenizer file, ready to split text. Raises TokenizerError for what is not understood."""
    try:
        return re.compile(translate(pattern, where))
    except (re.error, RecursionError, OverflowError) as error:
        raise TokenizerError(f"{where}: pattern {pattern[:200]!r}: {error}") from None


@lru_cache(maxsize=32)
def compile_class(name: str, repeat: str = "") -> re.Pattern[str]:
    """One character of a stored class, or with repeat "+" a run of them."""
    return re.compile(f"[{_body((name,))}]{repeat}")


def literal(text: str) -> re.Pattern[str]:
    """Exactly this text."""
    return re.compile(re.escape(text))


def split_isolated(pattern: re.Pattern[str], text: str) -> list[str]:
    """Matches and what lies between them, in order; their concatenation is the text."""
    pieces = pattern.findall(text)
    if sum(map(len, pieces)) == len(text):
        return [piece for piece in pieces if piece] if "" in pieces else pieces
    pieces, end = [], 0
    for match in pattern.finditer(text):
        if match.start() > end:
            pieces.append(text[end : match.start()])
        if match.end() > match.start():
            pieces.append(match.group())
        end = match.end()
    if end < len(text):
        pieces.append(text[end:])
    return pieces
