"""Key/values and tensor infos -> the bytes of a GGUF file's head (version 3, little-endian).

A value's NumPy type is the type it is stored with: np.uint32(5) is a UINT32. Where the tensors' bytes come from is not
known here, only where they go.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from pyllama.checkpoint.dtypes import row_nbytes
from pyllama.checkpoint.gguf import ARRAY, BOOL, FORMATS, STRING, VALUE_TYPES

_NUMBER_OF = {dtype: number for number, dtype in FORMATS.items()}
_TYPES = {np.dtype(code): number for number, code in VALUE_TYPES.items()}
ALIGNMENT = 32

Value = bool | str | np.generic | np.ndarray | Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Info:
    """A tensor of the file; shape as in Hugging Face, offset from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape[:-1]) * row_nbytes(self.dtype, self.shape[-1])


def encoded(value: Value) -> bytes:
    """The type and the value as they follow a key. A sequence of bytes is an array of strings."""
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value.encode())
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", ARRAY, _TYPES[value.dtype], len(value)) + _little(value).tobytes()
    if isinstance(value, np.generic):
        return struct.pack("<I", _TYPES[value.dtype]) + _little(np.asarray(value)).tobytes()
    return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_text, value))


def plain(values: Mapping[str, Value]) -> dict[str, Any]:
    """The same key/values as a reader of the file has them."""
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()}


def _little(value: np.ndarray) -> np.ndarray:
    return value.astype(value.dtype.newbyteorder("<"))


def _text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def laid_out(tensors: Iterable[tuple[str, str, tuple[int, ...]]], alignment: int = ALIGNMENT) -> list[Info]:
    """Infos of (name, dtype, shape), one after the other, each from a multiple of the alignment."""
    found, offset = [], 0
    for name, dtype, shape in tensors:
        info = Info(name, dtype, shape, offset)
        found.append(info)
        offset = aligned(offset + info.nbytes, alignment)
    return found


def aligned(nbytes: int, alignment: int = ALIGNMENT) -> int:
    return -(-nbytes // alignment) * alignment


def head(metadata: Mapping[str, bytes], infos: Sequence[Info], alignment: int = ALIGNMENT) -> bytes:
    """All that stands before the data, padding included; metadata's values are encoded()."""
    out = [b"GGUF", struct.pack("<IQQ", 3, len(infos), len(metadata))]
    for key, value in metadata.items():
        out += [_text(key.encode()), value]
    for info in infos:
        out.append(_text(info.name.encode()))
        out.append(struct.pack(f"<I{len(info.shape)}Q", len(info.shape), *reversed(info.shape)))
        out.append(struct.pack("<IQ", _NUMBER_OF[info.dtype], info.offset))
    data = b"".join(out)
    return data + bytes(aligned(len(data), alignment) - len(data))
