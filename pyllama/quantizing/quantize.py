"""A model -> one GGUF file in a given type: whole under its name, or not there at all.

The work is done beside it (workplace.py) and can go on there after a kill. Memory is a few blocks of rows, whatever the
model; reading runs ahead of the arithmetic.
"""

from __future__ import annotations

import gc
import os
import shutil
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyllama import _kernels
from pyllama.checkpoint import Checkpoint, open_checkpoint
from pyllama.errors import BudgetError, CheckpointError, PackError, RequestError
from pyllama.hub import resolve
from pyllama.machine.memory import budget_of, mb, resident_nbytes
from pyllama.machine.threads import default_threads
from pyllama.packing.rows import state_of
from pyllama.packing.workplace import disk_errors
from pyllama.quantizing.calibration import calibrated, identity, read_text
from pyllama.quantizing.importance import Importance, check_fits, read_importance
from pyllama.quantizing.outline import Outline, outline
from pyllama.quantizing.rows import Piece, Source, converted, memory_nbytes, pieces
from pyllama.quantizing.types import FileType, file_type, loses
from pyllama.quantizing.warning import QuantizeWarning
from pyllama.quantizing.workplace import FileWorkplace, GrowingFile, Mark
from pyllama.terminal.progress import Progress, format_nbytes
from pyllama.version import __version__

#: Of the float32 of a piece, if memory allows: large enough to keep all threads busy, and the disk.
_PIECES = (16 << 20, 8 << 20, 4 << 20, 2 << 20, 1 << 20, 1)
_SLACK = 12 << 20  # allocator, stacks of threads: what nothing else counts


def quantize(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    type: str,
    *,
    calibration: str | os.PathLike[str] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    pre_tokenizer: str | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a model as a GGUF file; returns its path.

    source         a model's path, or the name of a pulled one
    destination    the file to be made; its folder exists
    type           "q4_k_m", "q8_0", ... (types.py)
    calibration    a text: errors count by what the model multiplies with the weights over it. What is collected stays
                   in a file beside the destination (calibration.SUFFIX), and is not collected again
    imatrix        such a file, or one of llama.cpp's, instead
    pre_tokenizer  tokenizer.ggml.pre, in place of what the source's files say
    memory         what the whole process may take, in bytes or as "250M"; default: what is available, less a margin
    threads        default: the physical cores

    Warns (QuantizeWarning) of a source that is quantized already. Raises RequestError, CheckpointError, TokenizerError,
    BudgetError or PackError; then nothing is left, but for what an earlier run had done. After a kill or Ctrl-C the
    same call goes on. The file does not depend on memory or threads.
    """
    progress = progress or Progress(quiet=True)
    wanted = file_type(type)
    budget = budget_of(memory)
    if threads is not None and not 1 <= threads <= 1024:
        raise RequestError(f"threads: {threads}, expected 1 to 1024")
    if calibration is not None and imatrix is not None:
        raise RequestError("imatrix: given together with calibration, expected one of them")
    text = None if calibration is None else read_text(calibration)
    given = None if imatrix is None else read_importance(Path(imatrix))
    path = resolve(source)
    with FileWorkplace(destination) as work, disk_errors(work.destination):
        _kernels.set_num_threads(default_threads() if threads is None else threads)
        old = work.journal()
        begun = False
        try:
            with open_checkpoint(path) as checkpoint:
                _tell_losses(checkpoint, wanted)
                progress.note("comparing tokenizers" if checkpoint.format != "gguf" else "")
                made = outline(
                    checkpoint,
                    wanted,
                    weighed_by=_weighed_by(calibration or imatrix, given),
                    pre_tokenizer=pre_tokenizer,
                )
                plan = _plan(checkpoint, made, wanted)
                plan["importance"] = _identity(checkpoint, text, given)
                if old != plan:
                    if old is not None and old.get("work") != "quantize":
                        raise PackError(f"{work.folder}: left by another command; move it elsewhere")
                    work.clear()
                    work.write_journal(plan)
                work.drop_partial()
                begun = True
                if calibration is not None:
                    given = calibrated(
                        work,
                        checkpoint,
                        Path(calibration),
                        budget=budget,
                        threads=threads,
                        pre_tokenizer=pre_tokenizer,
                        progress=progress,
                    )
                    gc.collect()  # the weights that were kept for it
                columns = {} if given is None else given.columns
                if given is not None:
                    check_fits(given, made.shapes, Path(calibration or imatrix or ""))
                _write(work, checkpoint, made, columns, budget, progress)
            work.finish()
        except BaseException as error:
            # What took hours is kept where the person, or another program's file, stopped it.
            kept = isinstance(error, KeyboardInterrupt) or os.path.lexists(work.destination)
            if not (kept if begun else old is not None):
                work.abandon()
            raise
    return work.destination


def _tell_losses(checkpoint: Checkpoint, wanted: FileType) -> None:
    stored = {tensor.dtype for tensor in checkpoint.tensors.values()}
    if loses(stored) and stored - {"F32", wanted.dtype}:
        names = ", ".join(sorted(dtype for dtype in stored if loses([dtype])))
        warnings.warn(
            f"{checkpoint.path}: its weights are quantized already ({names}): what that lost stays lost, and more is; "
            "take the original weights if you can",
            QuantizeWarning,
            stacklevel=3,
        )


def _weighed_by(path: str | os.PathLike[str] | None, given: Importance | None) -> tuple[str, str] | None:
    """What the file says of its importance weights: the file they are from and the text, by their names."""
    if path is None:
        return None
    name = Path(path).name
    return (name, ", ".join(given.datasets)) if given is not None else ("", name)


def _identity(checkpoint: Checkpoint, text: bytes | None, given: Importance | None) -> Any:
    """Which importance weights are used, in a word that tells them from others."""
    if text is not None:
        return identity(checkpoint, text)
    weights = 0
    for name, columns in sorted(given.columns.items()) if given else ():
        weights = zlib.crc32(columns.tobytes(), zlib.crc32(name.encode(), weights))
    return weights


def _plan(checkpoint: Checkpoint, made: Outline, wanted: FileType) -> dict[str, Any]:
    """What the work is, as JSON has it: a run that was killed is gone on with if all of this is the same."""
    return {
        "work": "quantize",
        "version": __version__,
        "type": wanted.name,
        "source": [[os.path.abspath(path), *state_of(path)] for path in checkpoint.files],
        "head": zlib.crc32(made.head),
    }


def _write(
    work: FileWorkplace,
    checkpoint: Checkpoint,
    made: Outline,
    importance: Mapping[str, np.ndarray],
    budget: int,
    progress: Progress,
) -> None:
    progress.total = sum(stored.tensor.nbytes for stored in made.tensors)
    progress.note("checking what is there" if work.unfinished.exists() else "")
    mark = work.mark()
    if mark is not None and not 0 <= mark.tensor <= len(made.tensors):
        mark = None  # of another file
    progress.note("")
    _check_space(work, made, mark)
    done = 0 if mark is None else _source_nbytes(made, mark)
    progress.skip(done)
    tensor, row = (mark.tensor, mark.row) if mark else (0, 0)
    rest = _fitting(made, tensor, row, budget)
    numbers = {stored.tensor.name: number for number, stored in enumerate(made.tensors)}
    states = {Path(path): state_of(path) for path in checkpoint.files}
    with Source(checkpoint, states) as source, GrowingFile(work, mark) as file:
        if mark is None:
            file.write(made.head)
        try:
            for piece, data in converted(source, rest, importance):
                file.fill(made.start(piece.stored, piece.row))
                file.write(data)
                file.reached(*_after(piece, numbers[piece.stored.tensor.name]))
                progress.advance(piece.nbytes)
        except KeyboardInterrupt:
            file.keep()
            raise
        file.fill(made.nbytes)
        file.sync()
    for path, state in states.items():
        if state_of(path) != state:
            raise CheckpointError(f"{path}: changed while it was being quantized; give the command again")


def _after(piece: Piece, number: int) -> tuple[int, int]:
    """The tensor and row that come after a piece."""
    row = piece.row + piece.rows
    return (number, row) if row < piece.tensor.rows else (number + 1, 0)


def _source_nbytes(made: Outline, mark: Mark) -> int:
    done = sum(stored.tensor.nbytes for stored in made.tensors[: mark.tensor])
    return done + (mark.row * made.tensors[mark.tensor].tensor.row_nbytes if mark.row else 0)


def _fitting(made: Outline, tensor: int, row: int, budget: int) -> list[Piece]:
    """What is left to do, in the largest pieces that the memory holds. Raises BudgetError."""
    process = resident_nbytes() + _SLACK
    for most in _PIECES:
        work = list(pieces(made.tensors, most, tensor, row))
        if not work:
            return []
        needed = process + memory_nbytes(work)
        if needed <= budget:
            return work
    raise BudgetError(
        f"memory: {mb(budget)} MB, quantizing this model needs at least {BudgetError.enough_mb(needed)} MB"
        f" (process {mb(process)})"
    )


def _check_space(work: FileWorkplace, made: Outline, mark: Mark | None) -> None:
    """Raise PackError where the disk would run full, as far as can be told."""
    there = work.unfinished.stat().st_size if work.unfinished.exists() else 0
    short = made.nbytes - there - shutil.disk_usage(work.folder).free
    if short > 0:
        raise PackError(f"{work.destination}: {format_nbytes(short)} of disk space are missing; free some")
