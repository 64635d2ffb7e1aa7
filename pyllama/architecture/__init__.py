"""What a model is: families, their layers as data, and all that follows from the layers. No files, no kernels.

One family, one file. A new one is listed here and is known to every form of file that it names.
"""

from __future__ import annotations

from functools import lru_cache

from pyllama.architecture.config import Config
from pyllama.architecture.family import Family
from pyllama.architecture.gpt_oss import GptOss
from pyllama.architecture.layer import Layer
from pyllama.architecture.llama import Llama
from pyllama.architecture.mistral import Mistral
from pyllama.architecture.mixtral import Mixtral
from pyllama.architecture.qwen2 import Qwen2
from pyllama.architecture.qwen3 import Qwen3
from pyllama.architecture.qwen3_moe import Qwen3Moe

__all__ = ["FAMILIES", "Config", "Family", "Layer", "layers_of"]

#: model_type of config.json -> its family.
FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (GptOss(), Llama(), Mistral(), Mixtral(), Qwen2(), Qwen3(), Qwen3Moe())
}


@lru_cache(maxsize=4)
def layers_of(config: Config) -> tuple[Layer, ...]:
    """The layers of a model, in order."""
    return FAMILIES[config.model_type].layers(config)
