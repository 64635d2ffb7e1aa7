"""Phi 3, 3.5 and 4-mini: Llama's block, its matrices stored as one for q, k and v and one for gate and up."""

from __future__ import annotations

from pyllama.architecture.config import Windows
from pyllama.architecture.family import GGUF_NAMES, Defaults, Family
from pyllama.architecture.fields import Fields
from pyllama.architecture.names import Names
from pyllama.architecture.sliding import sliding_window

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


class Phi3(Family):
    model_type = "phi3"
    architecture = "Phi3ForCausalLM"
    defaults = Defaults(max_position_embeddings=4096, rms_norm_eps=1e-5)
    read_here = frozenset({"partial_rotary_factor"})
    rotary_scalings = ("longrope", "su", "yarn")  # all three mean longrope in this family
    huggingface = Names("model.layers.", {}, {"self_attn.qkv_proj": _QKV, "mlp.gate_up_proj": _GATE_UP})
    gguf_architecture = "phi3"
    gguf_windowed = True
    gguf = GGUF_NAMES.within(
        {"attn_qkv": _QKV, "ffn_up": _GATE_UP}, without=("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")
    )

    def windows(self, f: Fields, layer_types: list[str] | None, layers: int) -> Windows:
        return (sliding_window(f, None),) * layers
