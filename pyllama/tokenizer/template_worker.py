"""The process that renders templates of strangers: requests on standard input, answers on standard output.

Started by template_process.py, which holds the other ends of the pipes and the clock. Limits itself before it reads
anything: memory, processor time, no files, no processes. Ends when its standard input does.

A request is its length (8 bytes, little-endian) and JSON in UTF-8: source, variables, marks, seconds. An answer is one
byte for what it is (KINDS), its length in 8 bytes, and text in UTF-8. HELLO says that it is ready.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
from typing import BinaryIO

from pyllama.tokenizer.marks import Marks
from pyllama.tokenizer.sandbox import BAD, REFUSED, SPENT, TEXT, Renderer

HELLO = b"\n"
KINDS = {TEXT: b"t", REFUSED: b"r", BAD: b"b", SPENT: b"s"}
LENGTH = struct.Struct("<Q")
#: Address space beyond what the process has when it begins, and for each byte of a request: its text is held a few
#: times, in 1, 2 or 4 bytes a character.
ROOM_NBYTES = 40 << 20
ROOM_A_BYTE = 16
_FIRST_NBYTES = 512 << 20  # where the system does not tell what the process has
_EVERYTHING = (
    "{% macro m(a) %}{{ '\\u00e9\\N{SPACE}' ~ a }}{% endmacro %}"
    "{{ strftime_now('%c') ~ ({'a': 1.5} | tojson(indent=1)) }}"
    "{{ m('<a b>' | e | title | urlencode) }}{% for a in ['b a'] %}{{ (a | wordcount) ~ '%05d' % 3 }}{% endfor %}"
    "{{ '{:>3}'.format(2) ~ undefined.x }}"
)


def main() -> None:
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    Renderer().render(_EVERYTHING, {})  # what is read and imported late, while files can be opened
    base = _address_space_nbytes()
    for name, most in (("CORE", 0), ("FSIZE", 0), ("NOFILE", 3), ("NPROC", 0)):
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
        except (OSError, ValueError):
            pass  # beyond the two that follow, these only make sure
    _limit_memory(base, 0)
    _limit_time(1)
    answers.write(HELLO)
    answers.flush()
    renderer = Renderer()
    while (length := requests.read(LENGTH.size)) and len(length) == LENGTH.size:
        (nbytes,) = LENGTH.unpack(length)
        _limit_memory(base, nbytes)
        kind, text = _answer(renderer, requests, nbytes)
        encoded = text.encode("utf-8", "surrogatepass")
        answers.write(KINDS[kind] + LENGTH.pack(len(encoded)))
        answers.write(encoded)
        answers.flush()


def _answer(renderer: Renderer, requests: BinaryIO, nbytes: int) -> tuple[str, str]:
    try:
        request = json.loads(requests.read(nbytes).decode("utf-8", "surrogatepass"))
    except MemoryError:
        return SPENT, "more memory than it may take"
    _limit_time(request["seconds"])
    return renderer.render(request["source"], request["variables"], Marks(request["marks"]), request["seconds"])


def _address_space_nbytes() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return _FIRST_NBYTES


def _limit_memory(base: int, request_nbytes: int) -> None:
    _lower(resource.RLIMIT_AS, base + ROOM_NBYTES + ROOM_A_BYTE * request_nbytes)


def _limit_time(seconds: float) -> None:
    """Processor time from now on; the process ends where it is."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime + seconds) + 2)


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
