"""On a board: what `pyllama cluster push` sends -> this board's part of a model, under its name once all of it is here.

    python -m pyllama.cluster.receiver        started over ssh, see remote.py

Each file is hashed as it comes, read back from the disk, and every block of it compared with its checksum before it
counts. After a kill the files that are whole stay for the next push.
"""

import hashlib
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.packed import header_of, shard_name
from pyllama.cluster.own_part import part_name, parts_folder
from pyllama.cluster.remote import answering
from pyllama.cluster.wire import ClosedError, Link
from pyllama.errors import CheckpointError, PackError, PyllamaError
from pyllama.hub.choose import INDEX
from pyllama.packing import verify
from pyllama.packing.sinks import FileSink
from pyllama.packing.verify import first_wrong, index_bytes
from pyllama.packing.workplace import PARTIAL, Workplace, disk_errors
from pyllama.terminal.progress import format_nbytes

PUSHED = "pyllama-push.json"  # in the part's folder: what it was made of


class Receiver:
    """A part on its way."""

    def __init__(self, link: Link):
        self._link = link

    def run(self) -> None:
        asked = self._hear("begin")
        folder = parts_folder(asked["model"])
        destination = folder / part_name(asked["place"], asked["shares"])
        with disk_errors(destination):
            folder.mkdir(parents=True, exist_ok=True)
            if destination.is_dir():
                if _pushed(destination) == asked["identity"] and not _damaged(destination):
                    self._link.send("have", {"path": str(destination), "all": True})
                    return
                old = destination.with_name(destination.name + ".old")
                shutil.rmtree(old, ignore_errors=True)
                os.rename(destination, old)
                shutil.rmtree(old)
            with Workplace(destination) as work:
                try:
                    self._receive(work, asked)
                except BaseException:
                    if not any(work.folder.glob("model*.safetensors")):
                        work.abandon()  # nothing that another push could go on with
                    raise
        self._link.send("done", {"path": str(destination)})

    def _receive(self, work: Workplace, asked: dict[str, Any]) -> None:
        journal = work.journal()
        work.drop_partial()
        if journal is None or journal.get("identity") != asked["identity"]:
            work.clear()
            work.write_journal({"work": "push", "identity": asked["identity"]})
        have = self._whole(work, asked["count"])
        need = sum(asked["nbytes"][len(have) :])
        free = shutil.disk_usage(work.folder).free
        if need > free:
            raise PackError(
                f"{work.destination}: {format_nbytes(need)} to write, {format_nbytes(free)} free; free some"
            )
        self._link.send("have", {"path": str(work.destination), "all": False, "crc32": have})
        while True:
            kind, data = self._link.receive()
            if kind == "small":
                about = json.loads(data)
                contents = self._link.receive()[1]
                if zlib.crc32(contents) != about["crc32"]:
                    raise PackError(f"{about['name']}: came damaged; push again")
                work.write(_sound_name(about["name"]), bytes(contents))
            elif kind == "file":
                self._file(work, _sound_name(json.loads(data)["name"]))
            elif kind == "finish":
                break
            else:
                raise ClosedError
        if asked["count"] > 1:
            paths = [work.folder / shard_name(number, asked["count"]) for number in range(1, asked["count"] + 1)]
            work.write(INDEX, index_bytes({path: header_of(path) for path in paths}))
        work.write(PUSHED, json.dumps(asked["identity"]).encode())
        open_checkpoint(work.folder, shares=True).close()  # proves that all of it is there
        work.finish()

    def _file(self, work: Workplace, name: str) -> None:
        partial = work.folder / (name + PARTIAL)
        digest = hashlib.sha256()
        with FileSink(partial) as sink:
            while True:
                kind, data = self._link.receive()
                if kind != "at":
                    break
                at = int.from_bytes(data, "little")
                data = self._link.receive()[1]
                digest.update(data)
                sink.write(memoryview(data), at)
            if kind != "end":
                raise ClosedError
            told = json.loads(data)
            sink.finish(told["crc32"])
        if digest.hexdigest() != told["sha256"] or header_of(partial).crc32 != told["crc32"]:
            raise PackError(f"{name}: came damaged; push again")
        if wrong := first_wrong(partial, header_of(partial)):
            raise PackError(f"the disk gave back something else than was written: {wrong}")
        work.keep(partial)
        self._link.send("kept")

    def _whole(self, work: Workplace, count: int) -> list[int]:
        """Header checksums of the files that an earlier push has left whole, from the first one on; others go."""
        found: list[int] = []
        for number in range(1, count + 1):
            path = work.folder / shard_name(number, count)
            if not path.exists():
                break
            try:
                shard = header_of(path)
                if first_wrong(path, shard):
                    break
            except CheckpointError:
                break
            found.append(shard.crc32)
        for number in range(len(found) + 1, count + 1):
            (work.folder / shard_name(number, count)).unlink(missing_ok=True)
        return found

    def _hear(self, kind: str) -> dict[str, Any]:
        heard, data = self._link.receive()
        if heard != kind:
            raise ClosedError
        value: dict[str, Any] = json.loads(data)
        return value


def _pushed(folder: Path) -> Any:
    try:
        return json.loads((folder / PUSHED).read_bytes())
    except (OSError, ValueError):
        return None


def _damaged(folder: Path) -> bool:
    try:
        return bool(verify(folder).damage)
    except PyllamaError:
        return True


def _sound_name(name: str) -> str:
    if "/" in name or name.startswith(".") or not name:
        raise ClosedError
    return name


def main() -> None:
    with answering() as link:
        Receiver(link).run()


if __name__ == "__main__":
    main()
