"""LFM2's and 2.5's mixtures (8B-A1B, 24B-A2B): LFM2's block with experts in place of most feed-forward blocks.

An expert is chosen by the sigmoid of its logit and a number of its own that keeps all of them busy, and weighed by the
former alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllama.architecture.config import Config, Mixture
from pyllama.architecture.experts import SIGMOID, gguf_mixture, mixture_in_every_layer, stacks
from pyllama.architecture.family import GGUF_EXPERT_NAMES
from pyllama.architecture.fields import Fields
from pyllama.architecture.lfm2 import Lfm2

_EXPERT = "feed_forward.experts.{}"
_MOST = 1e6  # of routed_scaling_factor


class Lfm2Moe(Lfm2):
    model_type = "lfm2_moe"
    architecture = "Lfm2MoeForCausalLM"
    defaults = Lfm2.defaults._replace(
        sizes={**Lfm2.defaults.sizes, "hidden_size": 2048, "intermediate_size": 7168},
    )
    has_experts = True
    # The hub's files have an expert a tensor; the class in transformers 5 holds them in one.
    huggingface = Lfm2.huggingface.within(
        {
            "feed_forward.gate": "mlp.gate",
            f"{_EXPERT}.w1": "mlp.experts.{}.gate_proj",
            f"{_EXPERT}.w3": "mlp.experts.{}.up_proj",
            f"{_EXPERT}.w2": "mlp.experts.{}.down_proj",
        }
    )._replace(stacks=stacks("feed_forward.experts"), exact={"feed_forward.expert_bias": "mlp.expert_bias"})
    gguf_architecture = "lfm2moe"
    gguf = Lfm2.gguf.within({"ffn_gate_inp": "mlp.gate"})._replace(
        stacks=GGUF_EXPERT_NAMES.stacks, exact={"exp_probs_b.bias": "mlp.expert_bias"}
    )

    def plain(self, source: Mapping[str, Any]) -> Mapping[str, Any]:
        return super().plain({**source, "block_auto_adjust_ff_dim": False})

    def mixture(self, f: Fields, layers: int) -> Mixture:
        dense = f.integer("num_dense_layers", 0, layers - 1, min(2, layers - 1))
        found = mixture_in_every_layer(f, layers, 32, 4, f.size("moe_intermediate_size", default=1792))
        return found._replace(
            norm_topk_prob=f.boolean("norm_topk_prob", True),
            layers=tuple(i >= dense for i in range(layers)),
            sigmoid=True,
            expert_bias=f.boolean("use_expert_bias", True),
            routed_scaling_factor=f.number("routed_scaling_factor", 1e-6, _MOST, 1.0),
        )

    def gguf_mixture(self, f: Fields, layers: int) -> Mixture:
        dense = f.integer("leading_dense_block_count", 0, layers - 1, 0)
        found = gguf_mixture(f, layers, gating=SIGMOID, dense=dense)
        return found._replace(sigmoid=True, expert_bias=True)

    def gguf_values(self, config: Config) -> dict[str, Any]:
        dense = config.mixture.layers.index(True) if config.mixture else 0
        return super().gguf_values(config) | {"expert_gating_func": SIGMOID, "leading_dense_block_count": dense}
