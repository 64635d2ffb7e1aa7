"""A path -> an open Checkpoint, whichever of the three published forms, or pyllama's own, lies there.

The form is told by content, not by the path's name. What each form means is in its own module.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pyllama.checkpoint.checkpoint import Checkpoint
from pyllama.checkpoint.files import InputFile
from pyllama.checkpoint.foreign import HEAD_NBYTES, described_bytes
from pyllama.checkpoint.index import Part, Tensor
from pyllama.errors import CheckpointError, UnsupportedError

# A file cut by bytes, as some were uploaded before GGUF could be split.
_PART = re.compile(r"\.gguf[.-](part|split)[-_]?[0-9a-z]+(of[0-9]+)?$|\.part[0-9]+(of[0-9]+)?$")

_BESIDE_MODELS = ("mmproj", ".draft.gguf", ".imatrix.gguf")

__all__ = ["Checkpoint", "Part", "Tensor", "open_checkpoint"]


def open_checkpoint(path: str | os.PathLike[str], *, shares: bool = False) -> Checkpoint:
    """Open a model where it lies; reads headers, no weights.

    path: a Hugging Face folder, a folder of Meta's original files, a GGUF file (of split ones the
          first), a folder with one GGUF model in it, or a folder that `pyllama pack` made.
    shares: whether it may be one board's rows alone, as `pyllama pack --for-host` makes them; else that is refused.
    Raises CheckpointError for damaged or contradictory files, UnsupportedError for a model or a
    feature that pyllama does not run, by name.
    """
    path = Path(path)
    try:
        path.stat()
        folder = path.is_dir()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file or folder") from None
    except (OSError, ValueError) as error:  # a name too long, a NUL byte, no permission
        raise CheckpointError(f"cannot open {str(path)!r}: {str(error).lower()}") from None
    try:
        checkpoint = _open_folder(path) if folder else _open_file(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {str(error).lower()}") from None
    if checkpoint.share is not None and not shares:
        checkpoint.close()
        raise UnsupportedError(f"{path}: {checkpoint.share} of a model; it takes all of them, with --hosts")
    return checkpoint


def _open_folder(folder: Path) -> Checkpoint:
    from pyllama.checkpoint.huggingface import INDEX, open_huggingface, weight_files
    from pyllama.checkpoint.other_folders import refusal
    from pyllama.checkpoint.packed import first_shard, open_packed

    first = first_shard(folder)
    if first is not None:
        return open_packed(first)
    has_config = (folder / "config.json").is_file()
    if has_config and ((folder / INDEX).is_file() or weight_files(folder)):
        return open_huggingface(folder)
    ggufs = sorted(folder.glob("*.gguf"))
    # A model that sees images comes with the part that does in a file of its own; what drafts for a model, and how
    # important its weights are, pyllama writes beside it.
    ggufs = [path for path in ggufs if not any(part in path.name.lower() for part in _BESIDE_MODELS)] or ggufs
    if ggufs:
        from pyllama.checkpoint.gguf import first_of_one, open_gguf

        return open_gguf(first_of_one(ggufs))
    if any(folder.glob("consolidated.*.pth")):
        from pyllama.checkpoint.meta import open_meta

        return open_meta(folder)
    if has_config:
        return open_huggingface(folder)  # which says what is wrong with the config, or what is missing
    raise refusal(folder)


def _open_file(path: Path) -> Checkpoint:
    with InputFile(path) as file:
        head, nbytes = file.read(0, min(HEAD_NBYTES, file.nbytes)), file.nbytes
    if head.startswith(b"GGUF"):
        from pyllama.checkpoint.gguf import open_gguf

        return open_gguf(path)
    what = described_bytes(head, nbytes)
    if what and not (path.suffix in (".pth", ".bin", ".pt") and head.startswith((b"PK", b"\x80"))):
        raise CheckpointError(f"{path}: {what}")
    if path.suffix in (".safetensors", ".pth", ".json", ".bin", ".model") or head[8:10] == b'{"':
        raise CheckpointError(f"{path}: one file of a model, expected its folder: give {path.parent}")
    if path.suffix in (".onnx", ".h5", ".msgpack", ".tflite", ".npz", ".pt", ".ckpt"):
        raise UnsupportedError(f"{path}: weights of another program; get the model as safetensors or GGUF")
    if _PART.search(path.name):
        raise CheckpointError(f"{path}: a part of a file that was cut; join them all first: cat PART... > model.gguf")
    raise CheckpointError(f"{path}: not a GGUF file, expected one or a model's folder")
