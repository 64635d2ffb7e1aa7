"""Granite 3's mixtures (1B-A400M, 3B-A800M): Granite's block with experts in place of its feed-forward block."""

from __future__ import annotations

from pyllama.architecture.config import Mixture
from pyllama.architecture.experts import DOWN, GATE_UP, gguf_mixture, mixture_in_every_layer, stacks
from pyllama.architecture.family import GGUF_EXPERT_NAMES
from pyllama.architecture.fields import Fields
from pyllama.architecture.granite import Granite
from pyllama.architecture.names import Names


class GraniteMoe(Granite):
    model_type = "granitemoe"
    architecture = "GraniteMoeForCausalLM"
    mlp_bias = False
    has_experts = True
    # The hub's files have the first names of each; the class in transformers 5 holds the second.
    huggingface = Names(
        "model.layers.",
        inner={"block_sparse_moe.router.layer": "mlp.gate", "block_sparse_moe.router": "mlp.gate"},
        stacks={
            "block_sparse_moe.input_linear": GATE_UP,
            "block_sparse_moe.output_linear": DOWN,
            **stacks("block_sparse_moe.experts"),
        },
    )
    gguf_architecture = "granitemoe"
    gguf = GGUF_EXPERT_NAMES

    def mixture(self, f: Fields, layers: int) -> Mixture:
        return mixture_in_every_layer(f, layers)

    def gguf_mixture(self, f: Fields, layers: int) -> Mixture:
        if f.get("expert_shared_feed_forward_length"):
            raise f.unsupported("expert_shared_feed_forward_length", "an expert that all tokens go to")
        return gguf_mixture(f, layers, f.size("intermediate_size", "feed_forward_length"))
