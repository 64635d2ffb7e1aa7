"""A published model -> the same model in pyllama's own files: whole under its final name, or not there at all.

The work is done in DST.packing, shard by shard, and can go on there after a kill. With `replace`, a source file is
deleted once everything taken from it lies packed on the disk, has been read back and unpacked, and is equal.
"""

import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyllama.checkpoint import Tensor, open_checkpoint
from pyllama.checkpoint.index import StoredBlock, files_of
from pyllama.checkpoint.packed import Carried, Shard, header_of, shard_name
from pyllama.checkpoint.packed_rows import rows_of
from pyllama.checkpoint.rows import Rows
from pyllama.errors import CheckpointError, PackError, RequestError
from pyllama.hub import resolve
from pyllama.packing.carry import small_files
from pyllama.packing.journal import Journal
from pyllama.packing.own_rows import ForBoard, OwnRows
from pyllama.packing.rows import SourceFiles, state_of
from pyllama.packing.shard import write_shard
from pyllama.packing.verify import INDEX, check_blocks, first_wrong, index_bytes
from pyllama.packing.workplace import PARTIAL, Workplace, disk_errors
from pyllama.terminal.progress import Progress, format_nbytes


def pack(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    replace: bool = False,
    board: ForBoard | None = None,
    progress: Progress | None = None,
) -> Path:
    """Pack a model; returns the folder it is in now.

    source       a model's path, or the name of a pulled one
    destination  a folder to be made; its parent exists
    replace      delete each source file once its packed form is verified: source and result need not both fit
    board        pack this one's rows alone; the source may be packed, too

    Raises CheckpointError, RequestError, HubError or PackError; then, and after a kill, nothing lies under
    `destination`. Reads the model once (twice with `replace`) and writes about 0.76 of its bfloat16 bytes.
    """
    if replace and board is not None:
        raise RequestError("pack: one board's rows cannot replace a model, whose others would be lost")
    progress = progress or Progress(quiet=True)
    with Workplace(destination) as work, disk_errors(work.destination):
        old = work.journal()
        work.drop_partial()
        plan = None
        try:
            before = None if old is None else Journal.from_json(old, work.folder)
            plan = _agree(work, before, os.fspath(source), replace, board)
            _check_space(work, plan)
            _write(work, plan, board, progress)
            work.finish()
        except BaseException as error:
            # What took hours is kept where the person, or another program's folder, stopped it.
            stopped = isinstance(error, KeyboardInterrupt) or os.path.lexists(work.destination)
            _leave(work, plan, stopped if plan else old is not None)
            raise
    return work.destination


def _agree(work: Workplace, old: Journal | None, asked: str, replace: bool, board: ForBoard | None) -> Journal:
    """What to do: go on with the earlier run's plan if it is for the same source, else begin with a new one."""
    if old and old.replace and not all(path.exists() for path in old.states):
        # With files gone the model cannot be opened any more: the journal knows the rest.
        if asked != old.asked and os.path.abspath(asked) != old.path:
            raise PackError(
                f"{work.folder}: holds weights of {old.path}, which may be nowhere else; to finish it, give "
                f"pyllama pack --replace {old.asked}"
            )
        for name, carried in old.carried.items():
            if describe((work.folder / name).read_bytes()) != carried:
                raise PackError(f"{work.folder / name}: damaged; put back the file from {old.path}")
        return old
    with open_checkpoint(resolve(asked)) as checkpoint:
        if checkpoint.packed and board is None:
            raise RequestError(f"{asked}: is packed already")
        plan = Journal.of(checkpoint, asked, replace, board)
        contents = dict(small_files(checkpoint))
    plan.carried = {name: describe(data) for name, data in contents.items()}
    if replace:
        for path in plan.states:
            if path.is_symlink() and path.resolve().parent.name != "blobs":
                raise RequestError(f"{path}: a link to {path.resolve()}, expected a file that --replace may delete")
    if old is None or old.identity != plan.identity:
        work.clear()
    work.write_journal(plan.to_json())
    for name, data in contents.items():
        work.write(name, data)
    return plan


def describe(data: bytes) -> Carried:
    return Carried(len(data), zlib.crc32(data))


def _check_space(work: Workplace, plan: Journal) -> None:
    """Raise PackError where the disk would run full, as far as can be told."""
    free = shutil.disk_usage(work.folder).free
    device = os.stat(work.folder).st_dev
    short = 0
    present = set(plan.states)
    for number, shard in enumerate(plan.shards, 1):
        if not (work.folder / shard_name(number, len(plan.shards))).exists():
            free -= plan.estimated_nbytes(shard)
            short = max(short, -free)
        if plan.replace:
            for path in present & set(plan.files_done(number)):
                present.discard(path)
                if path.exists() and (status := path.stat()).st_dev == device and status.st_nlink == 1:
                    free += status.st_size
    if short:
        advice = "" if plan.replace else ", or give --replace, which deletes source files as it goes"
        raise PackError(f"{work.destination}: {format_nbytes(short)} of disk space are missing; free some{advice}")


def _leave(work: Workplace, plan: Journal | None, keep: bool) -> None:
    """After an error: keep what another run can go on with, where that was asked for or is the only copy."""
    if not work.folder.exists():
        return
    if plan:
        count = len(plan.shards)
        begun = any((work.folder / shard_name(number, count)).exists() for number in range(1, count + 1))
        gone = plan.replace and not all(path.exists() for path in plan.states)
        keep = gone or (begun and (keep or plan.replace))
    if keep:
        work.drop_partial()
    else:
        work.abandon()


def _write(work: Workplace, plan: Journal, board: ForBoard | None, progress: Progress) -> None:
    """Every shard that is not there yet, and the index."""
    count = len(plan.shards)
    progress.total = (1 + plan.replace) * sum(tensor.nbytes for shard in plan.shards for tensor in shard)
    done: dict[Path, Shard] = {}
    previous = 0
    with _source(plan, board) as source:
        for number, tensors in enumerate(plan.shards, 1):
            path = work.folder / shard_name(number, count)
            shard = _take_over(path, plan, number, previous, source, progress) if path.exists() else None
            if shard is None:
                fields = plan.fields(number, previous)
                shard = write_checked(work, path, tensors, fields, plan.tied, source, progress, plan.replace)
            if plan.replace:
                for file in plan.files_done(number):
                    delete(file, plan.states[file])
            done[path] = shard
            previous = shard.crc32
    if count > 1:
        work.write(INDEX, index_bytes(done))


def _source(plan: Journal, board: ForBoard | None) -> SourceFiles | OwnRows:
    if board is None or plan.share is None:
        return SourceFiles(plan.states)
    return OwnRows(open_checkpoint(plan.path), board)


def write_checked(
    work: Workplace,
    path: Path,
    tensors: Sequence[Tensor],
    fields: dict[str, str],
    tied: bool,
    source: SourceFiles | OwnRows,
    progress: Progress,
    compare: bool,
) -> Shard:
    """Write one file under its final name; compare: only once what is on the disk has proven equal to the source."""
    partial = path.with_name(path.name + PARTIAL)
    write_shard(partial, tensors, fields, tied=tied, source=source, progress=progress)
    if compare:
        assert isinstance(source, SourceFiles)
        check_equal(partial, tensors, source, progress)
    work.keep(partial)
    return header_of(path)


def _take_over(
    path: Path, plan: Journal, number: int, previous: int, source: SourceFiles | OwnRows, progress: Progress
) -> Shard | None:
    """The shard that an earlier run finished, after reading all of it; None if it has to be written again."""
    tensors, label = plan.shards[number - 1], progress.label
    nbytes = sum(tensor.nbytes for tensor in tensors)
    there = all(path.exists() for tensor in tensors for path in files_of(tensor))
    try:
        shard = header_of(path)
        told = (shard.shard, shard.shards, shard.previous, shard.source, shard.rope_interleaved)
        if told != (number, len(plan.shards), previous, plan.format, plan.rope_interleaved) or {
            (t.name, t.dtype, t.shape) for t in shard.tensors.values()
        } != {(t.name, t.dtype, t.shape) for t in tensors}:
            raise CheckpointError(f"{path}: not the file that belongs here")
        progress.label = f"checking {path.name}"
        if plan.replace and there and isinstance(source, SourceFiles):
            check_equal(path, tensors, source, Progress(quiet=True))
        else:
            wrong = first_wrong(path, shard)
            if wrong:
                raise CheckpointError(wrong)
    except CheckpointError as error:
        if not there:
            raise PackError(f"{error}; its source is gone") from None
        os.unlink(path)
        return None
    finally:
        progress.label = label
    progress.skip((1 + plan.replace) * nbytes)
    return shard


def check_equal(path: Path, tensors: Sequence[Tensor], source: SourceFiles, progress: Progress) -> None:
    """Read a packed file back from the disk and compare it with its source. Raises CheckpointError if a bit differs."""
    source.open(tensors)
    published = {tensor.name: tensor for tensor in tensors}

    def rows(tensor: Tensor, block: StoredBlock) -> Rows:
        return Rows(published[tensor.name], block.row, block.rows)

    def compare(tensor: Tensor, block: StoredBlock, data: np.ndarray, memory: np.ndarray) -> str | None:
        plain = rows_of(tensor, block._replace(crc32=None), data)  # which has been checked
        if not np.array_equal(plain.reshape(-1), source.read(rows(tensor, block), memory)):
            return f"{path}: rows from {block.row} of {tensor.name} came out differently from its source"
        return None

    shard = header_of(path)
    everything = sum(block.nbytes for tensor in shard.tensors.values() for block in tensor.blocks)
    total = sum(tensor.nbytes for tensor in tensors)
    stored = told = 0

    def advance(count: int) -> None:
        """Progress counts unpacked bytes."""
        nonlocal stored, told
        stored += count
        share = total * stored // everything - told
        told += share
        progress.advance(share)

    wrong = next(check_blocks({path: shard}, advance, compare, lambda tensor, block: rows(tensor, block).room), None)
    if wrong:
        raise CheckpointError(wrong)


def delete(path: Path, state: tuple[int, int]) -> None:
    """Delete a source file; in the Hub's cache the file that the link there leads to as well."""
    if path.exists():
        if state_of(path) != state:
            raise CheckpointError(f"{path}: changed while it was being packed, so it was not deleted")
        if path.is_symlink():
            os.unlink(path.resolve())
    if path.is_symlink() or path.exists():
        os.unlink(path)
