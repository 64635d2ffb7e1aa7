"""Qwen2 and Qwen2.5: Llama's block with a bias on q, k and v."""

from __future__ import annotations

from pyllama.architecture.config import Windows
from pyllama.architecture.family import Biases, Defaults, Family
from pyllama.architecture.fields import Fields
from pyllama.architecture.sliding import windows_if_used


class Qwen2(Family):
    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    defaults = Defaults(max_position_embeddings=32768, num_key_value_heads=32, head_dim=None)
    gguf_architecture = "qwen2"

    def biases(self, f: Fields) -> Biases:
        return Biases(qkv=True)

    def windows(self, f: Fields, layer_types: list[str] | None, layers: int) -> Windows:
        return windows_if_used(f, layer_types, layers)
