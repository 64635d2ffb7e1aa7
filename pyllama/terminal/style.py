"""Dim and bold on a terminal, where it has them and nobody asked for none (NO_COLOR, TERM=dumb)."""

import os


def is_plain() -> bool:
    """Whether a terminal is to get text alone: no colour, no moving of the cursor."""
    return bool(os.environ.get("NO_COLOR")) or is_dumb()


def is_dumb() -> bool:
    return os.environ.get("TERM", "dumb") == "dumb"


def dim(text: str) -> str:
    return text if is_plain() else f"\x1b[2m{text}\x1b[22m"


def bold(text: str) -> str:
    return text if is_plain() else f"\x1b[1m{text}\x1b[22m"
