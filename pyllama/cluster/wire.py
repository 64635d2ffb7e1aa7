"""Passes and messages as bytes: between the front end and rank 0 through a socket, and from there to all ranks."""

import json
import os
import socket
import struct
from typing import Any

import numpy as np

from pyllama.decoder.passes import Pass
from pyllama.decoder.states import StateSteps

SOCKET = "PYLLAMA_CLUSTER_SOCKET"  # of the environment: where the front end listens, for rank 0
_ARRAYS = (
    ("token_ids", np.int64, 1), ("positions", np.int64, 1), ("sequences", np.int32, 1), ("pages", np.int32, 2),
    ("writes", np.int32, 2), ("copies", np.int32, 2), ("rows", np.int64, 1),
)  # fmt: skip
#: What the ranks are asked to do, the first byte of an order.
PASS, READ, WRITE, COPY = b"P", b"R", b"W", b"C"
#: What they hold, in the orders but passes: the number of a page or a state, that of another, whether it is a state.
HELD = struct.Struct("<qq?")
_FRAME = struct.Struct("<8sQ")
_MOST = 1 << 34  # bytes of a frame


class ClosedError(Exception):
    """The other end is gone."""


_STEPS = (
    ("gathered", np.int32, 1), ("sources", np.int32, 1), ("starts", np.int32, 1), ("steps", np.int32, 1),
    ("store_starts", np.int32, 1), ("stores", np.int32, 2), ("journal", np.int32, 2),
)  # fmt: skip
_Fields = tuple[tuple[str, Any, int], ...]


def pass_to_bytes(planned: Pass) -> bytes:
    """Numbers first, then the arrays one behind the other; then the same of what layers with a state do, if some do."""
    data = _to_bytes((planned.page_count,), planned, _ARRAYS)
    steps = planned.steps
    return data if steps is None else data + _to_bytes((steps.slot_count, steps.row_count), steps, _STEPS)


def pass_of_bytes(data: bytes) -> Pass:
    (page_count,), arrays, end = _of_bytes(data, 0, 1, _ARRAYS)
    if end == len(data):
        return Pass(page_count=page_count, **arrays)
    (slots, rows), steps, _ = _of_bytes(data, end, 2, _STEPS)
    return Pass(page_count=page_count, **arrays, steps=StateSteps(slot_count=slots, row_count=rows, **steps))


def _to_bytes(numbers: tuple[int, ...], of: object, fields: _Fields) -> bytes:
    arrays = [np.ascontiguousarray(getattr(of, name), dtype) for name, dtype, _ in fields]
    counts = [*numbers, *(size for array in arrays for size in array.shape)]
    return struct.pack(f"<{len(counts)}q", *counts) + b"".join(array.tobytes() for array in arrays)


def _of_bytes(data: bytes, at: int, numbers: int, fields: _Fields) -> tuple[tuple[int, ...], dict[str, Any], int]:
    """The numbers, the arrays by name, and where they end."""
    counts = struct.unpack_from(f"<{numbers + sum(dim for _, _, dim in fields)}q", data, at)
    arrays: dict[str, Any] = {}
    at, number = at + 8 * len(counts), numbers
    for name, dtype, dim in fields:
        shape = counts[number : number + dim]
        number += dim
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(data, dtype, count, at).reshape(shape).copy()
        at += count * np.dtype(dtype).itemsize
    return counts[:numbers], arrays, at


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
