"""LFM2 and 2.5, dense: short convolutions in most layers, in the others attention with a norm of each head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllama.architecture.config import MAX_SIZE, Config, ShortConvs
from pyllama.architecture.family import GGUF_HEAD_NORMS, GGUF_NAMES, Defaults, Family
from pyllama.architecture.fields import Fields
from pyllama.architecture.layer import Convolution, Layer, Linear, ShortConv, llama_layers
from pyllama.architecture.names import Names

MIN_WIDTH, MAX_WIDTH = 2, 16  # tokens that a convolution reaches over; its kernel has room for as many
CONV = "conv"
_CONVOLUTION = ("conv.in_proj", "conv.conv", "conv.out_proj")


class Lfm2(Family):
    """A convolution block is out_proj(C * conv(B * x)) with B, C, x = in_proj(h)."""

    model_type = "lfm2"
    architecture = "Lfm2ForCausalLM"
    defaults = Defaults(
        max_position_embeddings=128_000,
        num_key_value_heads=8,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        tie_word_embeddings=True,
        sizes={
            "vocab_size": 65536,
            "hidden_size": 2560,
            "intermediate_size": 12288,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        },
    )
    layer_kinds = frozenset({"full_attention", CONV})
    huggingface = Names(
        "model.layers.",
        {"model.embedding_norm.weight": "model.norm.weight"},
        {
            "operator_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "self_attn.q_layernorm": "self_attn.q_norm",
            "self_attn.k_layernorm": "self_attn.k_norm",
            "self_attn.out_proj": "self_attn.o_proj",
            "feed_forward.w1": "mlp.gate_proj",
            "feed_forward.w3": "mlp.up_proj",
            "feed_forward.w2": "mlp.down_proj",
            **{name: name for name in _CONVOLUTION},
        },
    )
    gguf_architecture = "lfm2"
    gguf = GGUF_NAMES.within(
        {
            **GGUF_HEAD_NORMS,
            **{f"short{name}": name for name in _CONVOLUTION if name != "conv.conv"},
            "shortconv.conv": "conv.conv",
        }
    )._replace(
        # Where llama.cpp's converter puts the last norm; later files have it under the usual name.
        outer={"token_embd_norm.weight": "model.norm.weight", **GGUF_NAMES.outer}
    )

    def plain(self, source: Mapping[str, Any]) -> Mapping[str, Any]:
        f = Fields(source, "config.json")
        said = dict(source)
        for ours, theirs in (
            ("rms_norm_eps", "norm_eps"),
            ("intermediate_size", "block_ff_dim"),
            ("tie_word_embeddings", "tie_embedding"),
        ):
            if f.has(theirs):
                said[ours] = source[theirs]
        if f.boolean("block_auto_adjust_ff_dim", True):
            said["intermediate_size"] = _adjusted(Fields(said, "config.json"), self.defaults.sizes["intermediate_size"])
        return said

    def layers(self, config: Config) -> tuple[Layer, ...]:
        convs = config.short_convs
        layers = llama_layers(config, head_norms=True)
        if convs is None:
            return layers
        hidden = config.hidden_size
        mixer = ShortConv(
            Linear("conv.in_proj", 3 * hidden, hidden, convs.bias),
            Convolution("conv.conv", hidden, convs.width, convs.bias),
            Linear("conv.out_proj", hidden, hidden, convs.bias),
        )
        return tuple(layer._replace(mixer=mixer) if conv else layer for layer, conv in zip(layers, convs.layers))

    def layer_types(self, f: Fields, layers: int) -> list[str] | None:
        full = f.get("full_attn_idxs")
        if full is None:
            return ["full_attention"] * layers
        if not isinstance(full, list) or len(full) > layers or any(type(i) is not int for i in full):
            raise f.fail("full_attn_idxs", "a list of numbers of layers")
        return ["full_attention" if i in full else CONV for i in range(layers)]

    def state_options(self, f: Fields, kinds: list[str]) -> dict[str, Any]:
        if CONV not in kinds:
            return {}
        width = f.integer("conv_L_cache", MIN_WIDTH, MAX_WIDTH, 3)
        return {"short_convs": ShortConvs(width, f.boolean("conv_bias", False), tuple(k == CONV for k in kinds))}

    def gguf_options(self, f: Fields, head_dim: int, layers: int) -> dict[str, Any]:
        heads = f.get("attention.head_count_kv")
        if not isinstance(heads, tuple):
            return {}
        if len(heads) != layers:
            raise f.fail("attention.head_count_kv", f"a list for {layers} layers")
        width = f.integer("shortconv.l_cache", MIN_WIDTH, MAX_WIDTH)
        return {"short_convs": ShortConvs(width, False, tuple(count == 0 for count in heads))}

    def gguf_values(self, config: Config) -> dict[str, Any]:
        convs = config.short_convs
        if convs is None:
            return {"shortconv.l_cache": 3}
        kv_heads = [0 if conv else config.num_key_value_heads for conv in convs.layers]
        return {"attention.head_count_kv": kv_heads, "shortconv.l_cache": convs.width}


def _adjusted(f: Fields, default: int) -> int:
    """The width inside the feed-forward block, of which config.json has what it is to be derived from."""
    width = int(2 * f.integer("intermediate_size", 1, MAX_SIZE, default) / 3)
    if f.get("block_ffn_dim_multiplier") is None and not f.absent("block_ffn_dim_multiplier"):
        return width
    of = f.integer("block_multiple_of", 1, MAX_SIZE, 256)
    width = int(f.number("block_ffn_dim_multiplier", 1e-3, 1e3, 1.0) * width)
    return of * ((width + of - 1) // of)
