"""The errors a caller can meet: a small closed family, one line each.

A message says what, got, expected, where, and what to do. Anything else that
escapes from pyllama is a bug.
"""

from pyllama.printable import one_line


class PyllamaError(Exception):
    """Base of everything pyllama raises on purpose. Its text is one short line, whatever the names in it hold."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class CheckpointError(PyllamaError):
    """A model's files are missing, truncated, corrupt or contradict each other."""


class UnsupportedError(CheckpointError):
    """The files are sound, but ask for something pyllama does not do; the message names it."""


class TokenizerError(PyllamaError):
    """A tokenizer's files are damaged, or the text cannot be encoded with it."""


class ContextOverflowError(PyllamaError):
    """More positions asked for than the context holds."""


class BudgetError(PyllamaError):
    """The memory budget is too small; the message names the smallest that works."""

    @staticmethod
    def enough_mb(nbytes: int) -> int:
        """The MB to name where a process counted so many bytes. The next one that is started alike holds up to some
        hundred KB more, by where its libraries and stacks came to lie, and must not be refused what this one named."""
        return -(-(nbytes + (1 << 19)) // 1_000_000)


class HubError(PyllamaError):
    """A download failed: the name, the network, the disk or the checksum."""


class NoRangesError(HubError):
    """Whoever has a file sends all of it or nothing."""


class PackError(PyllamaError):
    """Packing or unpacking cannot go on: the disk is full or fails, or an earlier run is in the way."""


class RequestError(PyllamaError):
    """An argument or option is out of range; the message names it.

    param  its name where a request may hold it, else None
    """

    param: str | None = None

    @classmethod
    def about(cls, param: str, what: str) -> "RequestError":
        """The error that says this of an argument, option or field."""
        error = cls(f"{param}: {what}")
        error.param = param
        return error


class BusyError(PyllamaError):
    """The queue is full, or somebody else computes: the same request may succeed later, or elsewhere."""


class BoardError(BusyError):
    """A board of a cluster is gone, frozen or failed; the message names it. What it held of texts is lost; the same
    request may succeed once it is back."""


class StoppingError(BusyError):
    """The engine is stopping: the same request may succeed elsewhere."""


def reason_of(error: Exception) -> str:
    """What the system says of a failed call: the end of a message that begins with what was tried."""
    system = getattr(error, "strerror", None)
    return system.lower() if system else str(error)


def shown(value: object) -> str:
    """A value as an error message shows it: escaped and short, whatever a file holds."""
    if not isinstance(value, (str, bytes, int, float, bool, type(None))):
        return f"a {type(value).__name__}"
    if isinstance(value, int) and value.bit_length() > 256:
        return "an integer of more than 256 bits"
    text = repr(value[:97] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= 100 else text[:97] + "..."
