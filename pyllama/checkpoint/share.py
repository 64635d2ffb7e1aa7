"""What a packed folder says of itself that holds one board's rows of a model: its header's field `share`, and back.

Which rows those are is not known here: whoever opens it for a board compares shapes (streaming/local.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pyllama.checkpoint.index import Tensor, is_described
from pyllama.errors import CheckpointError, shown

MOST_BOARDS = 64


class StoredShare(NamedTuple):
    """One board's rows of a model.

    place   which of the boards it is, from 0, in the order in which they were named
    shares  of each of them
    digest  names the whole model's weights (digest.py)
    whole   name -> dtype and shape, in the whole model, of each tensor of which rows are missing, or all
    """

    place: int
    shares: tuple[float, ...]
    digest: str
    whole: dict[str, tuple[str, tuple[int, ...]]]

    def __str__(self) -> str:
        """ "part 2 of 4"."""
        unequal = "" if len(set(self.shares)) == 1 else f" (shares {', '.join(f'{each:g}' for each in self.shares)})"
        return f"part {self.place + 1} of {len(self.shares)}{unequal}"

    @classmethod
    def from_json(cls, value: Any, where: str) -> StoredShare:
        """Raises CheckpointError for what is no _asdict() of one; where: for the message."""
        try:
            place, shares, digest = value["place"], tuple(value["shares"]), value["digest"]
            described = {name: (dtype, list(shape)) for name, (dtype, shape) in value["whole"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CheckpointError(f"{where}: not a description of a board's part of a model") from None
        sound = (
            set(value) == set(cls._fields)
            and 1 <= len(shares) <= MOST_BOARDS
            and all(type(share) in (int, float) and 0 < share < 1e9 for share in shares)
            and type(place) is int
            and 0 <= place < len(shares)
            and isinstance(digest, str)
            and len(digest) == 32
            and digest.isalnum()
            and all(is_described(dtype, shape) for dtype, shape in described.values())
        )
        if not sound:
            raise CheckpointError(f"{where}: not a description of a board's part of a model")
        whole = {name: (dtype, tuple(shape)) for name, (dtype, shape) in described.items()}
        return cls(place, shares, digest, whole)


def as_whole(tensors: Mapping[str, Tensor], share: StoredShare) -> dict[str, Tensor]:
    """The tensors of a board's part with the shapes they have in the whole model, those included of which it has no
    row. Raises CheckpointError where a stored one is no part of what it should be."""
    found = dict(tensors)
    for name, (dtype, shape) in share.whole.items():
        stored = tensors.get(name)
        if stored is None:
            found[name] = Tensor(name, dtype, shape, ())
            continue
        if stored.dtype != dtype or stored.shape[1:] != shape[1:] or stored.shape[0] > shape[0]:
            raise CheckpointError(f"{shown(name)}: {stored.dtype} {stored.shape}, expected a part of {dtype} {shape}")
        found[name] = stored._replace(shape=shape)
    return found


def as_stored(index: Mapping[str, Tensor], tensors: Mapping[str, Tensor], share: StoredShare) -> dict[str, Tensor]:
    """An index of the whole model -> what of it is here: of some tensors no row."""
    found = {}
    for name in index:
        stored = tensors.get(name)
        if stored is None:
            dtype, shape = share.whole[name]
            stored = Tensor(name, dtype, (0, *shape[1:]), ())
        found[name] = stored
    return found
