"""Qwen3's mixtures (30B-A3B, 235B-A22B): Qwen3's block with experts in place of its feed-forward block."""

from __future__ import annotations

from pyllama.architecture.config import MAX_POSITIONS, Mixture, Windows
from pyllama.architecture.experts import gguf_mixture, mixture_in_every_layer, stacks
from pyllama.architecture.family import GGUF_EXPERT_NAMES, GGUF_HEAD_NORMS, Defaults
from pyllama.architecture.fields import Fields
from pyllama.architecture.names import Names
from pyllama.architecture.qwen3 import Qwen3
from pyllama.architecture.sliding import in_all, sliding_window


class Qwen3Moe(Qwen3):
    model_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    defaults = Defaults(max_position_embeddings=32768, num_key_value_heads=4, head_dim=None)
    has_experts = True
    # The hub's files have an expert a tensor; the class in transformers 5 holds them in one.
    huggingface = Names("model.layers.", stacks=stacks("mlp.experts"))
    gguf_architecture = "qwen3moe"
    gguf = GGUF_EXPERT_NAMES.within(GGUF_HEAD_NORMS)

    def windows(self, f: Fields, layer_types: list[str] | None, layers: int) -> Windows:
        window = sliding_window(f) if f.boolean("use_sliding_window", False) else None
        return in_all(window, f, layer_types, layers, self.model_type)

    def mixture(self, f: Fields, layers: int) -> Mixture:
        step = f.integer("decoder_sparse_step", 1, MAX_POSITIONS, 1)
        dense = f.get("mlp_only_layers") or []
        if not isinstance(dense, list) or len(dense) > layers or any(type(i) is not int for i in dense):
            raise f.fail("mlp_only_layers", "a list of numbers of layers")
        found = mixture_in_every_layer(f, layers, 128, 8, f.size("moe_intermediate_size", default=768))
        return found._replace(
            norm_topk_prob=f.boolean("norm_topk_prob", False),
            layers=tuple(i not in dense and (i + 1) % step == 0 for i in range(layers)),
        )

    def gguf_mixture(self, f: Fields, layers: int) -> Mixture:
        return gguf_mixture(f, layers)
