"""The pickle inside a torch.save archive -> records of tensors, without unpickling anything.

A pickle is a program. This machine runs the few instructions that a dict of tensors is made of, and
its only functions build records: an ordered dict, a tensor's geometry, a storage's name. Any other
global (os.system) is refused by name when it is mentioned, before anything could be called. There is
no attribute access, no import, no object construction.

Memory is bounded by the length of the program: every instruction adds at most one value, and values
are never copied, printed or hashed unless they are plain strings.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

from pyllama.errors import CheckpointError, shown

MAX_PICKLE_NBYTES = 512 << 10  # up to a step of Python per byte; the largest real one has 300 KB

_STORAGES = {
    ("torch", "FloatStorage"): "F32",
    ("torch", "HalfStorage"): "F16",
    ("torch", "BFloat16Storage"): "BF16",
}
_REBUILD = ("torch._utils", "_rebuild_tensor_v2")
_ORDERED = ("collections", "OrderedDict")


@dataclass(frozen=True, slots=True)
class Storage:
    """A flat array: the archive's entry data/<key>, `count` numbers of `dtype`."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A view of a storage: `offset` and `strides` in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Global:
    """A whitelisted name, as a value on the stack: either a storage type or one of the two functions."""

    __slots__ = ("name",)

    def __init__(self, name: tuple[str, str]):
        self.name = name


class _Mark:
    __slots__ = ()


_MARK = _Mark()


def read_records(data: bytes, where: str) -> dict[str, TensorRecord]:
    """name -> TensorRecord of a pickled dict of tensors; entries that are no tensors are left out.

    Raises CheckpointError for a program that is damaged, too long, or wants anything but tensors.
    """
    if len(data) > MAX_PICKLE_NBYTES:
        raise CheckpointError(f"{where}: data.pkl of {len(data)} bytes, expected at most {MAX_PICKLE_NBYTES}")
    try:
        result = _Machine(data, where).run()
    except (IndexError, struct.error):
        raise CheckpointError(f"{where}: data.pkl is damaged (stack underflow or end of data)") from None
    if not isinstance(result, dict):
        raise CheckpointError(f"{where}: holds {shown(result)}, expected a dict of tensors")
    return {name: value for name, value in result.items() if isinstance(value, TensorRecord)}


class _Machine:
    def __init__(self, data: bytes, where: str):
        self.data = data
        self.where = where
        self.position = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: data.pkl at byte {self.position}: {what}")

    def take(self, nbytes: int) -> bytes:
        end = self.position + nbytes
        if end > len(self.data):
            raise self.fail("ends early (truncated?)")
        data = self.data[self.position : end]
        self.position = end
        return data

    def unpack(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + 256)
        if end < 0:
            raise self.fail("a name without an end")
        text = self.data[self.position : end]
        self.position = end + 1
        return self.decode(text)

    def decode(self, text: bytes) -> str:
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail("text that is not UTF-8") from None

    def pop_mark(self) -> list[Any]:
        """The values above the topmost mark, which goes too."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise self.fail("no mark on the stack")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def run(self) -> Any:
        stack = self.stack
        while True:
            code = self.take(1)
            if code == b".":
                return stack.pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise self.fail(f"instruction {code!r}, expected those of a dict of tensors")
            operation(self)

    # --- instructions, by the names of pickletools

    def proto(self) -> None:
        if self.take(1)[0] > 5:
            raise self.fail("protocol above 5")

    def global_(self) -> None:
        self.push_global((self.line(), self.line()))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_global((module, name))

    def push_global(self, name: tuple[Any, Any]) -> None:
        if not all(isinstance(part, str) for part in name):
            raise self.fail("a global whose name is not text")
        if name not in _STORAGES and name not in (_REBUILD, _ORDERED):
            raise self.fail(f"wants {shown('.'.join(name))}, expected nothing but tensors; refused, not run")
        self.stack.append(_Global(name))

    def persistent_id(self) -> None:
        pid = self.stack.pop()
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise self.fail("a persistent id that is no storage")
        _, kind, key, _, count = pid
        dtype = _STORAGES.get(kind.name) if isinstance(kind, _Global) else None
        if dtype is None or not isinstance(key, str) or not re.fullmatch("[0-9]{1,9}", key):
            raise self.fail(f"storage {shown(key)}, expected a number as its name")
        if type(count) is not int or not 0 <= count < 2**48:
            raise self.fail(f"a storage of {shown(count)} numbers")
        self.stack.append(Storage(dtype, key, count))

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise self.fail("a call of something that is no function")
        if function.name == _ORDERED and arguments == ():
            self.stack.append({})
        elif function.name == _REBUILD and len(arguments) in (6, 7):
            self.stack.append(self.tensor(*arguments[:4]))
        else:
            raise self.fail(f"a call of {'.'.join(function.name)} with {len(arguments)} arguments")

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> TensorRecord:
        numbers = [shape, strides]
        if not isinstance(storage, Storage) or type(offset) is not int or not 0 <= offset < 2**48:
            raise self.fail("a tensor without a storage or with a bad offset")
        for values in numbers:
            if not isinstance(values, tuple) or len(values) > 8:
                raise self.fail("a tensor with a bad shape")
            if any(type(value) is not int or not 0 <= value < 2**48 for value in values):
                raise self.fail("a tensor with a bad shape")
        if len(shape) != len(strides):
            raise self.fail("a tensor whose shape and strides differ in length")
        return TensorRecord(storage, offset, shape, strides)

    def build(self) -> None:
        """A state_dict's attributes (its version numbers): dropped."""
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(state, dict) or not isinstance(target, dict):
            raise self.fail("attributes of something that is no dict")

    def setitems(self) -> None:
        values = self.pop_mark()
        if len(values) % 2:
            raise self.fail("a key without a value")
        self.store(values)

    def setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.store([key, value])

    def store(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise self.fail("an item of something that is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Nothing but text: the hash of a nested tuple can take for ever.
            if not isinstance(key, str):
                raise self.fail("a key that is not text")
            if key in target:
                raise self.fail(f"key {shown(key)} twice")
            target[key] = value

    def append(self) -> None:
        value = self.stack.pop()
        self.extend([value])

    def appends(self) -> None:
        self.extend(self.pop_mark())

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise self.fail("an entry of something that is no list")
        self.stack[-1].extend(values)

    def push_tuple(self, count: int) -> None:
        if count > len(self.stack):
            raise self.fail("stack underflow")
        values = self.stack[len(self.stack) - count :]
        if any(value is _MARK for value in values):
            raise self.fail("a mark inside a tuple")
        del self.stack[len(self.stack) - count :]
        self.stack.append(tuple(values))

    def long1(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.take(1)[0]), "little", signed=True))

    def put(self, index: int) -> None:
        value = self.stack[-1]
        if value is _MARK:
            raise self.fail("a mark in the memo")
        self.memo[index] = value

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise self.fail(f"memo entry {index} is empty")
        self.stack.append(self.memo[index])

    def push(self, value: Any) -> None:
        self.stack.append(value)


# Instructions a dict of tensors needs, of protocols 2 to 5. `lambda` where one line says it all.
_OPERATIONS = {
    b"\x80": _Machine.proto,
    b"\x95": lambda m: m.take(8),  # FRAME: the length of what follows, of no interest
    b"(": lambda m: m.push(_MARK),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.unpack("i")),
    b"K": lambda m: m.push(m.unpack("B")),
    b"M": lambda m: m.push(m.unpack("H")),
    b"\x8a": _Machine.long1,
    b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    b"X": lambda m: m.push(m.decode(m.take(m.unpack("I")))),
    b"\x8c": lambda m: m.push(m.decode(m.take(m.unpack("B")))),
    b"}": lambda m: m.push({}),
    b"]": lambda m: m.push([]),
    b")": lambda m: m.push(()),
    b"\x85": lambda m: m.push_tuple(1),
    b"\x86": lambda m: m.push_tuple(2),
    b"\x87": lambda m: m.push_tuple(3),
    b"t": lambda m: m.push(tuple(m.pop_mark())),
    b"a": _Machine.append,
    b"e": _Machine.appends,
    b"s": _Machine.setitem,
    b"u": _Machine.setitems,
    b"q": lambda m: m.put(m.unpack("B")),
    b"r": lambda m: m.put(m.unpack("I")),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"h": lambda m: m.get(m.unpack("B")),
    b"j": lambda m: m.get(m.unpack("I")),
    b"c": _Machine.global_,
    b"\x93": _Machine.stack_global,
    b"Q": _Machine.persistent_id,
    b"R": _Machine.reduce,
    b"b": _Machine.build,
    b"0": lambda m: m.stack.pop(),
}
