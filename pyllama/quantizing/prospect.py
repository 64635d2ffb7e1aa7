"""A model as it would be once quantized, as far as its shapes tell: what planning needs before anybody quantizes it."""

from __future__ import annotations

from pyllama.checkpoint.index import NOWHERE, whole
from pyllama.checkpoint.outline import Described, Outline
from pyllama.quantizing.outline import stacked, stored_names, stored_shapes, types_of
from pyllama.quantizing.types import file_type


def prospect(model: Described, type_name: str) -> Outline:
    """Raises UnsupportedError for what GGUF has no name for, RequestError for a type that is none."""
    config, names = model.config, stored_names(model)
    shapes, _ = stored_shapes(config, stacked(model, names), names)
    dtypes = types_of(config, file_type(type_name), shapes)
    tensors = {name: whole(name, dtypes[names[name]], tensor.shape) for name, tensor in model.tensors.items()}
    return Outline(NOWHERE, "gguf", config, tensors)
