"""Qwen3's mixtures (30B-A3B, 235B-A22B): Qwen3's block with experts in place of its feed-forward block."""

from __future__ import annotations

from pyllama.architecture.config import MAX_POSITIONS, Config, Mixture
from pyllama.architecture.experts import gguf_mixture, num_experts
from pyllama.architecture.family import GGUF_EXPERT_NAMES, Biases, Defaults, Family
from pyllama.architecture.fields import Fields
from pyllama.architecture.layer import Layer, llama_layers
from pyllama.architecture.names import Names
from pyllama.architecture.sliding import sliding_window


class Qwen3Moe(Family):
    model_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    defaults = Defaults(max_position_embeddings=32768, num_key_value_heads=4, head_dim=None)
    has_experts = True
    # The hub's files have an expert a tensor; the class in transformers 5 holds them in one.
    huggingface = Names(
        "model.layers.",
        stacks={
            "mlp.experts.gate_up_proj": ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj"),
            "mlp.experts.down_proj": "mlp.experts.{}.down_proj",
        },
    )
    gguf_architecture = "qwen3moe"
    gguf = Names(
        GGUF_EXPERT_NAMES.layers,
        GGUF_EXPERT_NAMES.outer,
        {**GGUF_EXPERT_NAMES.inner, "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"},
        GGUF_EXPERT_NAMES.stacks,
    )

    def layers(self, config: Config) -> tuple[Layer, ...]:
        return llama_layers(config, head_norms=True)

    def biases(self, f: Fields) -> Biases:
        attention = f.boolean("attention_bias", False)
        return Biases(attention, attention)

    def windows(self, f: Fields, layer_types: list[str] | None, layers: int) -> tuple[int | None, ...]:
        window = sliding_window(f) if f.boolean("use_sliding_window", False) else None
        if layer_types and set(layer_types) != {"sliding_attention" if window else "full_attention"}:
            # transformers has one mask for all layers in this class.
            raise f.unsupported("layer_types", f"a list against sliding_window {window} in a {self.model_type} model")
        return (window,) * layers

    def mixture(self, f: Fields, layers: int) -> Mixture:
        step = f.integer("decoder_sparse_step", 1, MAX_POSITIONS, 1)
        dense = f.get("mlp_only_layers") or []
        if not isinstance(dense, list) or len(dense) > layers or any(type(i) is not int for i in dense):
            raise f.fail("mlp_only_layers", "a list of numbers of layers")
        return Mixture(
            num_experts=num_experts(f, 128),
            num_experts_per_tok=f.size("num_experts_per_tok", default=8),
            moe_intermediate_size=f.size("moe_intermediate_size", default=768),
            norm_topk_prob=f.boolean("norm_topk_prob", False),
            layers=tuple(i not in dense and (i + 1) % step == 0 for i in range(layers)),
        )

    def gguf_mixture(self, f: Fields, layers: int) -> Mixture:
        return gguf_mixture(f, layers, f.size("moe_intermediate_size", "expert_feed_forward_length"))
