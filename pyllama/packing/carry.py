"""A checkpoint -> the small files that make its config and tokenizer, as a packed folder holds them."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from pyllama.checkpoint import Checkpoint
from pyllama.checkpoint.files import InputFile, read_small
from pyllama.checkpoint.gguf import factor_tensors, read_header
from pyllama.checkpoint.packed import GGUF_HEAD
from pyllama.hub.choose import settings_files

MAX_NBYTES = 64 << 20
MORE = ("tekken.json", "LICENSE", "LICENSE.txt", "NOTICE", "Notice.txt", "USE_POLICY.md")

_F32 = 0  # ggml's number


def small_files(checkpoint: Checkpoint) -> Iterator[tuple[str, bytes]]:
    """(name, contents) of each. Raises CheckpointError for one that cannot be read."""
    folder = checkpoint.path
    if checkpoint.packed or checkpoint.format == "huggingface":
        yield from folder_files(folder)
    elif checkpoint.format == "gguf":
        yield GGUF_HEAD, _gguf_head(checkpoint)
    else:
        for name, places in (
            ("params.json", (folder,)),
            ("tokenizer.model", (folder, folder.parent)),  # Meta ships it beside the folders of all sizes
        ):
            for place in places:
                if (place / name).is_file():
                    yield name, read_small(place / name, MAX_NBYTES)
                    break


def folder_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The small files of a Hugging Face folder, or of a packed one."""
    there = [name for name in os.listdir(folder) if (folder / name).is_file()]
    for name in [*settings_files(there), *(name for name in MORE if name in there)]:
        yield name, read_small(folder / name, MAX_NBYTES)


def _gguf_head(checkpoint: Checkpoint) -> bytes:
    """The key/values as they stand in the (first) file, with the tensors that belong to the config."""
    with InputFile(checkpoint.files[0]) as file:
        header = read_header(file)
        head = bytearray(file.read(0, header.metadata_end))
    tensors = factor_tensors(checkpoint.config.rope_scaling)
    alignment = header.metadata.get("general.alignment", 32)
    head[8:16] = struct.pack("<Q", len(tensors))
    at = 0
    for name, values in tensors:
        head += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<IQIQ", 1, len(values), _F32, at)
        at += -(-values.nbytes // alignment) * alignment
    for _, values in tensors:
        head += b"\0" * (-len(head) % alignment)
        head += values.tobytes()
    return bytes(head)
