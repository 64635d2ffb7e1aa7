"""What a machine can do, in a quarter of a second: enough to say whether a drafter's bytes are better than weights.

`pyllama plan` takes seconds and measures well (measure/rates.py); here a model is being loaded and somebody waits.
"""

import time
from pathlib import Path

import numpy as np

from pyllama import _kernels
from pyllama.checkpoint import Checkpoint
from pyllama.errors import PyllamaError
from pyllama.planning.time import Rates
from pyllama.streaming.blocks import cut, matrices
from pyllama.streaming.direct import DirectFile
from pyllama.streaming.memory import huge_empty

_DISK_S = 0.15
_ROOM = 4 << 20
_ROWS, _COLS = 2048, 2048
_TOKENS = 32
#: Read one after the other, where streaming has three reads in flight.
_ALONE = 1.2


def quick_rates(checkpoint: Checkpoint) -> Rates:
    """Rates of this machine, and of the disk that the checkpoint lies on. Rough: a few reads and products each."""
    raw = np.full(2 * _ROWS * _COLS, 0x3F, np.uint8)
    plain = _kernels.Matrix("BF16", _ROWS, _COLS, raw)
    kept = huge_empty(_kernels.panels_nbytes("BF16", _ROWS, _COLS))
    start = time.perf_counter()
    _kernels.to_panels(plain, kept)
    pack_s = time.perf_counter() - start
    panels = _kernels.Matrix("BF16", _ROWS, _COLS, kept, "panels")
    many_s, one_s = (_product_s(panels, tokens) for tokens in (_TOKENS, 1))
    gflop_s = 2e-9 * _ROWS * _COLS * _TOKENS / many_s
    source = dict.fromkeys(("disk", "dram", "compute"), "measured in passing, as the model was loaded")
    return Rates(_disk_gb_s(checkpoint), raw.nbytes / 1e9 / one_s, gflop_s, raw.nbytes / 1e9 / pack_s, source)


def _product_s(matrix: "_kernels.Matrix", tokens: int) -> float:
    x, out = np.ones((tokens, _COLS), np.float32), np.empty((tokens, _ROWS), np.float32)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        _kernels.matmul(matrix, x, out)
        times.append(time.perf_counter() - start)
    return min(times)


def _disk_gb_s(checkpoint: Checkpoint) -> float:
    """By reading what a pass reads, from the end: what was looked at last is least likely to be cached."""
    memory, nbytes = huge_empty(2 * _ROOM), 0
    files: dict[Path, DirectFile] = {}
    start = time.perf_counter()
    try:
        for _, tensor in reversed(matrices(checkpoint)):
            for block in cut(tensor, _ROOM):
                for span in block.spans:
                    file = files.get(span.file)
                    if file is None:
                        file = files[span.file] = DirectFile(span.file)
                    nbytes += file.read(span, memory).nbytes
                elapsed = time.perf_counter() - start
                if elapsed > _DISK_S:
                    return _ALONE * nbytes / 1e9 / elapsed
    except PyllamaError:  # told when the model is read
        pass
    finally:
        for file in files.values():
            file.close()
    return max(1e-3, _ALONE * nbytes / 1e9 / (time.perf_counter() - start))
