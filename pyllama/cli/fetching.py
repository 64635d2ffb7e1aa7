"""What is looked at before a model is fetched: can pyllama run it, and does the person want it."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pyllama.errors import CheckpointError, HubError, NoRangesError, UnsupportedError

if TYPE_CHECKING:
    from pyllama.hub.fetch import Wanted


def refuse_what_cannot_run(wanted: "Wanted") -> None:
    """Look at config.json, or at the header of a GGUF file where it is.

    Raises UnsupportedError. Files that are damaged are told of when they are here.
    """
    try:
        _open(wanted)
    except UnsupportedError:
        raise
    except (CheckpointError, NoRangesError):
        pass


def _open(wanted: "Wanted") -> None:
    if wanted.nbytes and wanted.weights and wanted.weights[0].endswith(".gguf"):
        from pyllama.checkpoint.gguf import open_gguf

        open_gguf(Path(wanted.weights[0]), wanted.open).close()
    elif (wanted.folder / "config.json").is_file():
        from pyllama.checkpoint.huggingface import read_config

        read_config(wanted.folder)


def offer(args: argparse.Namespace) -> None:
    """If MODEL is a name that is not in the cache, ask the person at the terminal whether to pull it, and do.

    Elsewhere, and where the answer is no, nothing happens: whoever opens the model says what is missing.
    """
    from pyllama.hub.find import NotInCacheError, resolve

    try:
        resolve(args.model)
    except NotInCacheError:
        if sys.stdin.isatty() and sys.stderr.isatty():
            _pull(args.model)
    except HubError:
        pass


class _DeclinedError(Exception):
    pass


def _pull(name: str) -> None:
    from pyllama import hub
    from pyllama.hub.names import DEMO
    from pyllama.terminal.progress import Progress

    def before(wanted: "Wanted") -> None:
        refuse_what_cannot_run(wanted)
        if not _agreed(wanted.name, wanted.nbytes):
            raise _DeclinedError

    if name == DEMO:
        from pyllama.hub.demo import SMOLLM2

        if not _agreed(name, SMOLLM2.nbytes):
            return
    try:
        with Progress() as progress:
            hub.pull(name, progress, before=before)
    except _DeclinedError:
        pass


def _agreed(name: str, nbytes: int) -> bool:
    from pyllama.printable import one_line
    from pyllama.terminal.progress import format_nbytes

    print(one_line(f"{name} is not here; fetch {format_nbytes(nbytes)}? [Y/n] "), end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    return bool(answer) and answer.strip().lower() in ("", "y", "yes")
