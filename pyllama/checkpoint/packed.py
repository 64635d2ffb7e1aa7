"""A folder that `pyllama pack` made -> Checkpoint: the same tensors, as row blocks in the form a pass reads them.

The container is safetensors: `model.safetensors`, or `model-00001-of-00003.safetensors` and so on. A matrix is one
U8 tensor of whole 4096-byte pages, each of its blocks beginning on a page of the file; vectors are ordinary tensors.
`__metadata__` tells the blocks and holds a checksum of the header; the blocks have one each. Beside the shards lie
the files that make the source's config and tokenizer. docs/packing.md has the format in full.

What a block's rows mean is not known here, only how they are stored.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pyllama import _kernels
from pyllama.architecture.config import Config
from pyllama.architecture.tensors import EMBEDDING
from pyllama.checkpoint.checkpoint import Checkpoint
from pyllama.checkpoint.dtypes import row_nbytes
from pyllama.checkpoint.files import SECTOR, InputFile, opening, padded
from pyllama.checkpoint.huggingface import read_config, read_object
from pyllama.checkpoint.index import StoredBlock, Tensor, are_naturals, check_index, is_described
from pyllama.checkpoint.safetensors import read_header
from pyllama.checkpoint.share import StoredShare, as_stored, as_whole
from pyllama.errors import CheckpointError, UnsupportedError, shown
from pyllama.strict_json import MAX_NBYTES, parse_object

FORMAT = "pyllama-packed"
VERSION = "1"
GGUF_HEAD = "tokenizer.gguf"  # the key/values of a GGUF source
MAX_SHARDS = 1024
MAX_CARRIED = 64

# The header's beginning, and the digits of its checksum in it. Two marks tell a packed file, so that no single
# damaged bit turns it into one of another kind.
HEAD = b'{"__metadata__":{"crc32":"'
SECOND_HEAD = b'","format":"pyllama-packed",'
CRC_AT = 8 + len(HEAD)
KEYS = ("crc32", "format", "version", "source", "rope_interleaved", "shard", "shards", "previous", "files", "tensors")
SHARE = "share"  # a key of a board's part of a model alone

_FIRST = re.compile(r"model-00001-of-[0-9]{5}\.safetensors")
_CRC = re.compile(r"[0-9a-f]{8}")


class Carried(NamedTuple):
    """A small file taken along: config, tokenizer."""

    nbytes: int
    crc32: int


class Shard(NamedTuple):
    """One file of a packed model, as its header tells it. previous is the checksum of the shard before; share is told
    in the first one, of a board's part of a model."""

    crc32: int
    source: str
    rope_interleaved: bool
    shard: int
    shards: int
    previous: int
    files: dict[str, Carried]
    tensors: dict[str, Tensor]
    share: StoredShare | None = None


def shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


def first_shard(folder: Path) -> Path | None:
    """The first file of the packed model in this folder; None if there is no packed model."""
    whole = folder / "model.safetensors"
    found = [whole] if whole.is_file() else [p for p in folder.glob("model-00001-of-*") if _FIRST.fullmatch(p.name)]
    for path in sorted(found):
        with InputFile(path) as file:
            head = file.read(0, min(file.nbytes, 128))
        if head[8 : 8 + len(HEAD)] == HEAD or head[CRC_AT + 8 : CRC_AT + 8 + len(SECOND_HEAD)] == SECOND_HEAD:
            return path
    return None


def open_packed(first: Path) -> Checkpoint:
    """Open the packed model whose first file this is; headers are checked, no block is read."""
    folder = first.parent
    with opening() as files:
        shards = []
        tensors: dict[str, Tensor] = {}
        for path, shard in read_shards(first, files):
            for name, tensor in shard.tensors.items():
                if name in tensors:
                    raise CheckpointError(f"{shown(name)}: in two shards, one is {path.name}")
                tensors[name] = tensor
            shards.append(shard)
        stored, share = tensors, shards[0].share
        if share is not None:
            tensors = as_whole(tensors, share)
        config, metadata, where = _config(folder, shards[0].source, tensors)
        index = check_index(tensors, config, where)
        if share is not None:
            index = as_stored(index, stored, share)
        return Checkpoint(
            folder,
            shards[0].source,
            config,
            index,
            files,
            rope_interleaved=shards[0].rope_interleaved,
            metadata=metadata,
            packed=True,
            share=share,
        )


def read_shards(first: Path, files: dict[Path, InputFile]) -> Iterable[tuple[Path, Shard]]:
    """(path, header) of each shard in order; every file is put into `files`, open, before its header is read."""
    folder, previous, count, number = first.parent, None, 1, 0
    while number < count:
        number += 1
        path = first if number == 1 else folder / shard_name(number, count)
        file = files[path] = InputFile(path)
        shard = read_shard(file)
        if number == 1:
            count = shard.shards
        before = previous or shard._replace(crc32=0)
        told = (shard.shard, shard.shards, shard.previous, shard.source, shard.rope_interleaved)
        expected = (number, count, before.crc32, before.source, before.rope_interleaved)
        if path.name != shard_name(number, count) or told != expected:
            raise CheckpointError(f"{path.name}: not shard {number} of this model, expected the files of one packing")
        previous = shard
        yield path, shard


def header_crc32(head: bytes | bytearray) -> int:
    """The checksum of a file's length and header, whose own digits count as zeros."""
    return zlib.crc32(head[CRC_AT + 8 :], zlib.crc32(b"0" * 8, zlib.crc32(head[:CRC_AT])))


def header_of(path: Path) -> Shard:
    """The header of the file at `path`, checked as by read_shard()."""
    with InputFile(path) as file:
        return read_shard(file)


def read_shard(file: InputFile) -> Shard:
    """The header of one file, checked against itself, its checksum and the file's size."""
    where = file.path.name
    length = int.from_bytes(file.read(0, 8), "little")
    if not CRC_AT <= length <= MAX_NBYTES or (8 + length) % SECTOR:
        raise CheckpointError(f"{where}: a header of {shown(length)} bytes, expected whole pages of {SECTOR}: damaged")
    head = file.read(0, 8 + length)
    digits = head[CRC_AT : CRC_AT + 8].decode("latin-1")
    crc32 = header_crc32(head)
    if not head.startswith(HEAD, 8) or digits != f"{crc32:08x}":
        raise CheckpointError(f"{where}: the header's checksum is {shown(digits)}, expected '{crc32:08x}': damaged")
    fields, stored = read_header(file)
    version = fields.get("version")
    if fields.get("format") != FORMAT or version != VERSION:
        raise UnsupportedError(f"{where}: version {shown(version)} of the packed form, expected {VERSION!r}")
    if set(fields) - {SHARE} != set(KEYS) or not all(isinstance(value, str) for value in fields.values()):
        raise CheckpointError(f"{where}: its metadata has other keys than a packed file")
    source, interleaved = fields["source"], fields["rope_interleaved"]
    if source not in ("huggingface", "gguf", "meta") or interleaved not in ("true", "false"):
        raise CheckpointError(f"{where}: packed from {shown(source)}, rope_interleaved {shown(interleaved)}")
    described = parse_object(fields["tensors"].encode(), f"{where}, tensors")
    if set(described) != set(stored):
        name = min(set(described) ^ set(stored))
        raise CheckpointError(f"{shown(name)}: described without being stored, or the reverse (file {where})")
    share = parse_object(fields[SHARE].encode(), f"{where}, {SHARE}") if SHARE in fields else None
    return Shard(
        crc32,
        source,
        interleaved == "true",
        _number(fields["shard"], f"{where}: shard", 1, MAX_SHARDS),
        _number(fields["shards"], f"{where}: shards", 1, MAX_SHARDS),
        int(fields["previous"], 16) if _CRC.fullmatch(fields["previous"]) else -1,
        _carried(parse_object(fields["files"].encode(), f"{where}, files"), where),
        {name: _tensor(name, described[name], stored[name], file.path) for name in described},
        StoredShare.from_json(share, f"{where}, {SHARE}") if share is not None else None,
    )


def _number(text: str, what: str, low: int, high: int) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not low <= int(text) <= high:
        raise CheckpointError(f"{what} is {shown(text)}, expected {low} to {high}")
    return int(text)


def _carried(files: Mapping[str, Any], where: str) -> dict[str, Carried]:
    found = {}
    for name, value in files.items():
        sound = 0 < len(name) < 200 and "/" not in name and name.isprintable() and not name.startswith(".")
        if not sound or not are_naturals(value, 2, 2) or len(files) > MAX_CARRIED:
            raise CheckpointError(f"{where}: {shown(name)} is no description of a file taken along")
        found[name] = Carried(*value)
    return found


def _tensor(name: str, entry: Any, stored: Tensor, path: Path) -> Tensor:
    """The tensor that `entry` describes and `stored` holds, its blocks located one after the other."""
    where = f"(file {path.name})"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "blocks"}:
        raise CheckpointError(f"{shown(name)}: expected dtype, shape and blocks {where}")
    dtype, shape, described = entry["dtype"], entry["shape"], entry["blocks"]
    if not is_described(dtype, shape) or not isinstance(described, list) or not described:
        raise CheckpointError(f"{shown(name)}: not a description of a tensor {where}")
    matrix, part = len(shape) == 2, stored.parts[0]
    expected = ("U8", (stored.rows, SECTOR)) if matrix else (dtype, tuple(shape))
    if (stored.dtype, stored.shape) != expected or (matrix and part.offset % SECTOR):
        raise CheckpointError(f"{shown(name)}: stored as {stored.dtype} {stored.shape}, expected {expected} {where}")
    rows = shape[0] if matrix else 1
    end = part.offset + (stored.rows * SECTOR if matrix else row_nbytes(dtype, shape[0]))
    blocks, row, offset = [], 0, part.offset
    for piece in described:
        block = _block(piece, dtype, shape[-1], row, offset, path)
        if block is None or (block.rows % _kernels.PANEL and row + block.rows != rows):
            raise CheckpointError(f"{shown(name)}: the block at row {row} has impossible sizes {where}")
        blocks.append(block)
        row += block.rows
        offset += padded(block.nbytes) if matrix else block.nbytes
    if (row, offset) != (rows, end):
        raise CheckpointError(
            f"{shown(name)}: blocks of {row} rows up to byte {offset}, expected {rows} rows up to {end} {where}"
        )
    return Tensor(name, dtype, tuple(shape), (), tuple(blocks))


def _block(piece: Any, dtype: str, cols: int, row: int, offset: int, path: Path) -> StoredBlock | None:
    if (
        not isinstance(piece, list)
        or len(piece) != 4
        or not are_naturals(piece[:3], 3, 3)
        or type(piece[3]) is not bool
    ):
        return None
    rows, nbytes, crc32, packed = piece
    if not 0 < rows < 2**31 or crc32 >= 2**32:
        return None
    plain = rows * row_nbytes(dtype, cols)
    if packed:
        sound = dtype == "BF16" and _kernels.packed_nbytes(rows, cols) <= nbytes <= plain
    else:
        sound = nbytes == plain
    if not sound:
        return None
    return StoredBlock(path, offset, nbytes, row, rows, "packed" if packed else "rows", crc32)


# --- the config ---------------------------------------------------------------------------------------


def _config(folder: Path, source: str, tensors: dict[str, Tensor]) -> tuple[Config, dict[str, Any], str]:
    """(config, metadata as of the source, where the config came from)."""
    if source == "huggingface":
        return read_config(folder), {}, "config.json"
    if source == "meta":
        from pyllama.checkpoint import meta
        from pyllama.checkpoint.meta_config import meta_assumptions

        config = meta.read_config(read_object(folder / "params.json"), tensors)
        return config, {"assumed": meta_assumptions(config)}, "params.json"
    from pyllama.checkpoint import gguf
    from pyllama.checkpoint.gguf_config import gguf_config

    with InputFile(folder / GGUF_HEAD) as file:
        header = gguf.read_header(file)
        factors = gguf.taken_factors(dict(header.tensors), lambda tensor: file)
    embedding = tensors.get(EMBEDDING)
    vocab_size = embedding.rows if embedding else 1
    config = gguf_config(header.metadata, tensors, vocab_size=vocab_size, **factors)
    return config, header.metadata, GGUF_HEAD
