"""A model here and boards -> each board's part of it on that board, over ssh: `pyllama cluster push`.

A part is packed on the way, file by file, straight into the connection: neither disk holds anything besides. Several
boards are written at once, since their disks are slower than the network, or the network than this machine.
"""

import hashlib
import threading
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.packed import shard_name
from pyllama.cluster.hosts import Host
from pyllama.cluster.own_part import board_of
from pyllama.cluster.remote import Remote
from pyllama.errors import PyllamaError
from pyllama.hub import resolve
from pyllama.packing.carry import small_files
from pyllama.packing.journal import Journal
from pyllama.packing.own_rows import OwnRows
from pyllama.packing.pack import describe
from pyllama.packing.shard import write_to
from pyllama.terminal.progress import Progress

FILE_NBYTES = 512 << 20  # of unpacked weights: what a kill costs at most
AT_ONCE = 4


class Pushed(NamedTuple):
    """What became of a board: where its part is, whether it was there before, or what went wrong."""

    host: Host
    path: str = ""
    before: bool = False
    error: PyllamaError | None = None


def push(model: str, hosts: Sequence[Host], progress: Progress | None = None) -> list[Pushed]:
    """Write each board's part of a model to it; one result for each, in their order.

    Raises what keeps all of them from it: a model that is not here, or not one that boards share.
    """
    progress = progress or Progress(quiet=True)
    lock, room = threading.Lock(), threading.Semaphore(AT_ONCE)
    parcels = [_Parcel(model, hosts, host) for host in hosts]
    progress.total = sum(parcel.nbytes for parcel in parcels)
    results = [Pushed(host) for host in hosts]

    def work(number: int) -> None:
        with room:
            try:
                results[number] = parcels[number].run(_Locked(progress, lock))
            except PyllamaError as error:
                results[number] = Pushed(hosts[number], error=error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(hosts))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        for parcel in parcels:
            parcel.stop()
        raise
    return results


class _Locked(Progress):
    """A Progress that several threads advance."""

    def __init__(self, progress: Progress, lock: threading.Lock):
        super().__init__(quiet=True)
        self._of, self._lock = progress, lock

    def advance(self, count: int) -> None:
        with self._lock:
            self._of.advance(count)

    def skip(self, count: int) -> None:
        with self._lock:
            self._of.skip(count)


class _Parcel:
    """One board's part: what it consists of, and how it gets there."""

    def __init__(self, model: str, hosts: Sequence[Host], host: Host):
        self._model, self._host = model, host
        self._board = board_of(hosts, host.place)
        with open_checkpoint(resolve(model)) as checkpoint:
            self._journal = Journal.of(checkpoint, model, False, self._board, FILE_NBYTES)
            self._small = dict(small_files(checkpoint))
        self._journal.carried = {name: describe(data) for name, data in self._small.items()}
        self._identity = hashlib.sha256(self._journal.identity.encode()).hexdigest()
        self._remote: Remote | None = None
        self._sizes = [sum(tensor.nbytes for tensor in shard) for shard in self._journal.shards]
        self.nbytes = sum(self._sizes)

    def run(self, progress: Progress) -> Pushed:
        with Remote(self._host.name, "pyllama.cluster.receiver") as remote:
            self._remote = remote
            journal = self._journal
            remote.send(
                "begin",
                {
                    "model": self._model,
                    "place": self._board.place,
                    "shares": self._board.shares,
                    "identity": self._identity,
                    "count": len(journal.shards),
                    "nbytes": [journal.estimated_nbytes(shard) for shard in journal.shards],
                },
            )
            have = remote.receive("have")
            if have["all"]:
                progress.skip(self.nbytes)
                return Pushed(self._host, have["path"], before=True)
            for name, data in self._small.items():
                remote.send("small", {"name": name, "crc32": zlib.crc32(data)})
                remote.send("data", data)
            self._files(remote, have["crc32"], progress)
            remote.send("finish")
            return Pushed(self._host, remote.receive("done")["path"])

    def _files(self, remote: Remote, have: Sequence[int], progress: Progress) -> None:
        journal, previous, count = self._journal, 0, len(self._journal.shards)
        with OwnRows(open_checkpoint(journal.path), self._board) as source:
            for number, tensors in enumerate(journal.shards, 1):
                if number <= len(have):
                    previous = have[number - 1]
                    progress.skip(self._sizes[number - 1])
                    continue
                sink = _RemoteSink(remote, shard_name(number, count))
                fields = journal.fields(number, previous)
                previous = write_to(sink, tensors, fields, tied=journal.tied, source=source, progress=progress)

    def stop(self) -> None:
        if self._remote is not None:
            self._remote.close()


class _RemoteSink:
    """A file on a board; what was sent is told by its hash."""

    def __init__(self, remote: Remote, name: str):
        self._remote = remote
        self._digest = hashlib.sha256()
        remote.send("file", {"name": name})

    def write(self, data: memoryview, at: int, direct: bool = False) -> None:
        self._digest.update(data)
        self._remote.send("at", at.to_bytes(8, "little"))
        self._remote.send("data", np.frombuffer(data, np.uint8))

    def finish(self, crc32: int) -> None:
        self._remote.send("end", {"crc32": crc32, "sha256": self._digest.hexdigest()})
        self._remote.receive("kept")

    def close(self) -> None:
        pass
