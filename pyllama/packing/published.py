"""Tensors as pyllama has them -> the tensors that a Hugging Face folder of their family has of the same bytes.

Most are stored under a name of the family's. gpt-oss's experts go back into one tensor for all of a layer, gate and up
by turns, and MXFP4 into codes and scales apart: what checkpoint/apart.py reads. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from pyllama.architecture import FAMILIES
from pyllama.architecture.config import Config
from pyllama.architecture.names import expert_number
from pyllama.architecture.tensors import convolutions
from pyllama.checkpoint import Tensor
from pyllama.checkpoint.dtypes import PLAIN, row_nbytes
from pyllama.checkpoint.index import MXFP4_COLS

ROWS, CODES, SCALES, TURNS = range(4)
_CODES = 16  # bytes of a block's, after one of its scale


class Output(NamedTuple):
    """A tensor of a file.

    dtype, shape  as safetensors has them
    groups        what it is made of, one after the other: the tensors of a group take turns, row by row, or element by
                  element where they are vectors
    form          ROWS: as they are; CODES, SCALES: these of MXFP4; TURNS: elements of vectors
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    groups: tuple[tuple[Tensor, ...], ...]
    form: int = ROWS


def plain_output(tensor: Tensor) -> Output:
    """A tensor under pyllama's name; a quantized one, of which safetensors has no dtype, as U8 (rows, row's bytes)."""
    plain = tensor.dtype in PLAIN
    shape = tensor.shape if plain else (tensor.rows, tensor.row_nbytes)
    return Output(tensor.name, tensor.dtype if plain else "U8", shape, tensor.nbytes, ((tensor,),))


def published(config: Config, tensors: Iterable[Tensor]) -> list[Output]:
    """In the order in which the first part of each comes."""
    family, shapes = FAMILIES[config.model_type], convolutions(config)
    found: list[Output | str] = []
    stacks: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        number = expert_number(tensor.name)
        if number is None:
            one = plain_output(tensor)
            if tensor.name in shapes:
                channels, width = shapes[tensor.name]
                one = one._replace(shape=(channels, 1, width))
            found.append(one._replace(name=family.huggingface.stored(tensor.name) or tensor.name))
        elif not family.experts_apart:
            found.append(plain_output(tensor))
        else:
            prefix, _, rest = tensor.name.partition(f".experts.{number}.")
            matrix, _, kind = rest.partition(".")
            stack = next(stored for stored, turns in family.experts_apart.items() if matrix in turns)
            key = f"{prefix}.experts.{stack}.{kind}"
            if key not in stacks:
                found.append(key)
            stacks.setdefault(key, []).append(tensor)
    outputs: list[Output] = []
    for entry in found:
        outputs += _stacked(entry, stacks[entry]) if isinstance(entry, str) else [entry]
    return outputs


def _stacked(key: str, members: list[Tensor]) -> list[Output]:
    """All experts of a layer: gate and up, or down, in MXFP4 as codes and scales; or their biases.

    members  of an expert in the order in which their rows take turns
    """
    stem, _, kind = key.rpartition(".")
    members = sorted(members, key=lambda tensor: expert_number(tensor.name) or 0)
    step = sum(expert_number(tensor.name) == 0 for tensor in members)
    groups = tuple(tuple(members[i : i + step]) for i in range(0, len(members), step))
    first, count = members[0], len(groups)
    if kind == "bias":
        shape = (count, step * first.cols)
        return [Output(f"{stem}_bias", first.dtype, shape, row_nbytes(first.dtype, count * shape[1]), groups, TURNS)]
    if any(tensor.dtype != "MXFP4" for tensor in members):
        return [plain_output(tensor) for tensor in members]
    blocks = (count, step * first.rows, first.cols // MXFP4_COLS)
    total = blocks[0] * blocks[1] * blocks[2]
    codes = Output(f"{stem}_blocks", "U8", (*blocks, _CODES), total * _CODES, groups, CODES)
    return [codes, Output(f"{stem}_scales", "U8", blocks, total, groups, SCALES)]


def group_bytes(form: int, dtype: str, members: list[np.ndarray]) -> np.ndarray:
    """What a group becomes, uint8.

    members  of each of its tensors all rows, uint8 (rows, bytes of a row), in `dtype`
    """
    if form == TURNS:
        return np.stack([member.reshape(-1, row_nbytes(dtype, 1)) for member in members], axis=1).reshape(-1)
    rows = np.stack(members, axis=1).reshape(len(members) * len(members[0]), -1, _CODES + 1)
    if form == SCALES:
        return np.ascontiguousarray(rows[:, :, 0]).reshape(-1)
    halves = rows[:, :, 1:]  # of a byte, the first weight of one half of a block, and that of the other
    weights = np.concatenate([halves & 15, halves >> 4], axis=2)
    return (weights[:, :, 0::2] | weights[:, :, 1::2] << 4).reshape(-1)
