"""Granite 3 and 4, dense: Llama's block with multipliers of embeddings, scores, residuals and logits."""

from __future__ import annotations

from typing import Any, ClassVar

from pyllama.architecture.config import Config
from pyllama.architecture.family import Defaults, Family
from pyllama.architecture.fields import Fields

#: Config's field -> config.json's key and GGUF's.
_SCALES = {
    "embedding_scale": ("embedding_multiplier", "embedding_scale"),
    "attention_scale": ("attention_multiplier", "attention.scale"),
    "residual_scale": ("residual_multiplier", "residual_scale"),
    "logits_scale": ("logits_scaling", "logit_scale"),
}
_LOW, _HIGH = 1e-6, 1e6
#: In GGUF, whether anything is rotated: llama.cpp takes this key for that switch in Granite's architectures.
_ROTATED = "rope.scaling.finetuned"


class Granite(Family):
    model_type = "granite"
    architecture = "GraniteForCausalLM"
    defaults = Defaults(max_position_embeddings=2048)
    attention_bias = False
    mlp_bias: ClassVar[bool] = True
    read_here = frozenset(key for keys in _SCALES.values() for key in keys)
    gguf_architecture: ClassVar[str | None] = "granite"
    gguf_interleaved = True  # llama.cpp's converter permutes the rows of q and k, as for Llama
    gguf_factors = True

    def options(self, f: Fields, head_dim: int, layers: int) -> dict[str, Any]:
        return {field: f.number(key, _LOW, _HIGH, 1.0) for field, (key, _) in _SCALES.items()}

    def gguf_options(self, f: Fields, head_dim: int, layers: int) -> dict[str, Any]:
        found = {field: f.number(key, 0.0, _HIGH, 0.0) for field, (_, key) in _SCALES.items()}
        scale = found.pop("attention_scale") or None  # 0 stands for head_dim ** -0.5
        unrotated = () if f.boolean(_ROTATED, True) else tuple(range(layers))
        scales = {field: value or 1.0 for field, value in found.items()}
        return {"attention_scale": scale, "unrotated_layers": unrotated, **scales}

    def gguf_values(self, config: Config) -> dict[str, Any]:
        found: dict[str, Any] = {key: float(getattr(config, field)) for field, (_, key) in _SCALES.items()}
        if config.unrotated_layers:
            found[_ROTATED] = False
        return found
