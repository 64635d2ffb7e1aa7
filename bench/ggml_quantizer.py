#!/usr/bin/env python3
"""A file of `pyllama quantize` and what it was made of -> the same file with the blocks of ggml's own quantizers.

usage: ggml_quantizer.py SOURCE.gguf OURS.gguf DST.gguf [--imatrix OURS.gguf.imatrix.gguf]

Every quantized tensor keeps its format and gets what ggml's quantizer makes of the source's tensor of that name, with
the same importance of columns where a file of them is given. So two files differ in nothing but who chose scales and
codes, and quantized_types.py --also DST.gguf tells what that is worth. SOURCE is in float32, as `--type f32` writes it.
Needs libgguf (x86_64 only) and gguf.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import libgguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader

ROWS_NBYTES = 64 << 20  # of float32 at once
PLAIN = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)


def importance_of(path: Path | None) -> dict[str, np.ndarray]:
    """GGUF's name of a matrix -> the mean of squares of its input, float32 (cols,)."""
    if path is None:
        return {}
    found = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    ends = ".in_sum2"
    names = [name.removesuffix(ends) for name in found if name.endswith(ends)]
    return {name: np.ravel(found[name + ends]) / np.ravel(found[name + ".counts"])[0] for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("source", "ours", "dst"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--imatrix", type=Path)
    args = parser.parse_args()
    importance = importance_of(args.imatrix)
    source = {tensor.name: tensor for tensor in GGUFReader(args.source).tensors}
    making = args.dst.with_name(args.dst.name + ".making")
    shutil.copyfile(args.ours, making)
    for tensor in GGUFReader(making, "r+").tensors:
        if tensor.tensor_type in PLAIN:
            continue
        if source[tensor.name].tensor_type != GGMLQuantizationType.F32:
            raise SystemExit(f"ggml_quantizer.py: {args.source}: {tensor.name} is not F32; quantize from --type f32")
        rows, weights = source[tensor.name].data, importance.get(tensor.name)
        step = max(1, ROWS_NBYTES // rows[0].nbytes)
        for first in range(0, len(rows), step):
            block = np.ascontiguousarray(rows[first : first + step])
            stored = libgguf.quantize_rows(block, tensor.tensor_type, weights)
            tensor.data[first : first + step] = stored.reshape(len(block), -1)
        tensor.data.flush()
    making.rename(args.dst)
    return 0


if __name__ == "__main__":
    sys.exit(main())
