"""Where the copy of few bits that drafts for a model lies: `pyllama quantize MODEL --draft` makes it, `auto` finds it.

Beside the model, under its name and `.draft.gguf`; where that is no place for it, in pyllama's own cache: that is in a
folder that cannot be written to, and in the Hub's cache, where every file is a repository's. Knows names and reads no
file.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from pyllama.hub.cache import hub_cache, xdg_cache

SUFFIX = ".draft.gguf"
#: 3.44 bits a weight: with importance weights its best token is the model's nine times of ten, and no type is smaller
#: that can say so (docs/plan.md).
TYPE = "q3_k_s"


def copy_of(model: Path) -> Path | None:
    """The copy that was made of a model, or None.

    model  its file or folder, as Checkpoint.path has it
    """
    beside = _beside(model)
    if beside.is_file():
        return beside
    cached = _in_cache(model) if _cache().is_dir() else None
    return cached if cached and cached.is_file() else None


def copy_destination(model: Path) -> Path:
    """Where a copy is to be made; its folder is there."""
    beside = _beside(model)
    if not _is_below(beside, hub_cache()) and os.access(beside.parent, os.W_OK):
        return beside
    place = _in_cache(model)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def remove_copies(models: Iterable[Path]) -> int:
    """Delete the copies of models that are no longer there, with what was collected for them; the bytes that came free.

    Raises OSError.
    """
    freed = 0
    for model in models:
        copy = None if model.exists() else copy_of(model)
        if copy is not None:
            for path in (copy, copy.with_name(copy.name + ".imatrix.gguf")):
                if path.is_file():
                    freed += path.stat().st_size
                    path.unlink()
    return freed


def _beside(model: Path) -> Path:
    path = Path(os.path.abspath(model))
    return path.with_name(_stem(path) + SUFFIX)


def _cache() -> Path:
    return Path(xdg_cache()) / "pyllama" / "drafts"


def _in_cache(model: Path) -> Path:
    import hashlib  # brings OpenSSL along, 3.5 MB, which most commands can do without

    path = Path(os.path.abspath(model))
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    return _cache() / f"{_stem(path)[:100]}-{digest}{SUFFIX}"


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gguf")


def _is_below(path: Path, folder: Path) -> bool:
    return path.is_relative_to(os.path.abspath(folder))
