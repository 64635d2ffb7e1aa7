"""A safetensors file -> its tensors' names, dtypes, shapes and byte ranges.

Layout: u64 header length, a JSON header, then the data; header entries are
{"dtype": "BF16", "shape": [4, 8], "data_offsets": [begin, end]} relative to the data.
Knows nothing of models. Stricter than asked for would be wrong, so the rules are the format's own:
no overlap, no hole, nothing after the last tensor.
"""

from __future__ import annotations

from math import prod
from typing import Any

from pyllama.checkpoint.files import InputFile
from pyllama.checkpoint.foreign import HEAD_NBYTES, described_bytes
from pyllama.checkpoint.index import Tensor, are_naturals, whole
from pyllama.errors import CheckpointError, UnsupportedError, shown
from pyllama.strict_json import MAX_NBYTES, parse_object

MAX_TENSORS = 65_536
_WIDTHS = {
    "F32": 4, "F16": 2, "BF16": 2,
    # Of what nobody wants.
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "I32": 4,
    "U32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


def read_safetensors(file: InputFile) -> dict[str, Tensor]:
    """name -> Tensor of one file. Reads the header only (at most 8 MB).

    Tensors of a dtype other than F32, F16 and BF16 are listed too: a buffer nobody wants may be int64.
    """
    return read_header(file)[1]


def read_header(file: InputFile) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(__metadata__, name -> Tensor) of one file."""
    where = file.path.name
    what = described_bytes(file.read(0, min(HEAD_NBYTES, file.nbytes)), file.nbytes)
    if what:
        raise CheckpointError(f"{file.path}: {what}")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MAX_NBYTES:
        raise CheckpointError(
            f"{where}: a header of {length} bytes, expected at most {MAX_NBYTES}; not a safetensors file?"
        )
    header = parse_object(file.read(8, length), f"{where}, header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{where}: __metadata__ is {shown(metadata)}, expected an object")
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{where}: {len(header)} tensors, expected at most {MAX_TENSORS}")
    base = 8 + length
    tensors = {}
    ranges = []
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(name, entry, where)
        if base + end > file.nbytes:
            raise CheckpointError(
                f"{shown(name)}: ends at byte {base + end}, expected within {file.nbytes} of file {where} (truncated?)"
            )
        ranges.append((begin, end, name))
        tensors[name] = whole(name, dtype, shape, file.path, base + begin)
    position = 0
    for begin, end, name in sorted(ranges):
        if begin != position:
            what = "overlaps another tensor" if begin < position else "leaves a hole before it"
            raise CheckpointError(f"{shown(name)}: starts at {begin} and {what}, expected {position} (file {where})")
        position = end
    if base + position != file.nbytes:
        raise CheckpointError(f"{where}: {file.nbytes} bytes, expected {base + position} from its header")
    return metadata, tensors


def _entry(name: str, entry: Any, where: str) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape, begin and end of a header entry, consistent with each other."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{shown(name)}: expected dtype, shape and data_offsets (file {where})")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise CheckpointError(f"{shown(name)}: dtype is {shown(dtype)}, expected a name (file {where})")
    width = _WIDTHS.get(dtype)
    if width is None:
        raise UnsupportedError(f"{shown(name)}: dtype {shown(dtype)} is not supported (file {where})")
    if not are_naturals(shape, 0, 8, 2**31) or not are_naturals(offsets, 2, 2):
        raise CheckpointError(
            f"{shown(name)}: shape or data_offsets are not short lists of natural numbers (file {where})"
        )
    count = prod(shape)
    begin, end = offsets
    if end - begin != count * width:
        raise CheckpointError(
            f"{shown(name)}: {shown(end - begin)} bytes, expected {shown(count * width)} for a shape "
            f"{tuple(shape)} of {dtype} (file {where})"
        )
    return dtype, tuple(shape), begin, end
