"""Qwen3, dense: Llama's block with an RMSNorm of each head of q and k."""

from __future__ import annotations

from pyllama.architecture.config import Config, Windows
from pyllama.architecture.family import GGUF_HEAD_NORMS, GGUF_NAMES, Defaults, Family
from pyllama.architecture.fields import Fields
from pyllama.architecture.layer import Layer, llama_layers
from pyllama.architecture.sliding import windows_if_used


class Qwen3(Family):
    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    defaults = Defaults(max_position_embeddings=32768, num_key_value_heads=32, head_dim=128)
    attention_bias = False
    gguf_architecture = "qwen3"
    gguf = GGUF_NAMES.within(GGUF_HEAD_NORMS)

    def layers(self, config: Config) -> tuple[Layer, ...]:
        return llama_layers(config, head_norms=True)

    def windows(self, f: Fields, layer_types: list[str] | None, layers: int) -> Windows:
        return windows_if_used(f, layer_types, layers)
