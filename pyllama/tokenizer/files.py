"""The files of a tokenizer, read whole."""

from __future__ import annotations

from pathlib import Path

from pyllama.errors import TokenizerError, reason_of


def read_whole(path: Path, most: int) -> bytes:
    """All of a file. Raises TokenizerError, also for one of more than `most` bytes."""
    try:
        nbytes = path.stat().st_size
        if nbytes > most:
            raise TokenizerError(f"{path}: {nbytes} bytes, expected at most {most}")
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: {reason_of(error)}") from None
