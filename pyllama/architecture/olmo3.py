"""OLMo 3: OLMo 2's block with a window in three of four layers, where rotary frequencies are never scaled."""

from __future__ import annotations

from pyllama.architecture.config import Windows
from pyllama.architecture.family import Defaults
from pyllama.architecture.fields import Fields
from pyllama.architecture.olmo2 import OLMO3_PATTERN, Olmo2
from pyllama.architecture.sliding import by_type, sliding_window


class Olmo3(Olmo2):
    """GGUF files have OLMo 2's architecture, with a window."""

    model_type = "olmo3"
    architecture = "Olmo3ForCausalLM"
    defaults = Defaults(max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=5e5, sliding_rope_theta=5e5)
    sliding_theta = "rope_theta"
    gguf_architecture = None
    gguf_as = "olmo2"

    def layer_types(self, f: Fields, layers: int) -> list[str] | None:
        return ["sliding_attention" if (i + 1) % OLMO3_PATTERN else "full_attention" for i in range(layers)]

    def windows(self, f: Fields, layer_types: list[str] | None, layers: int) -> Windows:
        return by_type(sliding_window(f), layer_types)
