"""A file that is still at the hub, read in pieces: what its header says, before anybody fetches the rest."""

from collections.abc import Callable
from pathlib import Path

from pyllama.errors import HubError, NoRangesError
from pyllama.hub.download import CONTENT_RANGE
from pyllama.hub.http import Dropped, get, host, read, wait
from pyllama.hub.listing import Listing, check, refusal, url_of


class RemoteFile:
    """path    its name in the repository
    nbytes  as the hub lists it; a file on a disk has the same two
    """

    def __init__(self, listing: Listing, name: str, note: Callable[[str], None] = lambda text: None):
        """Asks for nothing yet. Raises HubError for a file that the hub does not list, or lists in an odd way."""
        if name not in listing.files:
            raise HubError(f"{listing.model}: the repository lacks {name}")
        self._file = listing.files[name]
        check(self._file, listing)
        self._listing, self._note = listing, note
        self.path = Path(name)
        self.nbytes = self._file.nbytes

    def read(self, offset: int, nbytes: int) -> bytes:
        """`nbytes` bytes from `offset`. Raises HubError."""
        label = f"{self._listing.model}: {self._file.name}"
        if not 0 <= offset <= offset + nbytes <= self.nbytes:
            raise HubError(f"{label}: ends at {self.nbytes}, expected {nbytes} bytes at {offset}")
        data = bytearray()
        tries = 0
        while len(data) < nbytes:
            try:
                self._read_on(label, offset, nbytes, data)
            except Dropped as dropped:
                if not wait(dropped, tries, self._note):
                    raise HubError(f"{label}: {dropped}, {tries + 1} times in a row; try again later") from dropped
                tries += 1
        return bytes(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read(offset, len(buffer))

    def close(self) -> None:
        """Nothing is open between two reads."""

    def _read_on(self, label: str, offset: int, nbytes: int, data: bytearray) -> None:
        start = offset + len(data)
        headers = {**self._listing.headers, "Range": f"bytes={start}-{offset + nbytes - 1}"}
        with get(label, url_of(self._file, self._listing), headers) as response:
            if response.status not in (200, 206):
                raise refusal(self._listing.model, self._listing.endpoint, response.status, self._listing.gated)
            match = CONTENT_RANGE.fullmatch((response.headers.get("Content-Range") or "").strip())
            if response.status == 200 and start or response.status == 206 and (not match or int(match[1]) != start):
                raise NoRangesError(f"{label}: {host(response.geturl())} sends no ranges of files")
            while len(data) < nbytes:
                block = read(response, nbytes - len(data))
                if not block:
                    raise Dropped("the connection broke")
                data += block
