"""This machine's rates in a few seconds, for a prediction: disk, memory, products, each with its source."""

import os
from contextlib import ExitStack
from pathlib import Path

from pyllama.errors import PyllamaError
from pyllama.hub.cache import hub_cache, xdg_cache
from pyllama.machine.memory import available_nbytes
from pyllama.machine.threads import default_threads
from pyllama.measure import disk
from pyllama.measure.ceilings import Ceilings, buffer_nbytes
from pyllama.measure.kernels import quick
from pyllama.measure.report_lines import threads_text
from pyllama.measure.storage import storage
from pyllama.planning.time import Rates

QUICK_S = 1.5
QUICK_NBYTES = 256 << 20


def cache_folders() -> list[Path]:
    """Where models are kept, or would be."""
    return [hub_cache(), Path(xdg_cache()) / "pyllama"]


def measure(
    model_files: list[Path] | None = None,
    *,
    disk_gb_s: float | None = None,
    dram_gb_s: float | None = None,
    seconds: float = QUICK_S,
    nbytes: int = QUICK_NBYTES,
) -> Rates:
    """Measures what is not given; at most about 2 s each.

    model_files  the model's own files, if they are here and large: then the largest is read, else the largest
                 model in the cache, else a temporary file of `nbytes` there
    """
    threads = default_threads()  # as a model would be loaded with
    source = dict.fromkeys(("disk", "dram"), "as given")
    if disk_gb_s is None:
        disk_gb_s, source["disk"] = _disk(model_files or [], seconds, nbytes)
    if dram_gb_s is None:
        ceilings = Ceilings(buffer_nbytes(nbytes))
        dram_gb_s = ceilings.read_gb_s(threads, passes=7)
        source["dram"] = f"measured, {threads_text(threads)} over {ceilings.buffer.nbytes >> 20} MB"
        del ceilings
    compute, whole, pack = quick(threads, min(nbytes, 32 << 20, max(1 << 20, available_nbytes() // 8)), seconds / 16)
    source["compute"] = f"measured, {threads_text(threads)}, products of 64 tokens; packing {pack:.1f} GB/s"
    return Rates(disk_gb_s, dram_gb_s, compute, pack, source, whole)


def _disk(model_files: list[Path], seconds: float, nbytes: int) -> tuple[float, str]:
    largest, what = disk.largest(model_files), "the model's largest file"
    if largest is None:
        largest, what = disk.largest_file(cache_folders()), "the largest file in the model cache"
    with ExitStack() as made:
        if largest is None:
            what = f"a temporary file of {nbytes >> 20} MB where models are kept"
            largest = made.enter_context(disk.temporary_file(nearest(cache_folders()[0]), nbytes))
        reading = disk.read_rate(largest, seconds=seconds)
        where = storage(largest)
    if not reading.gb_s:
        raise PyllamaError("disk: nothing was read in the time given, expected a block; give --disk RATE")
    how = "" if reading.direct else ", without O_DIRECT"
    return reading.gb_s, f"measured on {what}, {reading.nbytes / 1e6:.0f} MB{how}; {where}"


def nearest(folder: Path) -> Path:
    """The folder, or of those around it the first that exists and can be written to."""
    for candidate in (folder, *folder.parents):
        if candidate.is_dir() and os.access(candidate, os.W_OK):
            return candidate
    return folder
