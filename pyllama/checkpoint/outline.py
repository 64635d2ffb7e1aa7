"""What planning needs of a model: its config and what is known of its tensors, whether their files are here or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pyllama.architecture.config import Config
from pyllama.architecture.tensors import tensor_shapes
from pyllama.checkpoint.index import NOWHERE, Tensor, stored_dtype, whole


class Described(Protocol):
    """What a plan is made from: a Checkpoint has it, and so has an Outline."""

    @property
    def config(self) -> Config: ...

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True)
class Outline:
    """A checkpoint as far as its config and index tell; none of its tensors can be read."""

    path: Path
    format: str
    config: Config
    tensors: dict[str, Tensor]
    rope_interleaved: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return stored_nbytes(self)

    @property
    def dtype(self) -> str:
        """The storage format that holds most of the bytes."""
        return stored_dtype(self.tensors)


def stored_nbytes(model: Described) -> int:
    """Bytes of all tensors in the form they are stored in."""
    return sum(tensor.stored_nbytes for tensor in model.tensors.values())


def outline(config: Config, dtype: str, path: Path = NOWHERE) -> Outline:
    """The model this config describes, all of it in one storage format."""
    tensors = {name: whole(name, dtype, shape) for name, shape in tensor_shapes(config).items()}
    return Outline(path, "huggingface", config, tensors)
