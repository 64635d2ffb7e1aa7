#!/usr/bin/env python3
"""A model of true sizes on a small disk: one layer's file, under as many names as the model has layers.

usage: shared_layers.py SHAPE DST        (70b takes 2.8 GB instead of 138)

Memory, bytes read and seconds are those of the real thing, since nothing is cached between two reads of the
file; only the disk space is not. The ordinary readers refuse such a folder (a layer's tensors have one name), so
open_shared() builds the index itself.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import synthetic

from pyllama.architecture.tensors import tensor_shapes
from pyllama.checkpoint import Checkpoint, Part, Tensor
from pyllama.checkpoint.files import InputFile
from pyllama.checkpoint.huggingface_config import huggingface_config

FIRST = "model.layers.0."


def make(shape_name: str, folder: Path) -> None:
    """ends.bin holds embedding, last norm and head; layer-00000.bin a layer, the others are links to it."""
    shape = synthetic.SHAPES[shape_name]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(synthetic.huggingface_config(shape)))
    with (folder / "ends.bin").open("wb") as ends, (folder / "layer-00000.bin").open("wb") as layer:
        for index, tensor in enumerate(synthetic.tensors_of(shape)):
            if tensor.name.startswith("model.layers.") and not tensor.name.startswith(FIRST):
                continue
            file = layer if tensor.name.startswith(FIRST) else ends
            for chunk in synthetic.weights(tensor, 0, index, shape.head_dim):
                file.write(chunk.data)
    for i in range(1, shape.num_hidden_layers):
        os.link(folder / "layer-00000.bin", folder / f"layer-{i:05}.bin")


def open_shared(folder: str | os.PathLike[str]) -> Checkpoint:
    """The folder as a checkpoint, every layer read from its own name."""
    folder = Path(folder)
    config = huggingface_config(json.loads((folder / "config.json").read_text()))
    files: dict[Path, InputFile] = {}
    offsets: dict[Path, int] = {}
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        number = name.split(".")[2] if name.startswith("model.layers.") else None
        path = folder / ("ends.bin" if number is None else f"layer-{int(number):05}.bin")
        if path not in files:
            files[path] = InputFile(path)
        rows, cols = (1, *shape)[-2:]
        part = Part(path, offsets.get(path, 0), 0, rows, 0, cols)
        offsets[path] = part.offset + 2 * rows * cols
        tensors[name] = Tensor(name, "BF16", shape, (part,))
    return Checkpoint(folder, "huggingface", config, tensors, files)


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
