"""gpt-oss's folders -> tensors of an expert each: gate and up take turns there row by row, and MXFP4 is stored as codes
in one tensor and scales in another.

Of a layer there are `mlp.experts.gate_up_proj_blocks` (N, 2 G, E / 32, 16), `gate_up_proj_scales` (N, 2 G, E / 32) and
`gate_up_proj_bias` (N, 2 G), and the same of `down_proj`. Reads nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from pyllama import _kernels
from pyllama.architecture.names import MAX_STACKED
from pyllama.checkpoint.dtypes import PLAIN, row_nbytes
from pyllama.checkpoint.index import MXFP4_COLS, Apart, Part, Tensor
from pyllama.errors import CheckpointError, UnsupportedError, shown

_CODES = 16  # bytes of a block's
_STORED = re.compile(r"(model\.layers\.(?:0|[1-9][0-9]{0,3})\.mlp\.experts\.)([a-z_]+?)(_blocks|_scales|_bias)?")


def single_experts(stored: Mapping[str, Tensor], apart: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """The stored tensors, with one for each matrix and bias of an expert in place of a layer's stacks.

    apart  the family's experts_apart

    Raises CheckpointError where shapes of blocks and scales do not agree, UnsupportedError for others than MXFP4.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        match = _STORED.fullmatch(name)
        if match is None or match[2] not in apart:
            found[name] = tensor
            continue
        prefix, matrix, kind = match.groups()
        if kind is None:
            raise UnsupportedError(
                f"{name}: experts stored input-first in {tensor.dtype}, expected {matrix}_blocks and {matrix}_scales "
                "(MXFP4) as published; take those, or a GGUF file"
            )
        if kind == "_scales":
            if f"{prefix}{matrix}_blocks" not in stored:
                raise CheckpointError(f"{name}: there are no {matrix}_blocks beside it")
            continue
        turns = apart[matrix]
        made = (
            _biases(tensor, turns)
            if kind == "_bias"
            else _matrices(tensor, stored.get(f"{prefix}{matrix}_scales"), turns)
        )
        ending = "bias" if kind == "_bias" else "weight"
        for number, one in enumerate(made):
            ours = f"{prefix}{number // len(turns)}.{turns[number % len(turns)]}.{ending}"
            if ours in stored:
                raise CheckpointError(f"{ours}: stored twice, expected once (file {_file(tensor)})")
            found[ours] = one._replace(name=ours)
    return found


def _matrices(codes: Tensor, scales: Tensor | None, turns: Sequence[str]) -> list[Tensor]:
    """Of expert after expert, those that take turns."""
    if scales is None:
        raise CheckpointError(f"{codes.name}: its scales are missing (file {_file(codes)})")
    count, rows, blocks = (*codes.shape, 0, 0, 0)[:3]
    sound = codes.dtype == scales.dtype == "U8" and codes.shape == (*scales.shape, _CODES) and len(scales.shape) == 3
    if not sound or rows % len(turns) or not 0 < count <= MAX_STACKED or not blocks:
        raise CheckpointError(
            f"{codes.name}: {codes.dtype} {codes.shape} with scales {scales.dtype} {scales.shape}, expected U8 "
            f"(experts, rows, columns / {MXFP4_COLS}, {_CODES}) and the same without the last (file {_file(codes)})"
        )
    shape, step = (rows // len(turns), blocks * MXFP4_COLS), len(turns)
    found = []
    for expert in range(count):
        offset = codes.parts[0].offset + expert * rows * blocks * _CODES
        of_scales = (scales.parts[0].file, scales.parts[0].offset + expert * rows * blocks)
        for phase in range(step):
            part = Part(codes.parts[0].file, offset, 0, shape[0], 0, shape[1], Apart(step, phase, of_scales))
            found.append(Tensor(codes.name, "MXFP4", shape, (part,)))
    return found


def _biases(stored: Tensor, turns: Sequence[str]) -> list[Tensor]:
    step = len(turns)
    if stored.dtype not in PLAIN or len(stored.shape) != 2 or stored.shape[1] % step or stored.shape[0] > MAX_STACKED:
        raise CheckpointError(
            f"{stored.name}: {stored.dtype} {stored.shape}, expected (experts, rows) in one of {', '.join(PLAIN)} "
            f"(file {_file(stored)})"
        )
    count, rows = stored.shape
    file, begin, width = stored.parts[0].file, stored.parts[0].offset, row_nbytes(stored.dtype, rows)
    size = rows // step
    return [
        Tensor(
            stored.name, stored.dtype, (size,), (Part(file, begin + expert * width, 0, 1, 0, size, Apart(step, phase)),)
        )
        for expert in range(count)
        for phase in range(step)
    ]


def _file(tensor: Tensor) -> str:
    return shown(tensor.parts[0].file.name)


def join(dtype: str, part: Part, read: Sequence[np.ndarray], out: np.ndarray) -> None:
    """The rows of a part, out of what ranges() told to read for them.

    read  uint8, 1-D, one for each range
    out   uint8 (rows, bytes of a row), overwritten
    """
    apart = part.apart
    if apart is None:
        out[:] = read[0].reshape(out.shape)
    elif apart.scales is None:
        width = row_nbytes(dtype, 1)
        out.reshape(-1, width)[:] = read[0].reshape(-1, width)[apart.phase :: apart.step]
    else:
        rows = len(out) * apart.step
        codes, scales = (piece.reshape(rows, -1)[apart.phase :: apart.step] for piece in read)
        _kernels.join_mxfp4(codes, scales, out)
