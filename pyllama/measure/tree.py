"""/proc, /sys and /etc, or a made-up tree of them: small text files, links and folders under one root."""

import os
from pathlib import Path


class Tree:
    """Paths are given without the leading slash. What is not there, or may not be read, is empty."""

    def __init__(self, root: str | os.PathLike[str] = "/"):
        self.root = Path(root)

    def read(self, path: str | Path) -> str:
        """The text of a file, without the zero bytes and newlines around it."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
        except (OSError, ValueError):
            return ""

    def number(self, path: str | Path) -> int | None:
        text = self.read(path)
        return int(text) if text.lstrip("-").isdigit() else None

    def glob(self, pattern: str) -> list[Path]:
        """What matches, in order."""
        try:
            return sorted(self.root.glob(pattern))
        except OSError:
            return []

    def resolve(self, path: str | Path) -> Path | None:
        """Where a link leads, None if nowhere."""
        there = self.root / path
        try:
            return there.resolve() if there.exists() else None
        except OSError:
            return None
