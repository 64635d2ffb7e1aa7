"""What an answer is sampled with where nobody says: the model's own words for it, then what conversations are used to.

A model's files say it in generation_config.json, or in GGUF's general.sampling.*; each field they leave out is ours.
"""

import math
from typing import TYPE_CHECKING, Any

from pyllama.errors import PyllamaError
from pyllama.generation.sampler import SamplingParams

if TYPE_CHECKING:
    from pyllama.checkpoint import Checkpoint

#: What llama.cpp and ollama draw with, or nearly.
CONVERSATION: dict[str, float] = {"temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
_GENERATION_CONFIG = "generation_config.json"
_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_GGUF = dict(zip(_FIELDS, ("temp", "top_k", "top_p", "min_p", "penalty_repeat"), strict=True))


def sampling_defaults(checkpoint: "Checkpoint") -> dict[str, Any]:
    """Sampling options of a conversation with this model, under SamplingParams' names.

    Whether a file says do_sample does not matter: a field is what its authors draw with. What is out of range is left
    out. Cost: reads one small file of a Hugging Face folder; of GGUF nothing.
    """
    return {**CONVERSATION, **own_sampling(checkpoint)}


def own_sampling(checkpoint: "Checkpoint") -> dict[str, Any]:
    """What the model's files say themselves."""
    said = checkpoint.metadata
    if any(key.startswith("general.") for key in said):
        values = {name: said.get(f"general.sampling.{key}") for name, key in _GGUF.items()}
    else:
        values = _generation_config(checkpoint)
    return {name: value for name, value in values.items() if _is_option(name, value)}


def _generation_config(checkpoint: "Checkpoint") -> dict[str, Any]:
    from pyllama.checkpoint.files import read_small
    from pyllama.strict_json import MAX_NBYTES, parse_object

    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if not (folder / _GENERATION_CONFIG).is_file():
        return {}
    found = parse_object(read_small(folder / _GENERATION_CONFIG, MAX_NBYTES), _GENERATION_CONFIG)
    return {name: found.get(name) for name in _FIELDS}


def _is_option(name: str, value: object) -> bool:
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return False
    try:
        SamplingParams.from_options(**{name: value})
    except PyllamaError:
        return False
    return True
