"""What a disk lacks or refuses becomes one line that says what to do. Knows no hub."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyllama.errors import HubError, reason_of
from pyllama.terminal.progress import format_nbytes


def check_space(label: str, folder: Path, need: int, variable: str) -> None:
    """Refuse to begin where `need` bytes are not free; `variable` is the one that leads to another disk."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise HubError(
            f"{label}: {format_nbytes(need)} to fetch, but {format_nbytes(free)} free in {folder}; "
            f"free some, or set {variable} to a folder on a larger disk"
        )


@contextmanager
def disk_errors(label: str) -> Iterator[None]:
    """What the file system refuses becomes one line; the network's failures are the downloader's to tell."""
    try:
        yield
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        again = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            again = "; free some space and give the same command again, it goes on from here"
        raise HubError(f"{label}: {where}{reason_of(error)}{again}") from error
