"""What a model is: families, their layers as data, and all that follows from the layers. No files, no kernels.

One family, one file. A new one is listed here and is known to every form of file that it names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import import_module

from pyllama.architecture.config import Config
from pyllama.architecture.family import Family
from pyllama.architecture.layer import Layer

__all__ = ["FAMILIES", "Config", "Family", "Layer", "layers_of"]


class _Families(Mapping[str, Family]):
    """model_type of config.json -> its family, whose file is read when it is first asked for: a model is of one.

    classes  model_type -> file and class
    """

    def __init__(self, classes: Mapping[str, str]):
        self._classes = classes
        self._read: dict[str, Family] = {}

    def __getitem__(self, model_type: str) -> Family:
        if model_type not in self._read:
            file, name = self._classes[model_type].split(".")
            self._read[model_type] = getattr(import_module(f"{__name__}.{file}"), name)()
        return self._read[model_type]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)


FAMILIES = _Families(
    {
        "llama": "llama.Llama",
        "mistral": "mistral.Mistral",
        "ministral3": "ministral3.Ministral3",
        "qwen2": "qwen2.Qwen2",
        "qwen3": "qwen3.Qwen3",
        "smollm3": "smollm3.SmolLM3",
        "granite": "granite.Granite",
        "olmo2": "olmo2.Olmo2",
        "olmo3": "olmo3.Olmo3",
        "gemma2": "gemma2.Gemma2",
        "gemma3_text": "gemma3.Gemma3",
        "gemma4_text": "gemma4.Gemma4",
        "gemma4_unified_text": "gemma4.Gemma4Unified",
        "phi3": "phi3.Phi3",
        "mixtral": "mixtral.Mixtral",
        "qwen3_moe": "qwen3_moe.Qwen3Moe",
        "gpt_oss": "gpt_oss.GptOss",
        "granitemoe": "granitemoe.GraniteMoe",
        "lfm2": "lfm2.Lfm2",
        "qwen3_5_text": "qwen3_5.Qwen35",
        "lfm2_moe": "lfm2_moe.Lfm2Moe",
        "qwen3_5_moe_text": "qwen3_5_moe.Qwen35Moe",
        "granitemoehybrid": "granitemoehybrid.GraniteMoeHybrid",
    }
)


@lru_cache(maxsize=4)
def layers_of(config: Config) -> tuple[Layer, ...]:
    """The layers of a model, in order."""
    return FAMILIES[config.model_type].layers(config)
