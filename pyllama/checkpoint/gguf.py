"""A GGUF file, single or split -> Checkpoint under Hugging Face names.

Layout (version 2 and 3, little-endian): magic, u32 version, u64 tensor count, u64 key count, the
key/values, the tensor infos, padding to the alignment, the data. Dimensions are stored innermost
first, so a shape is read backwards. Quantized blocks are located, never interpreted.

Files of the llama architecture hold the rows of q and k (and their biases) in interleaved rotary
order: the converter permutes them. Those of qwen2 and qwen3 do not.
"""

from __future__ import annotations

import math
import re
import struct
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyllama.architecture.config import RopeScaling
from pyllama.architecture.tensors import EMBEDDING, tensor_shapes
from pyllama.checkpoint.checkpoint import Checkpoint
from pyllama.checkpoint.dtypes import DTYPES
from pyllama.checkpoint.files import InputFile, opening
from pyllama.checkpoint.foreign import HEAD_NBYTES, described_bytes
from pyllama.checkpoint.gguf_config import UNTURNED, gguf_config, gguf_family, guessing_layers
from pyllama.checkpoint.index import Tensor, check_index, deal, whole
from pyllama.checkpoint.string_list import PREFIX, StringList
from pyllama.errors import CheckpointError, UnsupportedError, shown

MAX_HEADER_NBYTES = 64 << 20  # a vocabulary of 256,000 with its merges takes 20 MB
MAX_KEYS = 4096
MAX_TENSORS = 65_536
MAX_STRINGS = 1_000_000  # in all arrays together: each costs a step of Python
MAX_NAME_NBYTES = 256
MAX_TEXT_NBYTES = 4 << 20  # of all values that are one string: a character outside Latin-1 takes 2 or 4 bytes of memory
MAX_FILES = 1024
MAX_ROPE_FACTORS = 512
CHUNK_NBYTES = 1 << 20

# ggml's numbers; DTYPES has those that are read, the others are named in the refusal.
FORMATS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 30: "BF16",
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    28: "F64", 29: "IQ1_M", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0",
    36: "I2_S or IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
    # of ik_llama.cpp
    133: "Q6_0", 134: "IQ1_BN", 135: "IQ2_BN", 137: "IQ2_K", 138: "IQ3_K", 139: "IQ4_K", 140: "IQ5_K", 141: "IQ6_K",
    144: "IQ4_KS", 145: "IQ2_KS", 146: "IQ4_KSS", 152: "IQ5_KS", 153: "IQ2_KT", 154: "IQ3_KT", 155: "IQ4_KT",
    156: "IQ3_KS", 157: "IQ2_KL", 158: "IQ1_KT",
}  # fmt: skip

# Tensors that are part of the config.
ROPE_FREQS = "rope_freqs.weight"
ROPE_SHORT, ROPE_LONG = "rope_factors_short.weight", "rope_factors_long.weight"

_STRING, _ARRAY, _BOOL = 8, 9, 7
_LENGTH = struct.Struct("<Q")
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_ARRAY_TYPES = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8",
    12: "<f8",
}  # fmt: skip

# general.type: what else is put into GGUF files.
_TYPES = {
    "adapter": ": a LoRA adapter; merge it into its model (llama-export-lora of llama.cpp) and give that file",
    "mmproj": ": the part of a model that sees or hears; give the file of the language model",
    "imatrix": ": an importance matrix, made to quantize a model; give the model's own file",
    "control_vector": ": a control vector for a model; give the model's own file",
    "vocab": ": a vocabulary alone; give the model's own file",
}
_SPLIT = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf")


class Header(NamedTuple):
    """What stands before the data: key/values, the byte at which they end, tensors under GGUF names, and for each key
    the first byte of its value's type and the one behind its value."""

    metadata: dict[str, Any]
    metadata_end: int
    tensors: dict[str, Tensor]
    values: dict[str, tuple[int, int]]


def open_gguf(path: Path, opener: Callable[[Path], Any] | None = None) -> Checkpoint:
    """Open a GGUF file, and the rest of its split if it is the first of one.

    opener  opens a file elsewhere than on a disk, as something with path, nbytes, read(), read_into() and close()
    """
    with opening() as files:
        file = files[path] = (opener or InputFile)(path)
        header = read_header(file)
        metadata, tensors = header.metadata, header.tensors
        for other in _other_parts(path, metadata):
            if opener is None and not other.exists():
                raise CheckpointError(f"{other}: missing, expected beside {path.name}; fetch all parts of the model")
            file = files[other] = (opener or InputFile)(other)
            header = read_header(file)
            _check_split(other, header.metadata)
            for name, tensor in header.tensors.items():
                if name in tensors:
                    raise CheckpointError(f"{shown(name)}: in two files of the split, one is {other.name}")
                tensors[name] = tensor
        total = _count(path, metadata, "split.tensors.count", len(tensors))
        if total != len(tensors):
            raise CheckpointError(f"{path.name}: {len(tensors)} tensors, expected {shown(total)} in all")
        return _checkpoint(path, metadata, tensors, files)


def architecture_of(path: Path) -> str | None:
    """general.architecture, read from as little of the file as it takes; None where it is not said."""
    with InputFile(path) as file:
        cursor = _Cursor(file)
        if cursor.copy(cursor.need(4), 4) == b"GGUF":
            cursor.need(4)  # the version
            cursor.need(8)  # the number of tensors
            for _ in range(min(cursor.unpack("Q"), MAX_KEYS)):
                key, value = cursor.name("a key"), cursor.value("a value")
                if key == "general.architecture":
                    return value if isinstance(value, str) else None
    return None


def first_of_one(paths: Sequence[Path]) -> Path:
    """The file to open among a folder's GGUF files: there must be one model, whole or split."""
    firsts = []
    for path in paths:
        match = _SPLIT.fullmatch(path.name)
        if match is None or int(match[2]) == 1:
            firsts.append(path)
    if len(firsts) == 1:
        return firsts[0]
    if not firsts:
        raise CheckpointError(f"{paths[0]}: part of a split model whose first file is missing")
    names = ", ".join(path.name for path in firsts[:4])
    raise CheckpointError(f"{paths[0].parent}: {len(firsts)} GGUF models ({names}); give the file you mean")


def _checkpoint(
    path: Path, metadata: dict[str, Any], found: dict[str, Tensor], files: dict[Path, InputFile]
) -> Checkpoint:
    kind = metadata.get("general.type", "model")
    if not isinstance(kind, str) or kind != "model":
        what = _TYPES.get(kind, "") if isinstance(kind, str) else ""
        raise UnsupportedError(f"{path.name}: general.type {shown(kind)} is not supported, expected 'model'{what}")
    if not found and "general.architecture" in metadata:
        raise UnsupportedError(f"{path.name}: no tensors, only metadata, such as a vocabulary; get the model itself")
    factors, long_factors = taken_factors(found, lambda tensor: files[tensor.parts[0].file])
    family = gguf_family(metadata)
    for name in guessing_layers(metadata, found):
        del found[name]
    names = {ours: name for name in found for ours in family.gguf.ours(name)}
    embedding = found.get(names.get(EMBEDDING, ""))
    vocab_size = embedding.rows if embedding else 1
    config = gguf_config(metadata, names, vocab_size=vocab_size, rope_factors=factors, long_factors=long_factors)
    tensors = deal(found, family.gguf, tensor_shapes(config), f"a {config.model_type} model in a GGUF file")
    index = check_index(tensors, config, {p: f.nbytes for p, f in files.items()}, "the GGUF metadata")
    return Checkpoint(path, "gguf", config, index, files, rope_interleaved=family.gguf_interleaved, metadata=metadata)


def taken_factors(
    found: dict[str, Tensor], file_of: Callable[[Tensor], InputFile]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The divisors of the rotary frequencies, and those of long contexts, taken out of the tensors; () for none."""
    values = {}
    for name in (ROPE_FREQS, ROPE_SHORT, ROPE_LONG):
        tensor = found.pop(name, None)
        values[name] = rope_factors(file_of(tensor), tensor) if tensor else ()
    return values[ROPE_FREQS] or values[ROPE_SHORT], values[ROPE_LONG]


def factor_tensors(scaling: RopeScaling | None) -> list[tuple[str, np.ndarray]]:
    """The names and float32 values under which a GGUF file has what divides rotary frequencies."""
    if scaling is None or not scaling.factors:
        return []
    if scaling.kind != "longrope":
        return [(ROPE_FREQS, np.minimum(scaling.factors, 10 * UNTURNED).astype("<f4"))]
    both = ((ROPE_LONG, scaling.long_factors), (ROPE_SHORT, scaling.factors))
    return [(name, np.array(values, "<f4")) for name, values in both]


def rope_factors(file: InputFile, tensor: Tensor) -> tuple[float, ...]:
    """The divisors of the rotary frequencies, which Llama 3.1 files carry instead of parameters."""
    if tensor.dtype != "F32" or len(tensor.shape) != 1 or not 1 <= tensor.cols <= MAX_ROPE_FACTORS:
        raise CheckpointError(f"{tensor.name}: {tensor.dtype} {tensor.shape}, expected F32 (head_dim / 2,)")
    values = np.frombuffer(file.read(tensor.parts[0].offset, tensor.nbytes), "<f4")
    # Comparisons with NaN are false.
    if not np.all((values > 0) & ((values < 1e9) | ((values >= UNTURNED) & (values < math.inf)))):
        raise CheckpointError(f"{tensor.name}: values out of range, expected positive numbers below 1e9")
    return tuple(float(value) for value in values)


# --- split files ------------------------------------------------------------------------------------


def _other_parts(path: Path, metadata: dict[str, Any]) -> list[Path]:
    count = _count(path, metadata, "split.count", 0)
    if count in (0, 1):
        return []
    match = _SPLIT.fullmatch(path.name)
    if count > MAX_FILES or match is None or int(match[3]) != count:
        raise CheckpointError(
            f"{path.name}: split.count is {shown(count)}, expected a name like model-00001-of-00003.gguf"
        )
    first = path.with_name(f"{match[1]}-00001-of-{count:05}.gguf")
    if int(match[2]) != 1 or _count(path, metadata, "split.no", 0) != 0:
        raise CheckpointError(f"{path.name}: not the first file of a split model; give {first.name}")
    return [path.with_name(f"{match[1]}-{i:05}-of-{count:05}.gguf") for i in range(2, count + 1)]


def _check_split(path: Path, metadata: dict[str, Any]) -> None:
    match = _SPLIT.fullmatch(path.name)
    assert match is not None  # the name was made by _other_parts
    number, count = int(match[2]) - 1, int(match[3])
    got = _count(path, metadata, "split.no", -1), _count(path, metadata, "split.count", 0)
    if got != (number, count):
        raise CheckpointError(f"{path.name}: part {got[0]} of {got[1]}, expected {number} of {count} from its name")


def _count(path: Path, metadata: dict[str, Any], key: str, default: int) -> int:
    value = metadata.get(key, default)
    if type(value) is not int or not -1 <= value <= MAX_TENSORS:
        raise CheckpointError(f"{path.name}: {key} is {shown(value)}, expected a small number")
    return value


# --- the header -------------------------------------------------------------------------------------


class _Cursor:
    """Reads values one after another from the head of a file, fetching it in chunks."""

    def __init__(self, file: InputFile):
        self.file = file
        self.where = file.path.name
        self.buffer = bytearray()
        self.base = 0  # where the buffer begins in the file
        self.position = 0  # in the buffer
        self.strings = 0
        self.text_nbytes = 0

    def need(self, nbytes: int) -> int:
        """Step over the next `nbytes` bytes, once they are in the buffer; returns where they start."""
        start = self.position
        end = start + nbytes
        if end > len(self.buffer):
            if self.base + end > min(self.file.nbytes, MAX_HEADER_NBYTES):
                raise CheckpointError(
                    f"{self.where}: header needs {shown(self.base + end)} bytes, expected at most {MAX_HEADER_NBYTES} "
                    f"and within the {self.file.nbytes} of the file (truncated?)"
                )
            have = self.base + len(self.buffer)
            goal = min(max(self.base + end, have + CHUNK_NBYTES), self.file.nbytes)
            self.buffer += self.file.read(have, goal - have)
        self.position = end
        return start

    def copy(self, start: int, end: int) -> bytes:
        """Bytes of the buffer; through a view, since a slice would be a second copy."""
        with memoryview(self.buffer) as view, view[start:end] as part:
            return bytes(part)

    def release(self) -> None:
        """Forget the bytes already read: a vocabulary and its merges are not held twice."""
        if self.position >= CHUNK_NBYTES:
            self.buffer = self.buffer[self.position :]  # a deletion in place would keep the memory
            self.base += self.position
            self.position = 0

    def unpack(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self.buffer, self.need(struct.calcsize("<" + code)))[0]

    def text(self, what: str, most: int) -> bytes:
        length = self.unpack("Q")
        if length > most:
            raise CheckpointError(f"{self.where}: {what} of {length} bytes, expected at most {most}")
        start = self.need(length)
        return self.copy(start, start + length)

    def name(self, what: str) -> str:
        data = self.text(what, MAX_NAME_NBYTES)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.where}: {what} {shown(data)} is not UTF-8") from None

    def value(self, key: str) -> Any:
        kind = self.unpack("I")
        if kind == _STRING:
            data = self.text(f"value of {shown(key)}", MAX_TEXT_NBYTES)
            self.text_nbytes += len(data)
            if self.text_nbytes > MAX_TEXT_NBYTES:
                raise CheckpointError(f"{self.where}: more than {MAX_TEXT_NBYTES} bytes of text in the key/values")
            return data.decode("utf-8", "replace")
        if kind == _ARRAY:
            return self.array(key)
        if kind not in _SCALARS:
            raise CheckpointError(f"{self.where}: {shown(key)} has value type {kind}, expected 0 to 12")
        value = self.unpack(_SCALARS[kind])
        if kind != _BOOL:
            return value
        if value > 1:
            raise CheckpointError(f"{self.where}: {shown(key)} is the boolean {value}, expected 0 or 1")
        return bool(value)

    def array(self, key: str) -> StringList | np.ndarray:
        kind, count = self.unpack("I"), self.unpack("Q")
        if kind == _STRING:
            return self.string_list(key, count)
        if kind not in _ARRAY_TYPES:
            raise CheckpointError(f"{self.where}: {shown(key)} is an array of type {kind}, expected 0 to 12")
        dtype = np.dtype(_ARRAY_TYPES[kind])
        if count > MAX_HEADER_NBYTES:
            raise CheckpointError(f"{self.where}: {shown(key)} has {count} entries, expected fewer")
        start = self.need(count * dtype.itemsize)
        data = self.copy(start, start + count * dtype.itemsize)
        if kind == _BOOL and data.strip(b"\0\1"):
            raise CheckpointError(f"{self.where}: {shown(key)} holds booleans other than 0 and 1")
        return np.frombuffer(data, dtype)

    def string_list(self, key: str, count: int) -> StringList:
        self.strings += count
        if self.strings > MAX_STRINGS:
            raise CheckpointError(
                f"{self.where}: {shown(key)} has {count} strings, expected at most {MAX_STRINGS} in all"
            )
        self.need(count * PREFIX)  # the least they can take: a count no file of this size can hold fails here
        self.position -= count * PREFIX
        begin = position = self.position
        starts = array("I")
        unpack, buffer, have = _LENGTH.unpack_from, self.buffer, len(self.buffer)
        for _ in range(count):  # half a million times in a large vocabulary, so it calls as little as it can
            if position + PREFIX > have:
                self.position = position
                self.need(PREFIX)
                have = len(buffer)
            length = unpack(buffer, position)[0]
            position += PREFIX
            starts.append(position - begin)
            position += length
            if position > have:
                self.position = position - length
                self.need(length)
                have = len(buffer)
        self.position = position
        starts.append(position - begin + PREFIX)
        return StringList(self.copy(begin, position), np.frombuffer(starts, np.uint32))


def read_header(file: InputFile) -> Header:
    """The header of one file; every tensor's bytes lie within it."""
    cursor = _Cursor(file)
    where = cursor.where
    what = described_bytes(file.read(0, min(HEAD_NBYTES, file.nbytes)), file.nbytes)
    if what:
        raise CheckpointError(f"{file.path}: {what}")
    cursor.need(4)
    magic = bytes(cursor.buffer[:4])
    if magic != b"GGUF":
        raise CheckpointError(f"{where}: starts with {shown(magic)}, expected b'GGUF'")
    version = cursor.unpack("I")
    if version & 0xFFFF == 0:
        raise UnsupportedError(f"{where}: a big-endian GGUF file is not supported; get the little-endian one")
    if version not in (2, 3):
        raise UnsupportedError(f"{where}: GGUF version {version} is not supported, expected 2 or 3")
    tensor_count, key_count = cursor.unpack("Q"), cursor.unpack("Q")
    if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
        raise CheckpointError(
            f"{where}: {tensor_count} tensors and {key_count} keys, expected at most {MAX_TENSORS} and {MAX_KEYS}"
        )
    metadata: dict[str, Any] = {}
    values: dict[str, tuple[int, int]] = {}
    for _ in range(key_count):
        key = cursor.name("a key")
        if key in metadata:
            raise CheckpointError(f"{where}: key {shown(key)} appears twice")
        begin = cursor.base + cursor.position
        metadata[key] = cursor.value(key)
        values[key] = (begin, cursor.base + cursor.position)
        cursor.release()
    metadata_end = cursor.base + cursor.position
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment % 8:
        raise CheckpointError(f"{where}: general.alignment is {shown(alignment)}, expected a multiple of 8")
    infos = [_tensor_info(cursor, alignment) for _ in range(tensor_count)]
    base = -(-(cursor.base + cursor.position) // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for name, dtype, shape, offset in infos:
        if name in tensors:
            raise CheckpointError(f"{shown(name)}: appears twice (file {where})")
        tensors[name] = tensor = whole(name, dtype, shape, file.path, base + offset)
        end = base + offset + tensor.nbytes
        if end > file.nbytes:
            raise CheckpointError(
                f"{shown(name)}: ends at byte {end}, expected within {file.nbytes} of file {where} (truncated?)"
            )
    return Header(metadata, metadata_end, tensors, values)


def _tensor_info(cursor: _Cursor, alignment: int) -> tuple[str, str, tuple[int, ...], int]:
    """name, dtype, shape and offset from the start of the data."""
    name = cursor.name("a tensor's name")
    where = f"(file {cursor.where})"
    count = cursor.unpack("I")
    if not 1 <= count <= 4:
        raise CheckpointError(f"{shown(name)}: {count} dimensions, expected 1 to 4 {where}")
    shape = tuple(cursor.unpack("Q") for _ in range(count))[::-1]
    number, offset = cursor.unpack("I"), cursor.unpack("Q")
    dtype = FORMATS.get(number, f"number {number}")
    if dtype not in DTYPES:
        raise UnsupportedError(
            f"{shown(name)}: storage format {dtype} is not supported {where}; get a file of one of {', '.join(DTYPES)}"
        )
    if any(not 1 <= dim < 2**31 for dim in shape):
        raise CheckpointError(f"{shown(name)}: shape {shape}, expected sizes from 1 to {2**31 - 1} {where}")
    if len(shape) > 3:
        raise UnsupportedError(f"{shown(name)}: a tensor of shape {shape} is not supported {where}")
    if shape[-1] % DTYPES[dtype][0]:
        raise CheckpointError(
            f"{shown(name)}: {shape[-1]} columns, expected a multiple of {DTYPES[dtype][0]} for {dtype} {where}"
        )
    if offset % alignment or offset >= 2**62:
        raise CheckpointError(f"{shown(name)}: offset {offset}, expected a multiple of {alignment} {where}")
    return name, dtype, shape, offset
