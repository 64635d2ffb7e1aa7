"""How often each expert of a model was chosen, kept in a small file beside it for the next start.

Whatever is wrong with the file, or with writing it, it is as if there were none: it makes a start faster, and no more.
"""

import contextlib
import json
import os
from pathlib import Path

import numpy as np

from pyllama.checkpoint.files import read_small
from pyllama.checkpoint.index import are_naturals
from pyllama.checkpoint.outline import Described
from pyllama.errors import PyllamaError
from pyllama.strict_json import MAX_NBYTES, parse_object

NAME = "pyllama-experts.json"
LEAST = 256  # tokens that one use of a model must have computed to be worth writing down
_MOST = 1 << 40  # a count: then all are halved


def counts_path(model: Path) -> Path:
    """The file for a model that lies at `model`, a folder or a file."""
    return model / NAME if model.is_dir() else model.with_name(f"{model.name}.{NAME}")


def counts_of(model: Described, path: Path) -> np.ndarray | None:
    """What is kept of a model that lies there; None for one without experts, too."""
    mixture = model.config.mixture
    return read_counts(counts_path(path), sum(mixture.layers), mixture.num_experts) if mixture else None


def read_counts(path: Path, layers: int, experts: int) -> np.ndarray | None:
    """int64 (layers, experts); None where there is nothing sound for as many."""
    try:
        if not path.is_file():
            return None
        found = parse_object(read_small(path, MAX_NBYTES), path.name).get("chosen")
    except PyllamaError:
        return None
    if not isinstance(found, list) or len(found) != layers:
        return None
    sound = all(are_naturals(row, experts, experts, _MOST + 1) for row in found)
    return np.array(found, np.int64) if sound else None


def write_counts(path: Path, counts: np.ndarray) -> None:
    """Whole or not at all."""
    while counts.max() > _MOST:
        counts = counts // 2
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(json.dumps({"version": 1, "chosen": counts.tolist()}), encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()


def hit_share(counts: np.ndarray, held: int) -> float | None:
    """Of all choices counted, those of the `held` experts chosen most; None where none are counted."""
    total = int(counts.sum())
    if not total:
        return None
    return float(np.sort(counts.ravel())[::-1][:held].sum() / total)
