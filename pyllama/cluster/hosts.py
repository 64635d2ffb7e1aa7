"""`--hosts` -> boards with their shares and budgets; whether a name is this machine."""

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pyllama.cluster.dealing import MOST_RANKS
from pyllama.errors import RequestError, reason_of, shown
from pyllama.machine.memory import parse_size

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,252}")
LOCALHOST = "localhost"


@dataclass(frozen=True, slots=True)
class Host:
    """A board, or a part of one.

    name    as ssh knows it
    share   of the rows, in proportion to the others'
    memory  bytes that its rank may take, or None
    place   which of all hosts it is, from 0, in the order in which they were named
    """

    name: str
    share: float = 1.0
    memory: int | None = None
    place: int = 0


def parse_hosts(text: str | os.PathLike[str] | Sequence[str]) -> list[Host]:
    """Boards of "pi1,pi2=0.5", of a list of such names, or of a file with a line for each: its name, and perhaps
    share=0.5 and memory=2G; # begins a comment. The first is this machine: where others stand before it, it goes first.

    Raises RequestError, also where this machine is not among them.
    """
    hosts = read_hosts(text)
    here = next((i for i, host in enumerate(hosts) if is_here(host.name)), None)
    if here is None:
        names = ", ".join(dict.fromkeys(host.name for host in hosts))
        raise RequestError(f"hosts: {names}: none of them is this machine, which must be one")
    return [hosts[here], *hosts[:here], *hosts[here + 1 :]]


def read_hosts(text: str | os.PathLike[str] | Sequence[str]) -> list[Host]:
    """The same in the order in which they are named, wherever this is."""
    if not isinstance(text, (str, os.PathLike)):
        hosts = [_of_word(word) for word in text]
    elif isinstance(text, os.PathLike) or os.path.isfile(text) or os.sep in text:
        hosts = _of_file(Path(text))
    else:
        hosts = [_of_word(word.strip()) for word in text.split(",")]
    if not 1 <= len(hosts) <= MOST_RANKS:
        raise RequestError(f"hosts: {len(hosts)} names, expected 1 to {MOST_RANKS}")
    return [replace(host, place=place) for place, host in enumerate(hosts)]


def _of_word(word: str) -> Host:
    name, _, share = word.partition("=")
    return _host(name, {"share": share} if share else {}, "hosts")


def _of_file(path: Path) -> list[Host]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()[: 64 * MOST_RANKS]
    except OSError as error:
        raise RequestError(f"hosts: {path}: {reason_of(error)}") from None
    except UnicodeDecodeError:
        raise RequestError(f"hosts: {path}: not text") from None
    found = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if words:
            fields = dict(word.partition("=")[::2] for word in words[1:])
            found.append(_host(words[0], fields, f"{path}, line {number}"))
    return found


def _host(name: str, fields: dict[str, str], where: str) -> Host:
    if not _NAME.fullmatch(name):
        raise RequestError(f"{where}: {shown(name)}: expected a host's name")
    host = Host(name)
    for field, value in fields.items():
        if field == "share":
            host = replace(host, share=_share(value, where))
        elif field == "memory":
            host = replace(host, memory=parse_size(value))
        else:
            raise RequestError(f"{where}: {shown(field)}: expected share=NUMBER or memory=SIZE")
    return host


def _share(text: str, where: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 1e-3 <= share <= 1e3:
        raise RequestError(f"{where}: share {shown(text)}, expected 0.001 to 1000")
    return share


def is_here(name: str) -> bool:
    """Whether a name is this machine's: one that a socket can be bound to."""
    if name in (LOCALHOST, socket.gethostname()):
        return True
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    for family, kind, _, _, address in found:
        with socket.socket(family, kind) as probe:
            try:
                probe.bind(address)
            except OSError:
                continue
            return True
    return False
