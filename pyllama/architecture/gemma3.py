"""Gemma 3, the text models: Gemma 2's block with a norm of each head, and another rotation in layers with a window."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from pyllama.architecture.config import Config
from pyllama.architecture.family import GGUF_HEAD_NORMS, Defaults
from pyllama.architecture.fields import Fields
from pyllama.architecture.gemma2 import SANDWICH_NAMES, Gemma2
from pyllama.architecture.layer import SANDWICH, Layer, llama_layers


class Gemma3(Gemma2):
    model_type = "gemma3_text"
    architecture = "Gemma3ForCausalLM"
    wrappers = MappingProxyType({"gemma3": "Gemma3ForConditionalGeneration"})
    defaults = Defaults(
        max_position_embeddings=131072,
        num_key_value_heads=4,
        head_dim=256,
        rope_theta=1e6,
        tie_word_embeddings=True,
        sizes={
            "num_attention_heads": 8,
            "vocab_size": 262208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
        },
    )
    softcaps = MappingProxyType({})
    sliding_theta = "rope_local_base_freq"
    gguf_architecture = "gemma3"
    gguf = SANDWICH_NAMES.within(GGUF_HEAD_NORMS)
    pattern = 6
    largest = 62

    def layers(self, config: Config) -> tuple[Layer, ...]:
        return llama_layers(config, head_norms=True, norms=SANDWICH, activation="gelu")

    def gguf_options(self, f: Fields, head_dim: int, layers: int) -> dict[str, Any]:
        theta = f.number("rope.freq_base_swa", 1.0001, 1e12, self.defaults.sliding_rope_theta)
        return {**super().gguf_options(f, head_dim, layers), "sliding_rope": (theta, None)}

    def gguf_values(self, config: Config) -> dict[str, Any]:
        theta = config.sliding_rope[0] if config.sliding_rope else config.rope_theta
        return {**super().gguf_values(config), "rope.freq_base_swa": float(theta)}
