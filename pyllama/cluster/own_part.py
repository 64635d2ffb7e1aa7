"""A model's name and a board's place among others -> the checkpoint that this board opens: its own part, or the whole.

`pyllama cluster push` writes each board's part to parts_folder(); `pyllama pack --for-host` to wherever it is told.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from pyllama.checkpoint import Checkpoint, open_checkpoint
from pyllama.cluster.dealing import deal
from pyllama.cluster.hosts import Host, is_here
from pyllama.errors import CheckpointError, HubError
from pyllama.hub import resolve
from pyllama.hub.cache import xdg_cache
from pyllama.packing.own_rows import ForBoard


def board_of(hosts: Sequence[Host], place: int) -> ForBoard:
    """Whose rows are to be packed: the board at this place."""
    return ForBoard(place, shares_by_place(hosts), deal)


def shares_by_place(hosts: Sequence[Host]) -> tuple[float, ...]:
    """Shares in the order in which the boards were named, whichever of them is rank 0."""
    return tuple(host.share for host in sorted(hosts, key=lambda host: host.place))


def parts_folder(model: str) -> Path:
    """Where a board keeps its parts of a model, by the last part of its path, or by its name."""
    name = os.path.basename(os.path.abspath(model)) if os.path.exists(model) or model[:1] in "/.~" else model
    return Path(xdg_cache()) / "pyllama" / "parts" / (name.replace("/", "--").lstrip(".") or "model")


def part_name(place: int, shares: Sequence[float]) -> str:
    """ "2-of-4", and where shares are unequal, something that tells them from others."""
    name = f"{place + 1}-of-{len(shares)}"
    if len(set(shares)) == 1:
        return name
    told = " ".join(f"{share / sum(shares):.6f}" for share in shares)
    return f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def open_part(model: str, place: int, shares: Sequence[float]) -> Checkpoint:
    """What the board at this place runs: its part, where there is one, else what `model` is here.

    Raises PyllamaError where neither is, and CheckpointError where it is another board's part, or one of another
    division.
    """
    pushed = parts_folder(model) / part_name(place, shares)
    try:
        path = pushed if pushed.is_dir() else resolve(model)
    except HubError as error:
        raise _with_parts(error, pushed) from None
    checkpoint = open_checkpoint(path, shares=True)
    stored = checkpoint.share
    if stored is not None:
        own = deal(checkpoint.config, stored.shares)[stored.place]
        if own != deal(checkpoint.config, shares)[place]:
            wanted = stored._replace(place=place, shares=tuple(shares))
            checkpoint.close()
            raise CheckpointError(f"{path}: {stored}, expected {wanted}")
    return checkpoint


def open_front(model: str | os.PathLike[str], hosts: Sequence[Host]) -> Checkpoint:
    """What the front end knows a model by: the whole where it is here, else this board's part."""
    name = os.fspath(model)
    try:
        return open_checkpoint(resolve(name), shares=True)
    except HubError as error:
        places = [part_name(host.place, shares_by_place(hosts)) for host in hosts if is_here(host.name)]
        pushed = [parts_folder(name) / place for place in places]
        found = next((path for path in pushed if path.is_dir()), None)
        if found is None:
            raise _with_parts(error, pushed[0]) from None
        return open_checkpoint(found, shares=True)


def _with_parts(error: HubError, wanted: Path) -> HubError:
    """The error, with which parts of the model are here instead."""
    there = wanted.parent.iterdir() if wanted.parent.is_dir() else ()
    names = sorted(each.name for each in there if each.is_dir() and not each.name.endswith(".packing"))
    if not names:
        return error
    return HubError(f"{error}; of its parts here is {', '.join(names[:4])}, expected {wanted.name}")
