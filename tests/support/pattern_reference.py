"""Pre-tokenizer patterns in the syntax of Python's `re`, as pyllama matched them before linear_pattern.py: a reference.

`re` backtracks, so this is for patterns and texts that are known to be harmless.
"""

import re
from functools import cache

from pyllama.tokenizer import pattern_syntax as syntax
from pyllama.tokenizer.pattern import class_body

_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


def compile_with_re(pattern: str) -> re.Pattern[str]:
    """The pattern, for a backtracking engine."""
    return re.compile(translate(pattern))


@cache
def _property_body(name: str) -> str:
    return class_body(syntax.PARTS[name])


def _letter(char: str, ignore_case: bool, in_class: bool) -> str:
    if not ignore_case or not char.isascii() or not char.isalpha():
        return re.escape(char)
    variants = char.lower() + char.upper()
    if char in "sS":
        variants += "\u017f"  # the long s folds to s
    if char in "kK":
        variants += "\u212a"  # and the kelvin sign to k
    return variants if in_class else f"[{variants}]"


def translate(pattern: str) -> str:
    """The pattern in `re` syntax with every class spelled out. Raises ValueError for what is not understood."""
    out: list[str] = []
    in_class = False
    folding = [False]  # of each open group: letters match both cases
    at = 0
    while at < len(pattern):
        if in_class and pattern[at] in syntax.PLAIN_IN_CLASS:
            out.append(re.escape(pattern[at]))
            at += 1
            continue
        match = syntax.TOKEN.match(pattern, at)
        piece = None if match is None else _translated(match, in_class, folding, out)
        if match is None or piece is None:
            break
        if match["open"] or match["close"]:
            in_class = not in_class
        out.append(piece)
        at = match.end()
    if at < len(pattern) or in_class or len(folding) > 1:
        raise ValueError(f"not understood at {pattern[at : at + 20]!r} in {pattern[:200]!r}")
    return "".join(out)


def _translated(match: re.Match[str], in_class: bool, folding: list[bool], out: list[str]) -> str | None:
    """One token of a pattern in `re` syntax; None for what is not understood here. Keeps `folding` up to date."""
    text = match.group()
    if match["property"]:
        if match["name"] not in syntax.PARTS:
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
