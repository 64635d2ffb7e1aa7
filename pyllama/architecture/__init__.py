"""What a model is: families, their layers as data, and all that follows from the layers. No files, no kernels.

One family, one file. A new one is listed here and is known to every form of file that it names.
"""

from __future__ import annotations

from functools import lru_cache

from pyllama.architecture.config import Config
from pyllama.architecture.family import Family
from pyllama.architecture.gemma2 import Gemma2
from pyllama.architecture.gemma3 import Gemma3
from pyllama.architecture.gemma4 import Gemma4, Gemma4Unified
from pyllama.architecture.gpt_oss import GptOss
from pyllama.architecture.granite import Granite
from pyllama.architecture.granitemoe import GraniteMoe
from pyllama.architecture.granitemoehybrid import GraniteMoeHybrid
from pyllama.architecture.layer import Layer
from pyllama.architecture.lfm2 import Lfm2
from pyllama.architecture.lfm2_moe import Lfm2Moe
from pyllama.architecture.llama import Llama
from pyllama.architecture.ministral3 import Ministral3
from pyllama.architecture.mistral import Mistral
from pyllama.architecture.mixtral import Mixtral
from pyllama.architecture.olmo2 import Olmo2
from pyllama.architecture.olmo3 import Olmo3
from pyllama.architecture.phi3 import Phi3
from pyllama.architecture.qwen2 import Qwen2
from pyllama.architecture.qwen3 import Qwen3
from pyllama.architecture.qwen3_5 import Qwen35
from pyllama.architecture.qwen3_5_moe import Qwen35Moe
from pyllama.architecture.qwen3_moe import Qwen3Moe
from pyllama.architecture.smollm3 import SmolLM3

__all__ = ["FAMILIES", "Config", "Family", "Layer", "layers_of"]

#: model_type of config.json -> its family.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Llama(), Mistral(), Ministral3(), Qwen2(), Qwen3(), SmolLM3(), Granite(), Olmo2(), Olmo3(), Gemma2(), Gemma3(),
        Gemma4(), Gemma4Unified(), Phi3(), Mixtral(), Qwen3Moe(), GptOss(), GraniteMoe(), Lfm2(), Qwen35(),
        Lfm2Moe(), Qwen35Moe(), GraniteMoeHybrid(),
    )
}  # fmt: skip


@lru_cache(maxsize=4)
def layers_of(config: Config) -> tuple[Layer, ...]:
    """The layers of a model, in order."""
    return FAMILIES[config.model_type].layers(config)
