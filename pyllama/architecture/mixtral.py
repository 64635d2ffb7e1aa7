"""Mixtral: Mistral's block with experts in place of its feed-forward block."""

from __future__ import annotations

from typing import Any

from pyllama.architecture.config import Config, Mixture
from pyllama.architecture.experts import gguf_mixture, mixture_in_every_layer, stacks
from pyllama.architecture.family import GGUF_EXPERT_NAMES, Defaults, Family
from pyllama.architecture.fields import Fields
from pyllama.architecture.names import Names
from pyllama.architecture.sliding import in_all, sliding_window


class Mixtral(Family):
    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    defaults = Defaults(max_position_embeddings=131072, num_key_value_heads=8, head_dim=None)
    has_experts = True
    huggingface = Names(
        "model.layers.",
        inner={
            "block_sparse_moe.gate": "mlp.gate",
            "block_sparse_moe.experts.{}.w1": "mlp.experts.{}.gate_proj",
            "block_sparse_moe.experts.{}.w2": "mlp.experts.{}.down_proj",
            "block_sparse_moe.experts.{}.w3": "mlp.experts.{}.up_proj",
        },
        stacks=stacks("mlp.experts"),
    )
    gguf_architecture = "llama"  # with experts; llama.cpp's converter permutes the rows of q and k there
    gguf = GGUF_EXPERT_NAMES
    gguf_interleaved = True
    gguf_windowed = True
    gguf_factors = True

    def windows(self, f: Fields, layer_types: list[str] | None, layers: int) -> tuple[int | None, ...]:
        window = sliding_window(f) if f.has("sliding_window") else None
        return in_all(window, f, layer_types, layers, self.model_type)

    def mixture(self, f: Fields, layers: int) -> Mixture:
        return mixture_in_every_layer(f, layers)

    def gguf_mixture(self, f: Fields, layers: int) -> Mixture:
        return gguf_mixture(f, layers, f.size("intermediate_size", "feed_forward_length"))

    def gguf_values(self, config: Config) -> dict[str, Any]:
        return {"expert_feed_forward_length": None}  # one width for both kinds of models
