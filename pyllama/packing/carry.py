"""A checkpoint -> the small files that make its config and tokenizer, as a packed folder holds them."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pyllama.checkpoint import Checkpoint
from pyllama.checkpoint.files import InputFile, read_small
from pyllama.checkpoint.gguf import ROPE_FREQS, read_header
from pyllama.checkpoint.packed import GGUF_HEAD
from pyllama.hub.choose import settings_files

MAX_NBYTES = 64 << 20
MORE = ("tekken.json", "LICENSE", "LICENSE.txt", "NOTICE", "Notice.txt", "USE_POLICY.md")

_F32 = 0  # ggml's number


def small_files(checkpoint: Checkpoint) -> Iterator[tuple[str, bytes]]:
    """(name, contents) of each. Raises CheckpointError for one that cannot be read."""
    if checkpoint.format == "gguf":
        yield GGUF_HEAD, _gguf_head(checkpoint)
        return
    folder = checkpoint.path
    if checkpoint.format == "meta":
        for name, places in (
            ("params.json", (folder,)),
            ("tokenizer.model", (folder, folder.parent)),  # Meta ships it beside the folders of all sizes
        ):
            for place in places:
                if (place / name).is_file():
                    yield name, read_small(place / name, MAX_NBYTES)
                    break
        return
    yield from folder_files(folder)


def folder_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The small files of a Hugging Face folder, or of a packed one."""
    there = [name for name in os.listdir(folder) if (folder / name).is_file()]
    for name in [*settings_files(there), *(name for name in MORE if name in there)]:
        yield name, read_small(folder / name, MAX_NBYTES)


def _gguf_head(checkpoint: Checkpoint) -> bytes:
    """The key/values as they stand in the (first) file, with the one tensor that belongs to the config."""
    file = InputFile(checkpoint.files[0])
    try:
        header = read_header(file)
        head = bytearray(file.read(0, header.metadata_end))
    finally:
        file.close()
    scaling = checkpoint.config.rope_scaling
    factors = np.array(scaling.factors if scaling else (), "<f4")
    head[8:16] = struct.pack("<Q", 1 if len(factors) else 0)
    if len(factors):
        name = ROPE_FREQS.encode()
        head += struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, len(factors), _F32, 0)
        head += b"\0" * (-len(head) % header.metadata.get("general.alignment", 32))
        head += factors.tobytes()
    return bytes(head)
