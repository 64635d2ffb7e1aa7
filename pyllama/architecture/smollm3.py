"""SmolLM3: Llama's block; every fourth layer rotates nothing."""

from __future__ import annotations

from typing import Any

from pyllama.architecture.config import Windows
from pyllama.architecture.family import Defaults, Family
from pyllama.architecture.fields import Fields
from pyllama.architecture.sliding import by_type, sliding_window

_INTERVAL = 4


class SmolLM3(Family):
    model_type = "smollm3"
    architecture = "SmolLM3ForCausalLM"
    defaults = Defaults(max_position_embeddings=32768, num_key_value_heads=4, rope_theta=2e6, tie_word_embeddings=True)
    attention_bias, mlp_bias = False, True
    gguf_architecture = "smollm3"
    gguf_interleaved = True  # llama.cpp's converter permutes the rows of q and k, as for Llama
    gguf_factors = True

    def windows(self, f: Fields, layer_types: list[str] | None, layers: int) -> Windows:
        window = sliding_window(f, None) if f.boolean("use_sliding_window", False) else None
        if window is None:
            return (None,) * layers
        unrotated = self._unrotated(f, layers)
        if layer_types is None:
            return tuple(window if i in unrotated else None for i in range(layers))
        return by_type(window, layer_types)

    def _unrotated(self, f: Fields, layers: int) -> tuple[int, ...]:
        """In `no_rope_layers` 1 stands for a layer that rotates."""
        rotating = f.get("no_rope_layers")
        if rotating is None:
            interval = f.integer("no_rope_layer_interval", 1, 1024, _INTERVAL)
            return tuple(i for i in range(layers) if (i + 1) % interval == 0)
        if not isinstance(rotating, list) or len(rotating) < layers or any(one not in (0, 1) for one in rotating):
            raise f.fail("no_rope_layers", f"a list of 0 and 1 for {layers} layers")
        return tuple(i for i in range(layers) if not rotating[i])

    def options(self, f: Fields, head_dim: int, layers: int) -> dict[str, Any]:
        return {"unrotated_layers": self._unrotated(f, layers)}

    def gguf_options(self, f: Fields, head_dim: int, layers: int) -> dict[str, Any]:
        # There is no word for it: llama.cpp has every fourth, as all published models do.
        return {"unrotated_layers": tuple(range(_INTERVAL - 1, layers, _INTERVAL))}
