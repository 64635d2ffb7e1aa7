"""A checkpoint -> which tensor goes into which file of the packed model, and which source file is done when.

The order is that of a pass. A file ends where it gets large and where the last tensor of some source file has been
taken: then that one can go. Nothing is read or written here.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyllama.checkpoint import Checkpoint, Part, Tensor
from pyllama.checkpoint.index import Apart, files_of
from pyllama.checkpoint.packed import SHARE, Carried
from pyllama.checkpoint.share import StoredShare
from pyllama.errors import PackError
from pyllama.packing.own_rows import ForBoard
from pyllama.packing.rows import state_of
from pyllama.packing.shard import compact, estimated_nbytes, shard_fields

#: Fields of a journal that JSON has as they are.
_PLAIN: dict[str, Callable[[Any], Any]] = {
    "asked": str, "path": str, "replace": bool, "format": str, "rope_interleaved": bool, "tied": bool,
}  # fmt: skip
SHARD_NBYTES = 4_000_000_000  # of unpacked weights: no file system refuses the packed file


@dataclass
class Journal:
    """Everything about a packing that the next run must know to go on, with or without the source.

    asked     the source as the person gave it; path: where it is
    replace   source files may have been deleted
    states    bytes and time of change of each source file
    carried   the small files, by name
    shards    the tensors of each file
    share     what the result says of itself where it is one board's rows
    """

    asked: str
    path: str
    replace: bool
    format: str
    rope_interleaved: bool
    tied: bool
    states: dict[Path, tuple[int, int]]
    shards: list[list[Tensor]]
    carried: dict[str, Carried] = field(default_factory=dict)
    share: StoredShare | None = None

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        asked: str,
        replace: bool,
        board: ForBoard | None = None,
        file_nbytes: int | None = None,
    ) -> "Journal":
        tensors = board.tensors(checkpoint) if board else map(_absolute, checkpoint.tensors.values())
        return cls(
            asked,
            os.path.abspath(checkpoint.path),
            replace,
            checkpoint.format,
            checkpoint.rope_interleaved,
            checkpoint.config.tie_word_embeddings,
            {Path(os.path.abspath(path)): state_of(path) for path in checkpoint.files},
            into_shards(tensors, file_nbytes),
            share=board.described(checkpoint) if board else None,
        )

    def estimated_nbytes(self, shard: Sequence[Tensor]) -> int:
        return sum(estimated_nbytes(tensor, self.tied) for tensor in shard)

    def fields(self, number: int, previous: int) -> dict[str, str]:
        """What the header of a shard says of it; previous: the checksum of the one before."""
        found = shard_fields(self.format, self.rope_interleaved, number, len(self.shards), previous, self.carried)
        return found | ({SHARE: compact(self.share._asdict())} if number == 1 and self.share else {})

    def files_done(self, count: int) -> list[Path]:
        """The source files from which nothing is wanted once `count` shards are there."""
        wanted = {path for shard in self.shards[count:] for tensor in shard for path in files_of(tensor)}
        return [path for path in self.states if path not in wanted]

    @property
    def identity(self) -> str:
        """The same for whatever is the same work."""
        return compact(self.to_json() | {"asked": None, "replace": None})

    def to_json(self) -> dict[str, Any]:
        files = list(self.states)
        number = {path: i for i, path in enumerate(files)}
        return {
            "work": "pack",
            **{name: getattr(self, name) for name in _PLAIN},
            "files": [[os.fsdecode(path), *self.states[path]] for path in files],
            "shards": [[_to_list(tensor, number) for tensor in shard] for shard in self.shards],
            "carried": self.carried,
            "share": self.share._asdict() if self.share else None,
        }

    @classmethod
    def from_json(cls, value: Any, journal: Path) -> "Journal":
        """Raises PackError for what to_json() did not make."""
        try:
            if value["work"] != "pack":
                raise PackError(f"{journal}: left by another command, expected one of pack; go on with that one")
            files = [Path(name) for name, _, _ in value["files"]]
            return cls(
                states={path: (size, time) for path, (_, size, time) in zip(files, value["files"], strict=True)},
                shards=[[_from_list(item, files) for item in shard] for shard in value["shards"]],
                carried={str(name): Carried(*entry) for name, entry in value["carried"].items()},
                share=StoredShare.from_json(value["share"], journal.name) if value.get("share") else None,
                **{name: kind(value[name]) for name, kind in _PLAIN.items()},
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            raise PackError(f"{journal}: not a journal that this version can read; move it elsewhere") from None


def into_shards(tensors: Iterable[Tensor], most: int | None = None) -> list[list[Tensor]]:
    """The tensors, in order, cut into files of so many unpacked bytes; default: SHARD_NBYTES."""
    most = SHARD_NBYTES if most is None else most
    tensors = list(tensors)
    last_use = {path: i for i, tensor in enumerate(tensors) for path in files_of(tensor)}
    ends = set(last_use.values())
    shards: list[list[Tensor]] = [[]]
    nbytes = 0
    for i, tensor in enumerate(tensors):
        if shards[-1] and (nbytes + tensor.nbytes > most or i - 1 in ends):
            shards.append([])
            nbytes = 0
        shards[-1].append(tensor)
        nbytes += tensor.nbytes
    return shards


def _absolute(tensor: Tensor) -> Tensor:
    return tensor._replace(parts=tuple(_at(part, lambda path: Path(os.path.abspath(path))) for part in tensor.parts))


def _at(part: Part, place: Callable[[Any], Any]) -> Part:
    """The part with what `place` makes of its files."""
    apart = part.apart
    if apart and apart.scales:
        apart = apart._replace(scales=(place(apart.scales[0]), apart.scales[1]))
    return part._replace(file=place(part.file), apart=apart)


def _to_list(tensor: Tensor, number: dict[Path, int]) -> list[Any]:
    parts = [_at(part, number.__getitem__) for part in tensor.parts]
    told = [part if part.apart else part[:6] for part in parts]
    return [tensor.name, tensor.dtype, tensor.shape, told]


def _from_list(item: Any, files: Sequence[Path]) -> Tensor:
    name, dtype, shape, parts = item
    return Tensor(name, dtype, tuple(shape), tuple(_part(numbers, files) for numbers in parts))


def _part(item: Any, files: Sequence[Path]) -> Part:
    numbers, apart = item[:6], None
    if len(item) > 6:
        step, phase, scales = item[6]
        apart = Apart(step, phase, None if scales is None else (scales[0], scales[1]))
    return _at(Part(*numbers)._replace(apart=apart), files.__getitem__)
