"""A Hugging Face folder -> Checkpoint: config.json and one or many safetensors files.

Reads no Python pickles: a folder with nothing but pytorch_model.bin is refused with what to do.
Symbolic links are followed, since the Hub's cache is made of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyllama.architecture import FAMILIES
from pyllama.architecture.config import MAX_SIZE, Config
from pyllama.architecture.tensors import EMBEDDING, HEAD, tensor_shapes
from pyllama.checkpoint.apart import single_experts
from pyllama.checkpoint.checkpoint import Checkpoint
from pyllama.checkpoint.dtypes import PLAIN
from pyllama.checkpoint.files import InputFile, opening, read_small
from pyllama.checkpoint.foreign import HEAD_NBYTES, described_bytes
from pyllama.checkpoint.huggingface_config import huggingface_config
from pyllama.checkpoint.index import Tensor, check_index, deal
from pyllama.checkpoint.other_folders import missing_shards, refusal
from pyllama.checkpoint.safetensors import read_safetensors
from pyllama.checkpoint.wrapped_names import plain_names
from pyllama.errors import CheckpointError, shown
from pyllama.hub.choose import INDEX
from pyllama.strict_json import MAX_NBYTES, parse_object

CONFIG = "config.json"
MAX_FILES = 1024
TIED_ROWS = 16  # rows compared of a matrix stored under both names


def open_huggingface(folder: Path) -> Checkpoint:
    """Open a folder with config.json and *.safetensors; every tensor is checked, none is read."""
    config = read_config(folder)
    with opening() as files:
        weight_map = read_weight_map(folder)
        names = sorted(set(weight_map.values())) if weight_map else _weight_files(folder)
        missing = [name for name in names if not (folder / name).exists()] or missing_shards(names)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            told = f"{INDEX} names" if weight_map else "their numbers say"
            raise CheckpointError(f"{folder}: {missing[0]}{more} missing, as {told}; fetch the rest")
        tensors: dict[str, Tensor] = {}
        for name in names:
            file = files[folder / name] = InputFile(folder / name)
            for key, tensor in read_safetensors(file).items():
                if key in tensors:
                    raise CheckpointError(
                        f"{shown(key)}: in both {tensors[key].parts[0].file.name} and {name}, expected once"
                    )
                tensors[key] = tensor
        for key, name in weight_map.items():
            if key not in tensors or tensors[key].parts[0].file.name != name:
                raise CheckpointError(f"{shown(key)}: not in {name}, where {INDEX} says it is")
        for stored, name in plain_names(tensors).items():
            tensors[name] = tensors.pop(stored)._replace(name=name)
        if config.tie_word_embeddings:
            _check_tied(tensors, files)
        sizes = {path: file.nbytes for path, file in files.items()}
        family = FAMILIES[config.model_type]
        if family.experts_apart:
            tensors = single_experts(tensors, family.experts_apart)
        index = check_index(deal(tensors, family.huggingface, tensor_shapes(config)), config, sizes, "config.json")
        return Checkpoint(folder, "huggingface", config, index, files)


def read_config(folder: Path) -> Config:
    """The config of a folder with config.json, without its weights."""
    return huggingface_config(read_object(folder / CONFIG), _json_if_there(folder / "generation_config.json"))


def _check_tied(tensors: dict[str, Tensor], files: dict[Path, InputFile]) -> None:
    """Some writers keep both names of a tied matrix, some only the head's.

    A copy that differs contradicts the config: transformers 4 then drops the head and transformers 5 keeps
    it, so there is no right answer. A few rows tell, since training changes them all.
    """
    embedding, head = tensors.get(EMBEDDING), tensors.get(HEAD)
    if head is None:
        return
    if embedding is None:
        tensors[EMBEDDING] = head._replace(name=EMBEDDING)
        return
    same = (embedding.dtype, embedding.shape) == (head.dtype, head.shape)
    if same and embedding.dtype in PLAIN and len(head.shape) == 2 and head.rows and head.cols < MAX_SIZE:
        for row in range(0, head.rows, -(-head.rows // TIED_ROWS)):
            one, other = (
                files[t.parts[0].file].read(t.parts[0].offset + row * t.row_nbytes, t.row_nbytes)
                for t in (embedding, head)
            )
            same = same and one == other
    if not same:
        raise CheckpointError(
            f"{HEAD}: differs from {EMBEDDING}, expected a copy as config.json has "
            "tie_word_embeddings true; set that to false if the head is to be used"
        )


def read_object(path: Path) -> dict[str, Any]:
    """The object in a file of JSON beside a model. config.json may hold Infinity: Mamba's limits are published so."""
    data = read_small(path, MAX_NBYTES)
    what = described_bytes(data[:HEAD_NBYTES], len(data))
    if what:
        raise CheckpointError(f"{path}: {what}")
    data = data.removeprefix(b"\xef\xbb\xbf")  # some editors put a mark at the start
    return parse_object(data, path.name, constants=path.name == CONFIG)


def _json_if_there(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def read_weight_map(folder: Path) -> dict[str, str]:
    """name -> file name of the index file; {} where there is none."""
    if not (folder / INDEX).is_file():
        return {}
    weight_map = read_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX}: weight_map is {shown(weight_map)}, expected tensor and file names")
    for name in weight_map.values():
        # A file name and nothing else: no separator may lead out of the folder.
        if not isinstance(name, str) or not name.endswith(".safetensors") or "/" in name or "\0" in name:
            raise CheckpointError(f"{INDEX}: got {shown(name)}, expected a .safetensors file beside it")
    if len(set(weight_map.values())) > MAX_FILES:
        raise CheckpointError(f"{INDEX}: {len(set(weight_map.values()))} files, expected at most {MAX_FILES}")
    return weight_map


def weight_files(folder: Path) -> list[str]:
    """The safetensors files of a folder without an index. Mistral's folders hold the same weights a second
    time as consolidated.safetensors, under other names: not those; nor an adapter's, which lies beside its model."""
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    others = ("consolidated", "adapter_model")
    return sorted(p.name for p in folder.glob("*.safetensors") if not p.name.startswith(others))


def _weight_files(folder: Path) -> list[str]:
    names = weight_files(folder)
    if len(names) > MAX_FILES:
        raise CheckpointError(f"{folder}: {len(names)} .safetensors files, expected at most {MAX_FILES}")
    if not names:
        raise refusal(folder)
    return names
