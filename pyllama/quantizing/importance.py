"""How much each column of a matrix matters, in files: llama.cpp's importance matrices, in both of their forms.

A column's importance is the mean of squares of what is multiplied with it. Files hold sums and what they are sums over;
names are GGUF's, of the matrices. Where the squares come from is not known here.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyllama.checkpoint.files import InputFile, read_small
from pyllama.checkpoint.gguf import read_header
from pyllama.errors import CheckpointError, RequestError, shown
from pyllama.quantizing.gguf_writer import Value, aligned, encoded, head, laid_out

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_LEGACY_NBYTES = 1 << 30
_MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class Importance:
    """What a file says.

    columns   GGUF's name of a matrix -> importance of each column, float32 (cols,); of experts (experts, cols)
    datasets  the texts it was collected from
    metadata  of a GGUF file
    """

    columns: dict[str, np.ndarray]
    datasets: tuple[str, ...]
    metadata: Mapping[str, Any]


def read_importance(path: Path) -> Importance:
    """The file at `path`. Raises CheckpointError for what is no importance matrix, or one with impossible values."""
    with InputFile(path) as file:
        found = _read_gguf(file) if file.nbytes >= 4 and file.read(0, 4) == b"GGUF" else _read_legacy(path)
    for name, columns in found.columns.items():
        if not (np.isfinite(columns).all() and (columns >= 0).all()):
            raise CheckpointError(f"{path}: {shown(name)}: an importance that is no number from 0 on (damaged?)")
    return found


def _read_gguf(file: InputFile) -> Importance:
    header = read_header(file)
    if header.metadata.get("general.type") != "imatrix":
        raise CheckpointError(
            f"{file.path}: general.type is {shown(header.metadata.get('general.type'))}, not 'imatrix'"
        )

    def values(name: str) -> np.ndarray:
        tensor = header.tensors.get(name)
        if tensor is None or tensor.dtype != "F32":
            raise CheckpointError(f"{file.path}: {shown(name)}: missing or not F32, expected sums and counts")
        return np.frombuffer(file.read(tensor.parts[0].offset, tensor.nbytes), "<f4")

    columns = {}
    for name in header.tensors:
        if name.endswith(_SUMS):
            matrix = name.removesuffix(_SUMS)
            sums, counts = values(name), values(matrix + _COUNTS)
            if len(counts) and counts.sum() > 0 and len(sums) % len(counts) == 0:
                columns[matrix] = _means(sums.reshape(len(counts), -1), counts)
    datasets = header.metadata.get("imatrix.datasets", ())
    return Importance(columns, tuple(map(str, datasets)), header.metadata)


def _means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(cols,) of one matrix, (experts, cols) of several. An expert that nothing went to is like all the others taken as
    one: their inputs are of the same layer."""
    if len(counts) == 1:
        return np.asarray(sums[0] / counts[0])
    whole = sums.sum(axis=0, dtype=np.float64) / counts.sum(dtype=np.float64)
    means = [row / count if count > 0 else whole for row, count in zip(sums, counts, strict=True)]
    return np.array(means, np.float32)


def _read_legacy(path: Path) -> Importance:
    """The form before GGUF's: a count; for each matrix its name, calls, columns and values; calls in all and a text."""
    data = read_small(path, _MAX_LEGACY_NBYTES)
    at = 0

    def number() -> int:
        nonlocal at
        if at + 4 > len(data):
            raise CheckpointError(f"{path}: ends at byte {len(data)} or is no importance matrix")
        at += 4
        return int(struct.unpack_from("<i", data, at - 4)[0])

    def take(nbytes: int, most: int) -> bytes:
        nonlocal at
        if not 0 < nbytes <= min(most, len(data) - at):
            raise CheckpointError(f"{path}: {nbytes} bytes at byte {at}: damaged, or no importance matrix")
        at += nbytes
        return data[at - nbytes : at]

    columns = {}
    for _ in range(number()):
        name = take(number(), _MAX_NAME).decode("utf-8", "replace")
        calls = number()
        values = np.frombuffer(take(4 * number(), len(data)), "<f4")
        columns[name] = values / np.float32(max(calls, 1))
    if not columns:
        raise CheckpointError(f"{path}: no importance matrix: it names no tensors")
    text = ""
    if at + 8 <= len(data):
        number()
        text = take(number(), len(data)).decode("utf-8", "replace")
    return Importance(columns, (text,) if text else (), {})


def importance_bytes(
    sums: Mapping[str, np.ndarray], counts: Mapping[str, np.ndarray], metadata: Mapping[str, Value]
) -> bytes:
    """A GGUF file of sums of squares, float64 (cols,) over so many tokens (1,); of experts (experts, cols) and
    (experts,)."""
    arrays: dict[str, np.ndarray] = {}
    for name, squares in sums.items():
        arrays[name + _SUMS] = squares.astype("<f4")
        arrays[name + _COUNTS] = (
            counts[name].reshape(-1, 1).astype("<f4") if squares.ndim > 1 else counts[name].astype("<f4")
        )
    values: dict[str, Value] = {"general.type": "imatrix", **metadata}
    infos = laid_out((name, "F32", array.shape) for name, array in arrays.items())
    out = [head({key: encoded(value) for key, value in values.items()}, infos)]
    for array in arrays.values():
        out.append(array.tobytes() + bytes(aligned(array.nbytes) - array.nbytes))
    return b"".join(out)


def check_fits(found: Importance, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raise RequestError for an importance matrix of another model.

    shapes: under GGUF's names, of the model's tensors
    """
    for name, columns in found.columns.items():
        if name not in shapes:
            continue
        shape = shapes[name]
        if columns.shape[-1] != shape[-1]:
            raise RequestError(f"{path}: {name} has {columns.shape[-1]} columns, expected {shape[-1]} of this model")
        experts = shape[0] if len(shape) == 3 else 1
        if columns.size != experts * shape[-1]:
            told = columns.size // shape[-1]
            raise RequestError(f"{path}: {name} is of {told} matrices, expected {experts} of this model")
    if not found.columns.keys() & shapes.keys():
        raise RequestError(f"{path}: no importance of a tensor of this model")
