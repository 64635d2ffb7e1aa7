"""Qwen3.5 and later, dense: the gated delta rule in most layers, in the others attention whose result has a gate."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pyllama.architecture.config import Config, DeltaRule
from pyllama.architecture.family import GGUF_HEAD_NORMS, GGUF_NAMES, Defaults, Family
from pyllama.architecture.fields import Fields
from pyllama.architecture.layer import Attention, Convolution, GatedDelta, Layer, Linear, Mixer, Norm, llama_layers
from pyllama.architecture.names import Names

LINEAR = "linear_attention"
_INTERVAL = 4  # of that many layers the last has attention
_MAX_HEADS, _MAX_DIM, _MAX_WIDTH = 4096, 1024, 16
_LINEAR = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "conv1d", "norm", "out_proj")
_GGUF_LINEAR = ("attn_qkv", "attn_gate", "ssm_beta", "ssm_alpha", "ssm_conv1d", "ssm_norm", "ssm_out")


class Qwen35(Family):
    """GGUF files have value heads in another order (DeltaRule.tiled), norms with their 1 added, and -exp(A_log)."""

    model_type = "qwen3_5_text"
    architecture = "Qwen3_5ForCausalLM"
    wrappers = MappingProxyType({"qwen3_5": "Qwen3_5ForConditionalGeneration"})
    defaults = Defaults(
        max_position_embeddings=32768,
        num_key_value_heads=4,
        head_dim=256,
        sizes={
            "vocab_size": 248320,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
        },
    )
    attention_bias = False
    read_here = frozenset({"partial_rotary_factor"})
    layer_kinds = frozenset({"full_attention", LINEAR})
    norm_plus_one = True
    huggingface = Names(
        "model.layers.",
        inner={f"linear_attn.{name}": f"linear_attn.{name}" for name in _LINEAR},
        exact={"linear_attn.A_log": "linear_attn.a_log", "linear_attn.dt_bias": "linear_attn.dt"},
    )
    gguf_architecture = "qwen35"
    gguf = GGUF_NAMES.within(
        {
            "post_attention_norm": "post_attention_layernorm",
            **GGUF_HEAD_NORMS,
            **{stored: f"linear_attn.{name}" for stored, name in zip(_GGUF_LINEAR, _LINEAR, strict=True)},
        },
        without=("ffn_norm",),
    )._replace(exact={"ssm_a": "linear_attn.a_log", "ssm_dt.bias": "linear_attn.dt"})

    def plain(self, source: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"partial_rotary_factor": 0.25, **source}

    def refuse(self, f: Fields) -> None:
        super().refuse(f)
        if not f.boolean("attn_output_gate", True):
            raise f.unsupported("attn_output_gate", "false")

    def layers(self, config: Config) -> tuple[Layer, ...]:
        of = config.delta_rule
        linear = of.layers if of else (False,) * config.num_hidden_layers
        mixer = _gated_delta(config, of) if of else None
        return tuple(
            layer._replace(mixer=mixer if mixer and is_linear else _gated(layer.mixer))
            for layer, is_linear in zip(llama_layers(config, head_norms=True), linear, strict=True)
        )

    def layer_types(self, f: Fields, layers: int) -> list[str] | None:
        interval = f.integer("full_attention_interval", 1, 1024, _INTERVAL)
        return [LINEAR if (i + 1) % interval else "full_attention" for i in range(layers)]

    def state_options(self, f: Fields, kinds: list[str]) -> dict[str, Any]:
        if LINEAR not in kinds:
            return {}
        return {
            "delta_rule": DeltaRule(
                key_heads=f.integer("linear_num_key_heads", 1, _MAX_HEADS, 16),
                value_heads=f.integer("linear_num_value_heads", 1, _MAX_HEADS, 32),
                key_dim=f.integer("linear_key_head_dim", 1, _MAX_DIM, 128),
                value_dim=f.integer("linear_value_head_dim", 1, _MAX_DIM, 128),
                width=f.integer("linear_conv_kernel_dim", 2, _MAX_WIDTH, 4),
                layers=tuple(kind == LINEAR for kind in kinds),
            )
        }

    def gguf_options(self, f: Fields, head_dim: int, layers: int) -> dict[str, Any]:
        linear = tuple(kind == LINEAR for kind in self.layer_types(f, layers) or ())
        if not any(linear):
            return {}
        heads = f.integer("ssm.time_step_rank", 1, _MAX_HEADS)
        inner = f.integer("ssm.inner_size", 1, _MAX_HEADS * _MAX_DIM)
        if inner % heads or inner // heads > _MAX_DIM:
            raise f.fail("ssm.inner_size", f"a multiple of ssm.time_step_rank {heads}, at most {_MAX_DIM} times it")
        return {
            "delta_rule": DeltaRule(
                key_heads=f.integer("ssm.group_count", 1, _MAX_HEADS),
                value_heads=heads,
                key_dim=f.integer("ssm.state_size", 1, _MAX_DIM),
                value_dim=inner // heads,
                width=f.integer("ssm.conv_kernel", 2, _MAX_WIDTH),
                layers=linear,
                tiled=True,
            )
        }

    def gguf_values(self, config: Config) -> dict[str, Any]:
        pairs = (config.rotary_dim or config.head_dim) // 2
        # Which positions of an image turn which pairs; of text all positions are one.
        values: dict[str, Any] = {"rope.dimension_sections": [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3, 0]}
        of = config.delta_rule
        if of is None:
            return values | {"full_attention_interval": 1}
        interval = next((i + 1 for i, linear in enumerate(of.layers) if not linear), len(of.layers) + 1)
        return values | {
            "full_attention_interval": interval,
            "ssm.conv_kernel": of.width,
            "ssm.state_size": of.key_dim,
            "ssm.group_count": of.key_heads,
            "ssm.time_step_rank": of.value_heads,
            "ssm.inner_size": of.value_heads * of.value_dim,
        }


def _gated(mixer: Mixer) -> Attention:
    """Attention whose q_proj makes a gate beside each head's query."""
    assert isinstance(mixer, Attention)  # as llama_layers() has it
    return mixer._replace(q=mixer.q._replace(rows=2 * mixer.q.rows), gated=True)


def _gated_delta(config: Config, of: DeltaRule) -> GatedDelta:
    hidden = config.hidden_size
    keys, values = of.key_heads * of.key_dim, of.value_heads * of.value_dim
    return GatedDelta(
        key_heads=of.key_heads,
        value_heads=of.value_heads,
        key_dim=of.key_dim,
        value_dim=of.value_dim,
        qkv=Linear("linear_attn.in_proj_qkv", 2 * keys + values, hidden),
        z=Linear("linear_attn.in_proj_z", values, hidden),
        b=Linear("linear_attn.in_proj_b", of.value_heads, hidden),
        a=Linear("linear_attn.in_proj_a", of.value_heads, hidden),
        conv=Convolution("linear_attn.conv1d", 2 * keys + values, of.width),
        rate="linear_attn.a_log",
        rate_log=not of.tiled,
        dt="linear_attn.dt",
        norm=Norm("linear_attn.norm", of.value_dim),
        out=Linear("linear_attn.out_proj", hidden, values),
        tiled=of.tiled,
    )
