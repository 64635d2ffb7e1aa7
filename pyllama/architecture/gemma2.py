"""Gemma 2: norms around each block, gelu, bounded scores and logits, a window in every other layer."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

from pyllama.architecture.config import Config, Windows
from pyllama.architecture.family import GGUF_NAMES, Defaults, Family
from pyllama.architecture.fields import Fields
from pyllama.architecture.layer import SANDWICH, Layer, llama_layers
from pyllama.architecture.sliding import by_type, gguf_windows, sliding_window

#: What llama.cpp's converter calls the norms around the blocks; it stores weights of norms with their 1 added.
SANDWICH_NAMES = GGUF_NAMES.within(
    {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
)
_SOFTCAPS = {"attn_logit_softcapping": "attention_softcap", "final_logit_softcapping": "logits_softcap"}


class Gemma2(Family):
    """A layer in `pattern` sees everything, the last of each run; the others see a window.

    largest  layers of the one size whose scores are scaled by the hidden size's share of a head: in a GGUF file there
             is no word for that, and llama.cpp knows it by the number of layers
    """

    model_type = "gemma2"
    architecture = "Gemma2ForCausalLM"
    defaults = Defaults(
        max_position_embeddings=8192,
        num_key_value_heads=4,
        head_dim=256,
        tie_word_embeddings=True,
        sizes={"num_attention_heads": 8, "vocab_size": 256000},
    )
    attention_bias = False
    activations = ("gelu_pytorch_tanh",)
    read_here = frozenset({*_SOFTCAPS, "attention.sliding_window_pattern"})
    norm_plus_one = True
    softcaps = MappingProxyType({"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0})
    gguf_architecture = "gemma2"
    gguf = SANDWICH_NAMES
    gguf_windowed = True
    pattern = 2
    largest = 46

    def layers(self, config: Config) -> tuple[Layer, ...]:
        return llama_layers(config, norms=SANDWICH, activation="gelu")

    def layer_types(self, f: Fields, layers: int) -> list[str] | None:
        pattern = f.integer("sliding_window_pattern", 1, 1024, self.pattern)
        return ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(layers)]

    def windows(self, f: Fields, layer_types: list[str] | None, layers: int) -> Windows:
        return by_type(sliding_window(f), layer_types)

    def options(self, f: Fields, head_dim: int, layers: int) -> dict[str, Any]:
        return {
            "attention_scale": 1 / math.sqrt(f.number("query_pre_attn_scalar", 1e-3, 1e6, 256)),
            "embedding_scale": math.sqrt(f.size("hidden_size", default=self.defaults.sizes.get("hidden_size"))),
            **self._softcaps(f),
        }

    def _softcaps(self, f: Fields) -> dict[str, float]:
        """null: none; a key that is not there: the class's own."""
        found = {}
        for key, field in _SOFTCAPS.items():
            default = self.softcaps.get(key, 0.0) if f.absent(key) else 0.0
            found[field] = f.number(key, 0.0, 1e6, default)
        return found

    def gguf_options(self, f: Fields, head_dim: int, layers: int) -> dict[str, Any]:
        hidden, heads = f.size("hidden_size", "embedding_length"), f.size("num_attention_heads", "attention.head_count")
        return {
            "layer_windows": gguf_windows(f, self.pattern, layers, 4096),
            "attention_scale": 1 / math.sqrt(hidden / heads if layers == self.largest else head_dim),
            "embedding_scale": math.sqrt(hidden),
            **self._softcaps(f),
        }

    def gguf_values(self, config: Config) -> dict[str, Any]:
        windows = [window for window in config.layer_windows if window is not None]
        found: dict[str, Any] = {"attention.sliding_window": max(windows, default=0)}
        for key, field in _SOFTCAPS.items():
            # One that is not written is llama.cpp's default for the architecture, so 0 is.
            if getattr(config, field) or key in self.softcaps:
                found[key] = float(getattr(config, field))
        return found
