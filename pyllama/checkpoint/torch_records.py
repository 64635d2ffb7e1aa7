"""The pickle inside a torch.save archive -> records of tensors, without unpickling anything.

A pickle is a program. The standard library takes it apart (pickletools, which runs nothing); this machine
runs the few instructions that a dict of tensors is made of, and its only functions build records: an
ordered dict, a tensor's geometry, a storage's name. Any other global (os.system) is refused by name when
it is mentioned, before anything could be called. There is no attribute access, no import, no object
construction.

Memory is bounded by the length of the program: every instruction adds at most one value, and values
are never copied, printed or hashed unless they are plain strings.
"""

from __future__ import annotations

import pickletools
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyllama.errors import CheckpointError, shown

MAX_PICKLE_NBYTES = 512 << 10  # up to a step of Python per byte; the largest real one has 300 KB


class _Global(NamedTuple):
    """A name, as a value on the stack; those below are all there are: storage types and two functions."""

    module: str
    name: str


_STORAGES = {
    _Global("torch", "FloatStorage"): "F32",
    _Global("torch", "HalfStorage"): "F16",
    _Global("torch", "BFloat16Storage"): "BF16",
}
_REBUILD = _Global("torch._utils", "_rebuild_tensor_v2")
_ORDERED = _Global("collections", "OrderedDict")
_MARK = object()


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


def read_records(data: bytes, where: str) -> dict[str, TensorRecord]:
    """name -> TensorRecord of a pickled dict of tensors; entries that are no tensors are left out.

    data: MAX_PICKLE_NBYTES at most, which whoever reads it sees to

    Raises CheckpointError for a program that is damaged, or wants anything but tensors.
    """
    try:
        result = _Machine(where).run(data)
    except IndexError:
        raise CheckpointError(f"{where}: data.pkl is damaged (stack underflow)") from None
    if not isinstance(result, dict):
        raise CheckpointError(f"{where}: holds {shown(result)}, expected a dict of tensors")
    return {name: value for name, value in result.items() if isinstance(value, TensorRecord)}


class _Machine:
    def __init__(self, where: str):
        self.where = where
        self.position = 0  # of the last instruction that could be read
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: data.pkl at byte {self.position}: {what}")

    def run(self, program: bytes) -> Any:
        try:
            for instruction, argument, position in pickletools.genops(program):
                self.position = position or 0
                self.step(instruction.name, argument)
        except (ValueError, DeprecationWarning):  # the latter by an escape in a name, where warnings are errors
            raise self.fail("what follows is damaged or ends early (truncated?)") from None
        return self.stack.pop()

    def step(self, name: str, argument: Any) -> None:
        """One instruction, of those that a dict of tensors needs in protocols 2 to 5."""
        stack = self.stack
        match name:
            case "BINPUT" | "LONG_BINPUT":
                self.put(argument)
            case "MEMOIZE":
                self.put(len(self.memo))
            case "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise self.fail(f"memo entry {argument} is empty")
                stack.append(self.memo[argument])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "MARK":
                stack.append(_MARK)
            case "TUPLE":
                stack.append(tuple(self.pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                values = [stack.pop() for _ in range(int(name[-1]))]
                if _MARK in values:
                    raise self.fail("a mark inside a tuple")
                stack.append(tuple(values[::-1]))
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "APPEND":
                self.extend([stack.pop()])
            case "APPENDS":
                self.extend(self.pop_mark())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.store([key, value])
            case "SETITEMS":
                self.store(self.pop_mark())
            case "GLOBAL":
                self.push_global(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                of, module = stack.pop(), stack.pop()
                self.push_global(module, of)
            case "BINPERSID":
                stack.append(self.storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self.result(function, arguments))
            case "BUILD":
                self.build(stack.pop())
            case "POP":
                stack.pop()
            case "PROTO":
                if argument > 5:
                    raise self.fail("protocol above 5")
            case "FRAME" | "STOP":  # the length of what follows is of no interest
                pass
            case _:
                raise self.fail(f"instruction {name}, expected those of a dict of tensors")

    def pop_mark(self) -> list[Any]:
        """The values above the topmost mark, which goes too."""
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def push_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.fail("a global whose name is not text")
        found = _Global(module, name)
        if found not in _STORAGES and found not in (_REBUILD, _ORDERED):
            raise self.fail(f"wants {shown('.'.join(found))}, expected nothing but tensors; refused, not run")
        self.stack.append(found)

    def storage(self, pid: Any) -> Storage:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise self.fail("a persistent id that is no storage")
        _, kind, key, _, count = pid
        dtype = _STORAGES.get(kind) if isinstance(kind, _Global) else None
        if dtype is None or not isinstance(key, str) or not re.fullmatch("[0-9]{1,9}", key):
            raise self.fail(f"storage {shown(key)}, expected a number as its name")
        if type(count) is not int or not 0 <= count < 2**48:
            raise self.fail(f"a storage of {shown(count)} numbers")
        return Storage(dtype, key, count)

    def result(self, function: Any, arguments: Any) -> Any:
        """Of one of the two functions."""
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise self.fail("a call of something that is no function")
        if function == _ORDERED and arguments == ():
            return {}
        if function == _REBUILD and len(arguments) in (6, 7):
            return self.tensor(*arguments[:4])
        raise self.fail(f"a call of {'.'.join(function)} with {len(arguments)} arguments")

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> TensorRecord:
        if not isinstance(storage, Storage) or type(offset) is not int or not 0 <= offset < 2**48:
            raise self.fail("a tensor without a storage or with a bad offset")
        for values in (shape, strides):
            if not isinstance(values, tuple) or len(values) > 8:
                raise self.fail("a tensor with a bad shape")
            if any(type(value) is not int or not 0 <= value < 2**48 for value in values):
                raise self.fail("a tensor with a bad shape")
        if len(shape) != len(strides):
            raise self.fail("a tensor whose shape and strides differ in length")
        return TensorRecord(storage, offset, shape, strides)

    def build(self, state: Any) -> None:
        """A state_dict's attributes (its version numbers): dropped."""
        if not isinstance(state, dict) or not isinstance(self.stack[-1], dict):
            raise self.fail("attributes of something that is no dict")

    def store(self, values: list[Any]) -> None:
        """Keys and values by turns, into the dict on top of the stack."""
        if len(values) % 2:
            raise self.fail("a key without a value")
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

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise self.fail("an entry of something that is no list")
        self.stack[-1].extend(values)

    def put(self, index: int) -> None:
        value = self.stack[-1]
        if value is _MARK:
            raise self.fail("a mark in the memo")
        self.memo[index] = value
