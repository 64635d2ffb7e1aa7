#!/usr/bin/env python3
"""A model of true sizes on a small disk: one layer's file, under as many names as the model has layers.

usage: shared_layers.py SHAPE DST              (70b takes 2.8 GB instead of 138)
       shared_layers.py SHAPE DST DISTINCT     (7b with 3: 1.7 GB instead of 13.5)

Memory, bytes read and seconds are those of the real thing, since nothing is cached between two reads of the
file; only the disk space is not. The ordinary readers refuse such a folder (a layer's tensors have one name), so
open_shared() builds the index itself. With a third argument it is an ordinary Hugging Face folder with so many
distinct layers, the data of the others shared with theirs; it takes a file system that shares blocks (XFS, Btrfs).
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import sys
from pathlib import Path

import synthetic

from pyllama.architecture.tensors import tensor_shapes
from pyllama.checkpoint import Checkpoint, Part, Tensor
from pyllama.checkpoint.files import InputFile
from pyllama.checkpoint.huggingface_config import huggingface_config

FIRST = "model.layers.0."
BLOCK = 4096  # of the file system, and so what a shared range begins at
FICLONERANGE = 0x4020940D  # linux/fs.h


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


def make_ordinary(shape_name: str, folder: Path, distinct: int) -> None:
    """A file of safetensors for each layer and for the ends, with the index that the ordinary readers go by."""
    shape = synthetic.SHAPES[shape_name]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(synthetic.huggingface_config(shape)))
    (folder / "tokenizer.model").write_bytes(synthetic.sentencepiece_model(shape.vocab_size))
    tensors: dict[str, list[synthetic.TensorShape]] = {}
    for tensor in synthetic.tensors_of(shape):
        layer = tensor.name.split(".")[2] if tensor.name.startswith("model.layers.") else "ends"
        tensors.setdefault(f"model-{layer}.safetensors", []).append(tensor)
    names = {tensor.name: file for file, some in tensors.items() for tensor in some}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    index = 0
    for file, some in tensors.items():
        header = synthetic.HuggingFaceFolder.header(some)
        text = header[8:].ljust(BLOCK * -(-len(header) // BLOCK) - 8)
        layer = file.removeprefix("model-").removesuffix(".safetensors")
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            if layer == "ends" or int(layer) < distinct:
                for tensor in some:
                    for chunk in synthetic.weights(tensor, 0, index, shape.head_dim):
                        out.write(chunk.data)
                    index += 1
                continue
            out.flush()
            with (folder / f"model-{int(layer) % distinct}.safetensors").open("rb") as source:
                begin = struct.unpack("<Q", source.read(8))[0] + 8
                fcntl.ioctl(out, FICLONERANGE, struct.pack("<qQQQ", source.fileno(), begin, 0, 8 + len(text)))


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
    if len(sys.argv) > 3:
        make_ordinary(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    else:
        make(sys.argv[1], Path(sys.argv[2]))
