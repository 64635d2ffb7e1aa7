"""One URL becomes one checked file: resumed where it stopped, hashed while it is written.

Knows nothing of repositories and gives no file its final name.
"""

import errno
import hashlib
import http.client
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pyllama.errors import HubError, reason_of
from pyllama.hub.http import Dropped, get, host, read, same_origin, wait
from pyllama.terminal.progress import Progress, format_nbytes

CHUNK = 1 << 18
# A connection that brought this much was worth it: the tries are counted from the start again.
WORTHWHILE_NBYTES = 1 << 16
CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass(frozen=True, slots=True)
class Source:
    """What to fetch and what must come out.

    label    the file, as errors name it
    nbytes   its exact size
    digest   SHA-256, or git's SHA-1 of a blob if 40 digits long
    headers  sent to the URL's own origin only: they carry the token
    denied   (status, gated) -> what a 401, 403 or 404 of that origin means for a person
    """

    label: str
    url: str
    nbytes: int
    digest: str
    headers: dict[str, str]
    denied: Callable[[int, bool], HubError]


def download(source: Source, partial: Path, progress: Progress) -> None:
    """Fill `partial` with the bytes of `source`, from where it stopped; return once the hash is right.

    Raises HubError, and OSError if `partial` cannot be opened. Whatever stops it
    (an error, a full disk, Ctrl-C, a kill) leaves `partial` to be resumed, except
    bytes known to be wrong, which are removed. Safe against a second process doing
    the same without a lock: both write the same bytes to the same places.
    """
    with _open_partial(partial) as file:
        writer = _Writer(file, source, progress)
        writer.take_over()
        had = writer.position
        while True:
            _fill(writer, source, progress)
            if writer.hexdigest() == source.digest:
                return
            progress.skip(-source.nbytes)
            if not had:
                break
            # The part from before may be what is wrong (a power cut leaves zeros): once more from the start.
            had, writer = 0, _Writer(file, source, progress)
            writer.clear()
    partial.unlink(missing_ok=True)
    raise HubError(
        f"{source.label}: its hash is {writer.hexdigest()}, expected {source.digest}: "
        f"{host(source.url)} sent other bytes than it lists; removed, try again later"
    )


class _Writer:
    """The partial file: writes at its own position and hashes what it wrote."""

    def __init__(self, file: io.FileIO, source: Source, progress: Progress) -> None:
        self._file = file
        self._source = source
        self._progress = progress
        self._hash = (
            hashlib.sha256()
            if len(source.digest) == 64
            else hashlib.sha1(b"blob %d\0" % source.nbytes, usedforsecurity=False)
        )
        self.position = 0

    def take_over(self) -> None:
        """Hash what an earlier run left, so that the end is checked as a whole."""
        try:
            if os.fstat(self._file.fileno()).st_size > self._source.nbytes:
                self.clear()
                return
            self._file.seek(0)
            while block := self._file.read(CHUNK):
                self._hash.update(block)
                self.position += len(block)
                self._progress.skip(len(block))
        except OSError as error:
            self._refuse(error)

    def clear(self) -> None:
        self._file.truncate(0)

    def write(self, block: bytes) -> None:
        try:
            self._file.seek(self.position)
            written = 0
            while written < len(block):
                written += self._file.write(block[written:])
        except OSError as error:
            self._refuse(error)
        self._hash.update(block)
        self.position += len(block)
        self._progress.advance(len(block))

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def _refuse(self, error: OSError) -> NoReturn:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            missing = format_nbytes(self._source.nbytes - self.position)
            raise HubError(
                f"{self._source.label}: the disk is full, {missing} of this file are missing; "
                "free some space and give the same command again, it goes on from here"
            ) from error
        raise HubError(f"{self._source.label}: {self._file.name}: {reason_of(error)}") from error


def _open_partial(partial: Path) -> io.FileIO:
    def opener(path: str, flags: int) -> int:
        # Not through a link, should anybody have put one there; and not "append", see download().
        return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)

    return open(partial, "r+b", buffering=0, opener=opener)


def _fill(writer: _Writer, source: Source, progress: Progress) -> None:
    """Connect, as often as it takes, until the writer holds all bytes."""
    tries = 0
    while writer.position < source.nbytes:
        before = writer.position
        try:
            _transfer(writer, source)
        except Dropped as dropped:
            if writer.position - before >= WORTHWHILE_NBYTES:
                tries = 0
            if not wait(dropped, tries, progress.note):
                raise HubError(
                    f"{source.label}: {dropped}, {tries + 1} times in a row, at {writer.position} of "
                    f"{source.nbytes} bytes; give the same command again later, it goes on from here"
                ) from dropped
            tries += 1


def _transfer(writer: _Writer, source: Source) -> None:
    """One connection: from the writer's position to the end, or to where it breaks (Dropped)."""
    with _request(source, writer.position) as response:
        unwanted = _check_answer(response, source, writer.position)
        while writer.position < source.nbytes:
            wanted = source.nbytes - writer.position + unwanted
            block = read(response, min(CHUNK, wanted))
            if not block:
                raise Dropped("the connection broke")
            skipped = min(unwanted, len(block))
            unwanted -= skipped
            if skipped < len(block):
                writer.write(block[skipped:])
        try:
            more = read(response, 1)
        except Dropped:
            more = b""  # all is there; how the connection ends is its own affair
        if more:
            where = host(response.geturl())
            raise HubError(f"{source.label}: {where} sends more than the {source.nbytes} bytes it lists")


def _request(source: Source, position: int) -> http.client.HTTPResponse:
    """Ask for the bytes from `position` on; the status is 200 or 206."""
    headers = dict(source.headers)
    if position:
        headers |= {"Range": f"bytes={position}-", "If-Range": f'"{source.digest}"'}
    response = get(source.label, source.url, headers, lambda answer: _check_announcement(answer, source))
    if response.status not in (200, 206):
        with response:
            _refuse_status(response, source)
    return response


def _check_announcement(response: http.client.HTTPResponse, source: Source) -> None:
    """The hub repeats a large file's hash and size beside a redirect; they must be as listed."""
    if len(source.digest) != 64:
        return
    where = f"{source.label}: {host(response.geturl())}"
    digest = (response.headers.get("X-Linked-Etag") or "").removeprefix("W/").strip('"')
    if digest and digest != source.digest:
        raise HubError(f"{where} announces the hash {digest[:80]!r}, but lists {source.digest}")
    nbytes = response.headers.get("X-Linked-Size") or str(source.nbytes)
    if nbytes.strip() != str(source.nbytes):
        raise HubError(f"{where} announces {nbytes[:20]!r} bytes, but lists {source.nbytes}")


def _refuse_status(response: http.client.HTTPResponse, source: Source) -> NoReturn:
    status, where = response.status, host(response.geturl())
    own = same_origin(response.geturl(), source.url)
    if status == 403 and not own:
        raise Dropped(f"{where} answered HTTP 403")  # a signed address that expired: the hub gives a new one
    if status in (401, 403, 404) and own:
        raise source.denied(status, response.headers.get("X-Error-Code") == "GatedRepo")
    if status == 416:
        raise HubError(f"{source.label}: {where} has fewer than the {source.nbytes} bytes listed (HTTP 416)")
    raise HubError(f"{source.label}: {where} answered HTTP {status}")


def _check_answer(response: http.client.HTTPResponse, source: Source, position: int) -> int:
    """Whether the body is what was asked for; returns how many of its first bytes are here already."""
    where = f"{source.label}: {host(response.geturl())}"
    if (response.headers.get("Content-Encoding") or "identity") != "identity":
        raise HubError(f"{where} sends it compressed, which was not asked for")
    if response.status == 206:
        given = response.headers.get("Content-Range") or ""
        match = CONTENT_RANGE.fullmatch(given.strip())
        if (
            not position
            or match is None
            or int(match[1]) != position
            or not position <= int(match[2]) < source.nbytes
            or match[3] not in ("*", str(source.nbytes))
        ):
            raise HubError(
                f"{where} answered with the range {given[:80]!r}, expected "
                f"'bytes {position}-{source.nbytes - 1}/{source.nbytes}'"
            )
        return 0
    # 200 to a request for a range: a server of all or nothing; what is here is read again and dropped.
    length = response.headers.get("Content-Length")
    if length is not None and length.strip() != str(source.nbytes):
        raise HubError(f"{where} sends {length[:20]!r} bytes, but lists {source.nbytes}")
    return position
