"""Gemma 4, the text models: E2B, E4B, 31B, 26B-A4B and 12B ("unified"), whose layers are of two kinds.

Layers that see everything have larger heads than those with a window, or fewer of them for keys and values, and may
take as a value what k_proj makes. The last layers may have no keys and values of their own. In the small models each
token has an embedding for each layer; the mixture has experts beside each layer's mlp.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

from pyllama.architecture.config import Config, FullAttention, Mixture, Windows
from pyllama.architecture.experts import GATE_UP, gguf_mixture, stacks
from pyllama.architecture.family import GGUF_EXPERT_NAMES, GGUF_HEAD_NORMS, GGUF_NAMES, Defaults, Family
from pyllama.architecture.fields import Fields
from pyllama.architecture.gemma2 import SANDWICH_NAMES
from pyllama.architecture.layer import (
    SANDWICH,
    Attention,
    Beside,
    Layer,
    Linear,
    Norm,
    PerLayerInput,
    Rope,
    experts_of,
    layer_name,
    llama_layers,
    main_rope,
    plain_mlp,
)
from pyllama.architecture.names import Names
from pyllama.architecture.sliding import by_type, gguf_windows, sliding_window

_PATTERN = 6  # the last of so many layers sees everything, where a config does not list them
_GLOBAL_HEAD_DIM = 512


class Gemma4(Family):
    """All but 12B.

    per_layer  hidden_size_per_layer_input where config.json has nothing
    """

    model_type = "gemma4_text"
    architecture = "Gemma4ForCausalLM"
    wrappers = MappingProxyType({"gemma4": "Gemma4ForConditionalGeneration"})
    defaults = Defaults(
        max_position_embeddings=131072,
        num_key_value_heads=4,
        head_dim=256,
        rope_theta=1e6,
        tie_word_embeddings=True,
        rope={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        },
        sizes={
            "num_attention_heads": 8,
            "vocab_size": 262144,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 30,
        },
    )
    attention_bias = False
    activations = ("gelu_pytorch_tanh",)
    read_here = frozenset(
        {"final_logit_softcapping", "attention.sliding_window_pattern", "use_bidirectional_attention"}
    )
    rotary_scalings = ("proportional",)
    sliding_theta = "rope_local_base_freq"
    has_experts = True  # in one model, 26B-A4B; without enable_moe_block there are none
    huggingface = Names(
        "model.layers.",
        inner={
            "layer_scalar": "layer_scalar",
            "router.proj": "mlp.gate",
            "router.scale": "router.scale",
            "router.per_expert_scale": "router.per_expert_scale",
        },
        stacks=stacks("experts"),
    )
    gguf_architecture: ClassVar[str | None] = "gemma4"
    gguf_factors = True
    gguf_windowed = True
    gguf = SANDWICH_NAMES.within(
        {
            **GGUF_HEAD_NORMS,
            "inp_gate": "per_layer_input_gate",
            "proj": "per_layer_projection",
            "post_norm": "post_per_layer_input_norm",
            "layer_output_scale": "layer_scalar",
            "ffn_gate_inp": "mlp.gate",
            "ffn_gate_inp.scale": "router.scale",
            "ffn_down_exps.scale": "router.per_expert_scale",
            "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
            "post_ffw_norm_1": "post_feedforward_layernorm_1",
            "post_ffw_norm_2": "post_feedforward_layernorm_2",
        }
    )._replace(
        outer={
            **GGUF_NAMES.outer,
            "per_layer_token_embd.weight": "model.embed_tokens_per_layer.weight",
            "per_layer_model_proj.weight": "model.per_layer_model_projection.weight",
            "per_layer_proj_norm.weight": "model.per_layer_projection_norm.weight",
        },
        stacks={"ffn_gate_up_exps": GATE_UP, **GGUF_EXPERT_NAMES.stacks},
    )
    per_layer = 256
    window = 512

    def layers(self, config: Config) -> tuple[Layer, ...]:
        plain = llama_layers(replace(config, mixture=None), head_norms=True, norms=SANDWICH, activation="gelu")
        return tuple(_own(layer, number, config) for number, layer in enumerate(plain))

    def refuse(self, f: Fields) -> None:
        super().refuse(f)
        if f.text("use_bidirectional_attention") not in (None, "vision"):  # images see each other; text does not
            raise f.unsupported("use_bidirectional_attention", str(f.get("use_bidirectional_attention")))
        if self._size_per_layer(f):
            vocab = f.size("vocab_size", default=self.defaults.sizes["vocab_size"])
            if f.size("vocab_size", "vocab_size_per_layer_input", 262144) != vocab:
                raise f.fail("vocab_size_per_layer_input", f"vocab_size {vocab}")

    def mixture(self, f: Fields, layers: int) -> Mixture | None:
        if not f.boolean("enable_moe_block", False):
            return None
        return Mixture(
            num_experts=f.size("num_experts"),
            num_experts_per_tok=f.size("num_experts_per_tok", "top_k_experts"),
            moe_intermediate_size=f.size("moe_intermediate_size"),
            norm_topk_prob=True,
            layers=(True,) * layers,
        )

    def gguf_mixture(self, f: Fields, layers: int) -> Mixture | None:
        if f.get("expert_count") in (None, 0):
            return None
        return gguf_mixture(f, layers)

    def _size_per_layer(self, f: Fields) -> int:
        default = self.per_layer if f.absent("hidden_size_per_layer_input") else 0
        return f.size("hidden_size_per_layer_input", default=default)

    def layer_types(self, f: Fields, layers: int) -> list[str]:
        return ["sliding_attention" if (i + 1) % _PATTERN else "full_attention" for i in range(layers)]

    def windows(self, f: Fields, layer_types: list[str] | None, layers: int) -> Windows:
        window = sliding_window(f, self.window)
        kinds = [*(layer_types or self.layer_types(f, layers))]
        kinds[-1] = "full_attention"  # whatever is said
        return by_type(window, kinds)

    def full_head_dim(self, f: Fields) -> int:
        if f.has("per_layer_config"):
            return self._overrides(f).size("head_dim", default=f.size("head_dim", default=self.defaults.head_dim))
        return f.size("head_dim", "global_head_dim", _GLOBAL_HEAD_DIM)

    def _overrides(self, f: Fields) -> Fields:
        """What `per_layer_config`, in which transformers writes it, says of layers without a window."""
        layers = f.size("num_hidden_layers", default=self.defaults.sizes["num_hidden_layers"])
        given, kinds = f.get("per_layer_config"), f.get("layer_types")
        if not isinstance(given, Mapping):
            raise f.fail("per_layer_config", "an object")
        windows = self.windows(f, kinds if isinstance(kinds, list) else None, layers)
        expected = {i for i, window in enumerate(windows) if window is None}
        # Of ten layers and more, transformers writes 05 for 5.
        numbers = {int(key) if str(key).isdecimal() and len(str(key)) <= 4 else None for key in given}
        values = list(given.values())
        if numbers != expected or len(given) != len(expected) or any(one != values[0] for one in values):
            raise f.unsupported("per_layer_config", "other than one for all layers that see everything")
        one = Fields(values[0], f"{f.where}, per_layer_config")
        unknown = set(values[0]) - {"head_dim", "num_key_value_heads"}
        if unknown:
            raise one.unsupported(str(min(unknown))[:40], "a layer's own")
        return one

    def options(self, f: Fields, head_dim: int, layers: int) -> dict[str, Any]:
        heads = f.size("num_attention_heads", default=self.defaults.sizes["num_attention_heads"])
        kv_heads = f.size("num_key_value_heads", default=self.defaults.num_key_value_heads or heads)
        shared = f.boolean("attention_k_eq_v", False)
        if f.has("per_layer_config"):
            full_kv_heads = self._overrides(f).size("num_key_value_heads", default=kv_heads)
        elif shared and f.has("num_global_key_value_heads"):
            full_kv_heads = f.size("num_key_value_heads", "num_global_key_value_heads")
        else:
            full_kv_heads = kv_heads
        inner = f.size("intermediate_size", default=self.defaults.sizes["intermediate_size"])
        sharing = f.integer("num_kv_shared_layers", 0, layers - 1, 0)
        wide = sharing and f.boolean("use_double_wide_mlp", False)
        return {
            "attention_scale": 1.0,
            "embedding_scale": math.sqrt(f.size("hidden_size", default=self.defaults.sizes["hidden_size"])),
            "logits_softcap": f.number("final_logit_softcapping", 0.0, 1e6, 0.0),
            "full_attention": FullAttention(self.full_head_dim(f), full_kv_heads, shared),
            "num_kv_shared_layers": sharing,
            "shared_intermediate_size": 2 * inner if wide else 0,
            "hidden_size_per_layer_input": self._size_per_layer(f),
        }

    def gguf_fields(self, f: Fields, layers: int) -> Fields:
        windows = gguf_windows(f, _PATTERN, layers)
        sliding = next((i for i, window in enumerate(windows) if window is not None), 0)
        head_dim = f.size("head_dim", "attention.key_length")
        return f.having(
            {
                "attention.key_length": f.size("head_dim", "attention.key_length_swa", head_dim),
                "attention.value_length": f.size("head_dim", "attention.value_length_swa", head_dim),
                "rope.dimension_count": f.size("head_dim", "rope.dimension_count_swa", head_dim),
                "attention.head_count_kv": _of_layer(f, "attention.head_count_kv", sliding, layers),
                "feed_forward_length": _of_layer(f, "feed_forward_length", 0, layers),
            }
        )

    def gguf_options(self, f: Fields, head_dim: int, layers: int) -> dict[str, Any]:
        windows = gguf_windows(f, _PATTERN, layers)
        full = next((i for i, window in enumerate(windows) if window is None), 0)
        kv_heads = _of_layer(f, "attention.head_count_kv", full, layers)
        sharing = f.integer("attention.shared_kv_layers", 0, layers - 1, 0)
        inner, wide = (_of_layer(f, "feed_forward_length", i, layers) for i in (0, layers - 1))
        theta = f.number("rope.freq_base_swa", 1.0001, 1e12, self.defaults.sliding_rope_theta)
        return {
            "layer_windows": windows,
            "sliding_rope": (theta, None),
            "attention_scale": 1.0,
            "embedding_scale": math.sqrt(f.size("hidden_size", "embedding_length")),
            "logits_softcap": f.number("final_logit_softcapping", 0.0, 1e6, 0.0),
            "full_attention": FullAttention(f.size("head_dim", "attention.key_length"), kv_heads),
            "num_kv_shared_layers": sharing,
            "shared_intermediate_size": 0 if wide == inner else wide,
            "hidden_size_per_layer_input": f.size("hidden_size_per_layer_input", "embedding_length_per_layer_input", 0),
        }

    def gguf_found(self, options: dict[str, Any], names: Container[str]) -> dict[str, Any]:
        full = next((i for i, window in enumerate(options["layer_windows"]) if window is None), 0)
        shared = f"{layer_name(full)}self_attn.v_proj.weight" not in names
        return {**options, "full_attention": options["full_attention"]._replace(values_are_keys=shared)}

    def gguf_values(self, config: Config) -> dict[str, Any]:
        full, windows = config.full_attention, config.layer_windows
        assert full is not None  # options() and gguf_options() see to it
        theta = config.sliding_rope[0] if config.sliding_rope else config.rope_theta
        found: dict[str, Any] = {
            "attention.sliding_window": max((window for window in windows if window is not None), default=0),
            "attention.sliding_window_pattern": [window is not None for window in windows],
            "attention.key_length": full.head_dim,
            "attention.value_length": full.head_dim,
            "attention.key_length_swa": config.head_dim,
            "attention.value_length_swa": config.head_dim,
            "rope.dimension_count": full.head_dim,
            "rope.dimension_count_swa": config.head_dim,
            "rope.freq_base_swa": float(theta),
            "attention.shared_kv_layers": config.num_kv_shared_layers,
            "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
            "final_logit_softcapping": float(config.logits_softcap),  # llama.cpp's is 30 where this is not written
        }
        if full.num_key_value_heads != config.num_key_value_heads:
            found["attention.head_count_kv"] = [
                full.num_key_value_heads if window is None else config.num_key_value_heads for window in windows
            ]
        if config.shared_intermediate_size:
            own = config.num_hidden_layers - config.num_kv_shared_layers
            found["feed_forward_length"] = [config.intermediate_size] * own + [
                config.shared_intermediate_size
            ] * config.num_kv_shared_layers
        return found

    def ignores(self, config: Config, number: int, name: str) -> bool:
        own = config.num_hidden_layers - config.num_kv_shared_layers
        return number >= own and name in ("self_attn.k_proj", "self_attn.v_proj", "self_attn.k_norm")


class Gemma4Unified(Gemma4):
    """12B, which reads images and sounds without towers: the same text model."""

    model_type = "gemma4_unified_text"
    architecture = "Gemma4UnifiedForCausalLM"
    wrappers = MappingProxyType({"gemma4_unified": "Gemma4UnifiedForConditionalGeneration"})
    defaults = Gemma4.defaults._replace(max_position_embeddings=262144)
    gguf_architecture = None
    gguf_as = Gemma4.model_type
    per_layer = 0
    window = 1024


def _of_layer(f: Fields, key: str, number: int, layers: int) -> int:
    """A number that is one for all layers, or has one for each."""
    value = f.get(key)
    if isinstance(value, tuple):
        if len(value) != layers:
            raise f.fail(key, f"a number, or one for each of {layers} layers")
        f = f.having({key: value[number]})
    return f.size("num_key_value_heads" if "kv" in key else "intermediate_size", key)


def _own(layer: Layer, number: int, config: Config) -> Layer:
    """Llama's layer -> what is otherwise in this family's."""
    hidden, windows, full = config.hidden_size, config.layer_windows, config.full_attention
    mixer = layer.mixer
    assert isinstance(mixer, Attention) and mixer.k is not None and mixer.v is not None  # Llama's has both
    if windows[number] is None and full is not None:
        dim, heads = full.head_dim, full.num_key_value_heads
        mixer = mixer._replace(
            kv_heads=heads,
            head_dim=dim,
            rope=main_rope(config),
            q=mixer.q._replace(rows=config.num_attention_heads * dim),
            k=mixer.k._replace(rows=heads * dim),
            v=None if full.values_are_keys else mixer.v._replace(rows=heads * dim),
            o=mixer.o._replace(cols=config.num_attention_heads * dim),
            q_norm=Norm("self_attn.q_norm", dim),
            k_norm=Norm("self_attn.k_norm", dim),
        )
    else:
        theta, scaling = config.sliding_rope or (config.rope_theta, config.rope_scaling)
        mixer = mixer._replace(rope=Rope(theta, config.head_dim, scaling))
    mixer = mixer._replace(v_normed=True)
    mlp = layer.mlp
    own = config.num_hidden_layers - config.num_kv_shared_layers
    if number >= own:
        like = [i for i in range(own) if (windows[i] is None) == (windows[number] is None)]
        mixer = mixer._replace(k=None, v=None, k_norm=None, v_normed=False, source=like[-1])
        if config.shared_intermediate_size:
            inner = config.shared_intermediate_size
            mlp = plain_mlp(inner, hidden, activation="gelu")
    size = config.hidden_size_per_layer_input
    third, beside = None, None
    if size:
        third = PerLayerInput(
            Linear("per_layer_input_gate", size, hidden),
            Linear("per_layer_projection", hidden, size),
            Norm("post_per_layer_input_norm", hidden),
        )
    experts = experts_of(config)
    if experts is not None:
        beside = Beside(
            replace(experts, activation="gelu"),
            norm=Norm("pre_feedforward_layernorm_2", hidden),
            post_norm=Norm("post_feedforward_layernorm_2", hidden),
            mlp_norm=Norm("post_feedforward_layernorm_1", hidden),
            router_scale="router.scale",
            expert_scale="router.per_expert_scale",
        )
    return layer._replace(mixer=mixer, mlp=mlp, per_layer_input=third, scalar="layer_scalar", beside=beside)
