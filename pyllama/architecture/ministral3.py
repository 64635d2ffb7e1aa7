"""Ministral 3 and Mistral's text models of its kind: Mistral's block, whose queries grow with their position."""

from __future__ import annotations

from typing import Any

from pyllama.architecture.config import Config, QueryGrowth, Windows
from pyllama.architecture.family import Defaults
from pyllama.architecture.fields import Fields
from pyllama.architecture.mistral import Mistral

# What the class takes where config.json has no rope_parameters.
_ROPE = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip


class Ministral3(Mistral):
    model_type = "ministral3"
    architecture = "Ministral3ForCausalLM"
    defaults = Defaults(
        max_position_embeddings=262144, num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-5, rope=_ROPE
    )
    gguf_as = None
    gguf_architecture = "mistral3"
    gguf_interleaved = True
    read_here = frozenset({"attention.temperature_scale", "rope.scaling.yarn_log_multiplier"})

    def windows(self, f: Fields, layer_types: list[str] | None, layers: int) -> Windows:
        if f.has("sliding_window"):
            return super().windows(f, layer_types, layers)
        return (None,) * layers

    def options(self, f: Fields, head_dim: int, layers: int) -> dict[str, Any]:
        r = Fields(f.get("rope_parameters") or f.get("rope_scaling") or _ROPE, "config.json, rope_parameters")
        if not r.has("llama_4_scaling_beta"):
            return {}
        return _growth(
            r.number("llama_4_scaling_beta", 0.0, 1e3),
            r.size("max_position_embeddings", "original_max_position_embeddings"),
        )

    def gguf_options(self, f: Fields, head_dim: int, layers: int) -> dict[str, Any]:
        beta = f.number("attention.temperature_scale", 0.0, 1e3, 0.0)
        if not beta:
            return {}
        # llama.cpp has no other word for the length of a step.
        return _growth(beta, f.size("max_position_embeddings", "rope.scaling.original_context_length"))

    def gguf_values(self, config: Config) -> dict[str, Any]:
        growth = config.query_growth
        return {"attention.temperature_scale": growth.beta} if growth else {}


def _growth(beta: float, original: int) -> dict[str, Any]:
    return {"query_growth": QueryGrowth(beta, original) if beta else None}
