"""The three standard streams, whatever they are: closed, full, hung up, of another encoding, or a terminal.

All that a command says to a person about its work goes through here, so that nothing a file calls itself reaches a
terminal as it is. What a command is for, its text, goes to sys.stdout, which prepare() makes safe for a terminal.
"""

import codecs
import os
import sys
from typing import Any, BinaryIO

from pyllama.errors import RequestError, reason_of
from pyllama.printable import one_line, visible

MAX_INPUT_NBYTES = 16 << 20  # of a prompt or a line: more than any context holds
_BYTE_ORDER_MARKS = (  # the longer ones first: the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


class TerminalText:
    """Standard output that is a terminal: control characters in what is written are shown, not obeyed."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(visible(text))
        return len(text)

    def obeyed(self, text: str) -> None:
        """Write text whose control characters are ours."""
        self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def prepare() -> None:
    """Make all three streams exist, and none of them a reason to stop."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            _occupy(number)
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - it stays
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character is no reason to stop
    if not isinstance(sys.stdout, TerminalText) and sys.stdout.isatty():
        sys.stdout = TerminalText(sys.stdout)  # type: ignore[assignment]


def _occupy(number: int) -> None:
    """Let no other file get the number of a closed stream: what a library writes to it would end there."""
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened == number:
            os.set_inheritable(number, True)
        else:
            os.dup2(opened, number)
            os.close(opened)


def is_conversation() -> bool:
    """Whether a person at a terminal types and reads."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def finish() -> None:
    """The last words of standard error, if somebody takes them."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        drop(sys.stderr)


def tell(message: object) -> None:
    """An error or a note on standard error, in one line that begins with who says it. Never fails."""
    note(f"pyllama: {message}")


def note(text: str) -> None:
    """A line on standard error. Never fails."""
    try:
        print(one_line(text), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        drop(sys.stderr)


def announce(text: str) -> None:
    """A line on standard output that nobody depends on. Never fails."""
    try:
        print(one_line(text), flush=True)
    except (OSError, ValueError):
        drop(sys.stdout)


def drop(stream: Any) -> None:
    """Nobody can take this output: let the interpreter's last flush go nowhere, or it would complain."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):  # a stream without a file has no last flush
        pass


def read_text(file: BinaryIO, name: str) -> str:
    """All of a file that holds a person's text: UTF-8, or UTF-16 and UTF-32 that say so by a byte order mark.

    Raises RequestError for anything else, in the words of `name`.
    """
    try:
        raw = file.read(MAX_INPUT_NBYTES + 1)
    except OSError as error:
        raise RequestError(f"{name}: {reason_of(error)}") from None
    if len(raw) > MAX_INPUT_NBYTES:
        raise RequestError(f"{name}: more than {MAX_INPUT_NBYTES} bytes, expected a prompt")
    encoding = next((encoding for mark, encoding in _BYTE_ORDER_MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        kind = encoding.removesuffix("-sig").upper()
        raise RequestError(f"{name}: byte {error.start} is not {kind}, expected text") from None
    if "\0" in text:
        raise RequestError(f"{name}: holds NUL bytes, expected text (UTF-16 without its mark, or no text at all?)")
    return text


def read_file(path: str) -> str:
    """The same of the file of that name."""
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: {reason_of(error)}") from None
    with file:
        return read_text(file, path)


def utf8(word: str) -> str:
    """A word of the command line, or a line typed, as UTF-8, whatever the locale took its bytes for.

    Raises RequestError for bytes that are none.
    """
    try:
        return word if word.isascii() else os.fsencode(word).decode() if _is_escaped(word) else word
    except UnicodeError:
        raise RequestError(f"{word[:40]!r}: not UTF-8, expected text") from None


def _is_escaped(word: str) -> bool:
    """Whether bytes that the locale could not read stand in it, as half characters."""
    return any("\ud800" <= character <= "\udfff" for character in word)
