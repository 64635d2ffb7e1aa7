"""config.json of a Hugging Face folder, and the index of its weights -> an Outline, without the files that hold them.

What planning needs of a model that is not downloaded. The shapes follow from the config; the dtype from how many
bytes the weights have in all. Fetches nothing.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

from pyllama.architecture import FAMILIES
from pyllama.architecture.config import Config
from pyllama.architecture.tensors import EMBEDDING, HEAD, tensor_shapes
from pyllama.checkpoint.huggingface import CONFIG, INDEX, read_object
from pyllama.checkpoint.huggingface_config import huggingface_config, huggingface_dtype
from pyllama.checkpoint.outline import Outline, outline
from pyllama.checkpoint.wrapped_names import plain_names
from pyllama.errors import CheckpointError, UnsupportedError

_HEADERS = 1 << 16  # bytes
_TEXTS = ("", ".json", ".jinja", ".txt", ".md")  # what goes with a model's weights and holds none


def describes(path: Path) -> bool:
    """Whether a model's config.json lies here, and nothing beside it that may hold weights."""
    if not (path / CONFIG).is_file():
        return False
    return all(file.suffix in _TEXTS or file.name == "tokenizer.model" for file in path.iterdir())


def outline_huggingface(folder: Path, weights_nbytes: int | None = None) -> Outline:
    """The model whose config.json lies in `folder`, with or without the safetensors index.

    weights_nbytes  bytes of its safetensors files, where there is no index to tell; without either, the config's
                    word for the dtype is taken

    Raises CheckpointError where index and config contradict each other, UnsupportedError for a dtype that is not
    BF16, F16 or F32.
    """
    described = read_object(folder / CONFIG)
    config, dtype = huggingface_config(described), huggingface_dtype(described)
    source = "the weights' file"
    copies = 0  # of a tied head, stored a second time
    if (folder / INDEX).is_file():
        source = INDEX
        index = read_object(folder / INDEX)
        weight_map, metadata = index.get("weight_map"), index.get("metadata")
        names = set(weight_map if isinstance(weight_map, dict) else ())
        plain = plain_names(names)
        names = {plain.get(name, name) for name in names}
        stored_as = FAMILIES[config.model_type].huggingface
        names = {ours for name in names for ours in stored_as.ours(name) or (name,)}
        for name in tensor_shapes(config):
            if name not in names and not (name == EMBEDDING and HEAD in names):
                raise CheckpointError(f"{name}: not in {INDEX}, expected as config.json describes the model")
        if config.tie_word_embeddings and HEAD in names and EMBEDDING in names:
            copies = config.vocab_size * config.hidden_size
        total = metadata.get("total_size") if isinstance(metadata, dict) else None
        weights_nbytes = total if type(total) in (int, float) else None
    if weights_nbytes is not None and "text_config" not in described:  # else there are towers besides
        dtype = _dtype(config, dtype, weights_nbytes, copies, source)
    return outline(config, dtype, folder)


def _dtype(config: Config, named: str, nbytes: float, copies: int, source: str) -> str:
    """The dtype that makes so many bytes of this config's weights; `named` where it is one of them."""
    weights = copies + sum(prod(shape) for shape in tensor_shapes(config).values())
    width = nbytes / weights
    # Headers, rotary buffers and a few norms in float32 are well under a hundredth, but for toys.
    if 3.96 * weights <= nbytes <= 4.1 * weights + _HEADERS:
        return "F32"
    if 1.98 * weights <= nbytes <= 2.1 * weights + _HEADERS:
        return named if named in ("BF16", "F16") else "BF16"
    raise UnsupportedError(
        f"{source}: {nbytes:.0f} bytes for {weights} weights, {width:.2f} each, expected 2 (BF16, F16) or 4 (F32)"
    )
