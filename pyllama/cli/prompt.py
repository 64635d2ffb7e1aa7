"""Words of the command line, a file and piped text -> the one prompt of `pyllama run`."""

import argparse
import os
import stat
import sys

from pyllama.cli import streams
from pyllama.errors import RequestError
from pyllama.terminal.status_line import StatusLine

NO_PROMPT = "no prompt: give it after MODEL, with --prompt TEXT, --file PATH or on standard input"
BETWEEN = "\n\n"
_STANDARD_INPUT = ("-", "/dev/stdin")


def add_prompt(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "words", metavar="PROMPT", nargs="*", default=[], type=streams.utf8, help="the prompt, in quotes or not"
    )
    group.add_argument(
        "-p", "--prompt", metavar="TEXT", type=streams.utf8, help="the same, even if it begins with a dash"
    )
    group.add_argument("-f", "--file", metavar="PATH", help="a file with the prompt; - for standard input")


def read_prompt(args: argparse.Namespace, signs: StatusLine) -> str | None:
    """What was piped, then the file, then the words, with an empty line between; None if there is none of them.

    Waits for the end of standard input where that is a pipe or a file, or is asked for. Raises RequestError.
    """
    if args.words and args.prompt is not None:
        raise RequestError("--prompt: the prompt was given without it, too; expected one of them")
    standard = args.file in _STANDARD_INPUT
    given = [] if args.file is None or standard else [read_file(args.file)]
    given += [" ".join(args.words)] if args.words else [] if args.prompt is None else [args.prompt]
    if standard or _is_piped(sys.stdin) or not given and not sys.stdin.isatty():
        signs.show("waiting for the end of standard input")
        piped = _without_last_newline(streams.read_text(sys.stdin.buffer, "standard input"))
        signs.clear()
        if piped or standard:
            given.insert(0, piped)
    return BETWEEN.join(given) if given else None


def read_file(path: str) -> str:
    """A file's text, without a newline at its end. Raises RequestError."""
    return _without_last_newline(streams.read_file(path))


def _without_last_newline(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def _is_piped(stream: object) -> bool:
    """Whether somebody put text there: a service's /dev/null, or a program's open socket, is nobody's text."""
    try:
        mode = os.fstat(stream.fileno()).st_mode  # type: ignore[attr-defined]
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
