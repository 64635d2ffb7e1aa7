"""A model as it would be once quantized, as far as its shapes tell: what planning needs before anybody quantizes it."""

from __future__ import annotations

from pyllama.architecture.tensors import convolutions, stored_as_vectors
from pyllama.checkpoint.index import NOWHERE, whole
from pyllama.checkpoint.outline import Described, Outline
from pyllama.quantizing import gguf_metadata
from pyllama.quantizing.outline import stacked, stored_names, stored_shapes
from pyllama.quantizing.types import file_type, tensor_types


def prospect(model: Described, type_name: str) -> Outline:
    """Raises UnsupportedError for what GGUF has no name for, RequestError for a type that is none."""
    config, names = model.config, stored_names(model)
    dtypes = tensor_types(
        file_type(type_name),
        stored_shapes(stacked(model, names), names, convolutions(model.config) | stored_as_vectors(model.config))[0],
        architecture=str(gguf_metadata.written_family(config).gguf_architecture),
        layers=config.num_hidden_layers,
        groups=config.num_attention_heads // config.num_key_value_heads,
    )
    tensors = {name: whole(name, dtypes[names[name]], tensor.shape) for name, tensor in model.tensors.items()}
    return Outline(NOWHERE, "gguf", config, tensors)
