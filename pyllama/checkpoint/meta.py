"""Meta's original folder -> Checkpoint: params.json and consolidated.NN.pth, one shard per NN.

The shards are cut for model parallelism: the outputs of q, k, v, gate, up and the head by rows, the
inputs of o and down by columns, the embedding by columns (Llama 1 and 2) or rows (Llama 3); norms are
whole in every shard. Which way a matrix was cut is told by the shapes. Rows of q and k lie in
interleaved rotary order.

What the folder does not say (the length of the context, the ids that end a text) is taken from the
family; `metadata["assumed"]` says so.
"""

from __future__ import annotations

import re
from pathlib import Path
from zipfile import ZipInfo

from pyllama.architecture.config import Config
from pyllama.architecture.layer import layer_name
from pyllama.architecture.llama import Llama
from pyllama.architecture.tensors import EMBEDDING, HEAD
from pyllama.checkpoint.checkpoint import Checkpoint
from pyllama.checkpoint.dtypes import DTYPES
from pyllama.checkpoint.files import InputFile, opening, read_small
from pyllama.checkpoint.index import Tensor, check_index, whole
from pyllama.checkpoint.meta_config import meta_assumptions, meta_config
from pyllama.checkpoint.stored_zip import data_offset, read_directory
from pyllama.checkpoint.torch_records import MAX_PICKLE_NBYTES, TensorRecord, read_records
from pyllama.errors import CheckpointError, UnsupportedError, shown
from pyllama.strict_json import MAX_NBYTES, parse_object

MAX_SHARDS = 64
MAX_TENSORS = 65_536

_BY_COLUMNS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
_SHARD = re.compile(r"consolidated\.([0-9]{2,3})\.pth")


def open_meta(folder: Path) -> Checkpoint:
    """Open a folder with params.json and consolidated.*.pth."""
    if not (folder / "params.json").is_file():
        raise CheckpointError(f"{folder}: consolidated.*.pth without params.json, expected both")
    params = parse_object(read_small(folder / "params.json", MAX_NBYTES), "params.json")
    dim = params.get("dim")
    if type(dim) is not int:
        raise CheckpointError(f"dim: got {shown(dim)}, expected an integer (in params.json)")
    with opening() as files:
        shards = []
        for path in _shard_paths(folder):
            file = files[path] = InputFile(path)
            shards.append(_read_shard(file))
        tensors = _join(shards, dim)
        config = read_config(params, tensors)
        index = check_index(tensors, config, "params.json")
        assumed = {"assumed": meta_assumptions(config)}
        return Checkpoint(folder, "meta", config, index, files, rope_interleaved=True, metadata=assumed)


def _shard_paths(folder: Path) -> list[Path]:
    """The shards in order; one missing in the middle or a name of another kind is an error."""
    numbered = {}
    for path in folder.glob("consolidated.*.pth"):
        match = _SHARD.fullmatch(path.name)
        if match is None or int(match[1]) in numbered:
            raise CheckpointError(f"{path.name}: expected names like consolidated.00.pth (in {folder})")
        numbered[int(match[1])] = path
    if sorted(numbered) != list(range(len(numbered))) or len(numbered) > MAX_SHARDS:
        have = ", ".join(f"{n:02}" for n in sorted(numbered)[:MAX_SHARDS])
        raise CheckpointError(f"{folder}: shards {have}, expected all from consolidated.00.pth on")
    return [numbered[n] for n in sorted(numbered)]


def read_config(params: dict[str, object], tensors: dict[str, Tensor]) -> Config:
    """The config of params.json and of what only the tensors tell, under Hugging Face names."""
    gate = f"{layer_name(0)}mlp.gate_proj.weight"
    for name in (EMBEDDING, gate):
        if name not in tensors or len(tensors[name].shape) != 2:
            raise CheckpointError(f"{name}: missing or not a matrix, expected in the shards")
    vocab = params.get("vocab_size")
    stored = tensors[EMBEDDING].rows
    # Llama 1 and 2 say -1: the vocabulary is the tokenizer's.
    if vocab not in (None, -1, stored):
        raise CheckpointError(
            f"vocab_size: got {shown(vocab)}, expected the {stored} rows of the embedding (in params.json)"
        )
    return meta_config(
        params,
        vocab_size=stored,
        intermediate_size=tensors[gate].rows,
        tie_word_embeddings=HEAD not in tensors,
    )


def _read_shard(file: InputFile) -> dict[str, Tensor]:
    """Hugging Face name -> the tensor as this shard holds it, in one part."""
    where = file.path.name
    entries = read_directory(file)
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{where}: {len(pickles)} entries data.pkl, expected 1")
    root = pickles[0].removesuffix("data.pkl")
    order = entries.get(root + "byteorder")
    if order and file.read(data_offset(file, order), min(order.file_size, 16)) != b"little":
        raise UnsupportedError(f"{where}: big-endian tensors are not supported")
    program = entries[pickles[0]]
    if program.file_size > MAX_PICKLE_NBYTES:
        raise CheckpointError(f"{where}: data.pkl of {program.file_size} bytes, expected at most {MAX_PICKLE_NBYTES}")
    records = read_records(file.read(data_offset(file, program), program.file_size), where)
    if len(records) > MAX_TENSORS:
        raise CheckpointError(f"{where}: {len(records)} tensors, expected at most {MAX_TENSORS}")
    offsets: dict[str, int] = {}
    tensors = {}
    for name, record in records.items():
        if name == "rope.freqs":  # a table the decoder computes
            continue
        entry = _storage_entry(entries, root, record, f"{shown(name)} (file {where})")
        if entry.orig_filename not in offsets:
            offsets[entry.orig_filename] = data_offset(file, entry)
        ours = Llama.meta.ours(name) if name.endswith(".weight") else ()
        if not ours:
            raise UnsupportedError(f"{shown(name)}: not a tensor of a llama model in Meta's form (file {where})")
        tensors[ours[0]] = _tensor(ours[0], record, file.path, offsets[entry.orig_filename])
    return tensors


def _storage_entry(entries: dict[str, ZipInfo], root: str, record: TensorRecord, name: str) -> ZipInfo:
    storage = record.storage
    entry = entries.get(f"{root}data/{storage.key}")
    if entry is None:
        raise CheckpointError(f"{name}: its storage data/{storage.key} is missing")
    expected = storage.count * DTYPES[storage.dtype][1]
    if entry.file_size != expected:
        raise CheckpointError(f"{name}: its storage has {entry.file_size} bytes, expected {expected}")
    return entry


def _tensor(name: str, record: TensorRecord, path: Path, base: int) -> Tensor:
    where = f"(file {path.name})"
    shape = record.shape
    if len(shape) not in (1, 2) or any(not 1 <= n < 2**31 for n in shape):
        raise CheckpointError(f"{shown(name)}: shape {shape}, expected a matrix or a vector {where}")
    rows, cols = (shape[0], shape[1]) if len(shape) == 2 else (1, shape[0])
    # The stride of a dimension of 1 is never used, and torch leaves anything there.
    used = [stride for n, stride in zip(shape, record.strides, strict=True) if n > 1]
    if used != [step for n, step in zip(shape, (cols, 1)[-len(shape) :], strict=True) if n > 1]:
        raise UnsupportedError(f"{shown(name)}: strides {record.strides}, expected contiguous rows {where}")
    if record.offset + rows * cols > record.storage.count:
        raise CheckpointError(
            f"{shown(name)}: {rows * cols} numbers from {record.offset}, expected within its storage of "
            f"{record.storage.count} {where}"
        )
    dtype = record.storage.dtype
    offset = base + record.offset * DTYPES[dtype][1]
    return whole(name, dtype, shape, path, offset)


def _join(shards: list[dict[str, Tensor]], dim: int) -> dict[str, Tensor]:
    """One tensor of the pieces in all shards, each piece a Part."""
    for number, shard in enumerate(shards):
        if shard.keys() != shards[0].keys():
            name = min(shard.keys() ^ shards[0].keys())
            raise CheckpointError(f"{name}: in one only of the shards 0 and {number}, expected in all {len(shards)}")
    return {name: _joined(name, [shard[name] for shard in shards], dim) for name in shards[0]}


def _joined(name: str, pieces: list[Tensor], dim: int) -> Tensor:
    first = pieces[0]
    if len(first.shape) == 1 or len(pieces) == 1:
        return first  # a vector is whole in every shard
    for piece in pieces:
        if piece.dtype != first.dtype or piece.shape != first.shape:
            raise CheckpointError(
                f"{name}: {piece.dtype} {piece.shape} in {piece.parts[0].file.name}, expected {first.dtype} "
                f"{first.shape} as in {first.parts[0].file.name}"
            )
    # Llama 3 cuts the embedding by rows, so its pieces are as wide as the model; Llama 2's are not.
    embedding_columns = name == EMBEDDING and first.cols != dim
    rows, cols = first.rows, first.cols
    if name.endswith(_BY_COLUMNS) or embedding_columns:
        parts = [piece.parts[0]._replace(col=i * cols) for i, piece in enumerate(pieces)]
        shape = (rows, cols * len(pieces))
    else:
        parts = [piece.parts[0]._replace(row=i * rows) for i, piece in enumerate(pieces)]
        shape = (rows * len(pieces), cols)
    return Tensor(name, first.dtype, shape, tuple(parts))
