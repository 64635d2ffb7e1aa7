"""gpt-oss 20b and 120b: experts with biases and a clamped activation, windows in every other layer, sinks."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

from pyllama.architecture.config import MAX_POSITIONS, Config, Mixture
from pyllama.architecture.experts import gguf_mixture, mixture_in_every_layer
from pyllama.architecture.family import GGUF_EXPERT_NAMES, Defaults, Family
from pyllama.architecture.fields import Fields
from pyllama.architecture.layer import Attention, Experts, Layer, llama_layers
from pyllama.architecture.names import Names
from pyllama.architecture.sliding import by_type

_ALPHA = 1.702  # of the activation, in all models so far
_LIMIT = 7.0


class GptOss(Family):
    model_type = "gpt_oss"
    architecture = "GptOssForCausalLM"
    defaults = Defaults(
        max_position_embeddings=131072, num_key_value_heads=8, head_dim=64, rms_norm_eps=1e-5, rope_theta=150000.0
    )
    attention_bias = True
    has_experts = True
    quantizations = frozenset({"mxfp4"})
    experts_apart = MappingProxyType({"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)})
    huggingface = Names(
        "model.layers.",
        inner={"mlp.router": "mlp.gate"},
        exact={"self_attn.sinks": "self_attn.sinks"},
    )
    gguf_architecture = "gpt-oss"
    gguf_truncated = False  # as config.json has it; llama.cpp rounds
    gguf_windowed = True
    gguf = GGUF_EXPERT_NAMES.within(
        {"post_attention_norm": "post_attention_layernorm", "attn_sinks": "self_attn.sinks"}, without=("ffn_norm",)
    )

    def layers(self, config: Config) -> tuple[Layer, ...]:
        return tuple(_with_biases(layer, config) for layer in llama_layers(config))

    def windows(self, f: Fields, layer_types: list[str] | None, layers: int) -> tuple[int | None, ...]:
        window = f.integer("sliding_window", 1, MAX_POSITIONS, 128)
        return by_type(window, layer_types or self.layer_types(f, layers))

    def layer_types(self, f: Fields, layers: int) -> list[str]:
        return ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]

    def mixture(self, f: Fields, layers: int) -> Mixture:
        if f.number("swiglu_alpha", 0.0, 100.0, _ALPHA) != _ALPHA:
            raise f.unsupported("swiglu_alpha", f"{f.get('swiglu_alpha')} (expected {_ALPHA})")
        found = mixture_in_every_layer(f, layers, 128, 4)
        return found._replace(swiglu_limit=f.number("swiglu_limit", 1e-3, 1e6, _LIMIT))

    def gguf_mixture(self, f: Fields, layers: int) -> Mixture:
        return gguf_mixture(f, layers)._replace(swiglu_limit=_LIMIT)

    def gguf_options(self, f: Fields, head_dim: int, layers: int) -> dict[str, Any]:
        window = f.integer("attention.sliding_window", 1, MAX_POSITIONS, 128)
        return {"layer_windows": tuple(None if i % 2 else window for i in range(layers))}


def _with_biases(layer: Layer, config: Config) -> Layer:
    mlp, mixer = layer.mlp, layer.mixer
    assert (
        isinstance(mlp, Experts) and isinstance(mixer, Attention) and config.mixture is not None
    )  # every layer has some
    router, gate, up, down = (of._replace(bias=True) for of in (mlp.router, mlp.gate, mlp.up, mlp.down))
    experts = replace(mlp, router=router, gate=gate, up=up, down=down, limit=config.mixture.swiglu_limit, alpha=_ALPHA)
    return layer._replace(mixer=mixer._replace(sinks="self_attn.sinks.weight"), mlp=experts)
