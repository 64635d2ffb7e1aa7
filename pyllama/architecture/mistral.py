"""Mistral 7B and its kin: Llama's block, and in the first version a sliding window in every layer."""

from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar

from pyllama.architecture.config import Windows
from pyllama.architecture.family import Defaults, Family
from pyllama.architecture.fields import Fields
from pyllama.architecture.sliding import in_all, sliding_window


class Mistral(Family):
    model_type = "mistral"
    architecture = "MistralForCausalLM"
    wrappers = MappingProxyType({"mistral3": "Mistral3ForConditionalGeneration"})  # Mistral Small 3.1 and 3.2
    gguf_as: ClassVar[str | None] = "llama"
    defaults = Defaults(max_position_embeddings=131072, num_key_value_heads=8, head_dim=None)

    def windows(self, f: Fields, layer_types: list[str] | None, layers: int) -> Windows:
        return in_all(sliding_window(f), f, layer_types, layers, "mistral")
