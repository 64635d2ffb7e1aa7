"""Passes and messages as bytes: between the front end and rank 0 through a socket, and from there to all ranks."""

import json
import os
import socket
import struct
from typing import Any

import numpy as np

from pyllama.decoder.passes import Pass

SOCKET = "PYLLAMA_CLUSTER_SOCKET"  # of the environment: where the front end listens, for rank 0
_ARRAYS = (
    ("token_ids", np.int64, 1), ("positions", np.int64, 1), ("sequences", np.int32, 1), ("pages", np.int32, 2),
    ("writes", np.int32, 2), ("copies", np.int32, 2), ("rows", np.int64, 1),
)  # fmt: skip
_FRAME = struct.Struct("<8sQ")
_MOST = 1 << 34  # bytes of a frame


class ClosedError(Exception):
    """The other end is gone."""


def pass_to_bytes(planned: Pass) -> bytes:
    """The counts first, then the arrays one behind the other; of a model whose layers carry no state."""
    arrays = [np.ascontiguousarray(getattr(planned, name), dtype) for name, dtype, _ in _ARRAYS]
    counts = [planned.page_count, *(size for array in arrays for size in array.shape)]
    return struct.pack(f"<{len(counts)}q", *counts) + b"".join(array.tobytes() for array in arrays)


def pass_of_bytes(data: bytes) -> Pass:
    dimensions = [dim for _, _, dim in _ARRAYS]
    counts = struct.unpack_from(f"<{1 + sum(dimensions)}q", data)
    arrays: dict[str, Any] = {}
    at, number = 8 * len(counts), 1
    for name, dtype, dim in _ARRAYS:
        shape = counts[number : number + dim]
        number += dim
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(data, dtype, count, at).reshape(shape).copy()
        at += count * np.dtype(dtype).itemsize
    return Pass(page_count=counts[0], **arrays)


class Link:
    """A stream socket that carries (kind, bytes): kind is a word of up to eight letters."""

    def __init__(self, connection: "socket.socket | Pipes"):
        self._socket = connection

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, kind: str, data: Any = b"") -> None:
        """data: bytes, a NumPy array, or what JSON can say. Raises ClosedError."""
        raw = data if isinstance(data, bytes) else _raw(data)
        try:
            self._socket.sendall(_FRAME.pack(kind.encode().ljust(8), len(raw)))
            if len(raw):
                self._socket.sendall(raw)
        except OSError:
            raise ClosedError from None

    def receive(self) -> tuple[str, bytearray]:
        """The next one. Raises ClosedError at the end of the stream, also of one that was cut off."""
        kind, nbytes = _FRAME.unpack(self._read(_FRAME.size))
        if nbytes > _MOST:
            raise ClosedError
        return kind.decode("ascii", "replace").strip(), self._read(nbytes)

    def _read(self, nbytes: int) -> bytearray:
        data = bytearray(nbytes)
        view, done = memoryview(data), 0
        while done < nbytes:
            try:
                got = self._socket.recv_into(view[done:])
            except OSError:
                got = 0
            if not got:
                raise ClosedError
            done += got
        return data

    def close(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()


def _raw(data: Any) -> Any:
    return data.reshape(-1).view(np.uint8).data if isinstance(data, np.ndarray) else json.dumps(data).encode()


class Pipes:
    """What Link asks of a socket, of two file descriptors, such as those of ssh."""

    def __init__(self, reading: int, writing: int):
        self._reading, self._writing = reading, writing

    def fileno(self) -> int:
        return self._reading

    def sendall(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        while len(view):
            view = view[os.write(self._writing, view) :]

    def recv_into(self, view: memoryview) -> int:
        data = os.read(self._reading, min(len(view), 1 << 20))
        view[: len(data)] = data
        return len(data)

    def shutdown(self, how: int) -> None:
        pass

    def close(self) -> None:
        for fd in {self._reading, self._writing}:
            os.close(fd)
