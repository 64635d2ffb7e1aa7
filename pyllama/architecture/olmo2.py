"""OLMo 2: norms after each block and none before, and one norm over all heads of q, another over those of k."""

from __future__ import annotations

from typing import Any, ClassVar

from pyllama.architecture.config import Config
from pyllama.architecture.family import GGUF_HEAD_NORMS, GGUF_NAMES, Defaults, Family
from pyllama.architecture.fields import Fields
from pyllama.architecture.layer import AFTER, Layer, llama_layers
from pyllama.architecture.sliding import gguf_windows

OLMO3_PATTERN = 4  # of that many layers the last sees everything


class Olmo2(Family):
    model_type = "olmo2"
    architecture = "Olmo2ForCausalLM"
    defaults = Defaults(max_position_embeddings=2048, rms_norm_eps=1e-5)
    attention_bias = False
    gguf_architecture: ClassVar[str | None] = "olmo2"
    read_here = frozenset({"attention.sliding_window_pattern"})
    gguf_windowed = True
    gguf = GGUF_NAMES.within(
        {
            "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
            **GGUF_HEAD_NORMS,
        },
        without=("attn_norm", "ffn_norm"),
    )

    def layers(self, config: Config) -> tuple[Layer, ...]:
        return llama_layers(config, whole_norms=True, norms=AFTER)

    def gguf_options(self, f: Fields, head_dim: int, layers: int) -> dict[str, Any]:
        """With a window the file is OLMo 3's: three of four layers have it, and rotate by plain frequencies."""
        windows = gguf_windows(f, OLMO3_PATTERN, layers)
        if not any(windows):
            return {}
        theta = f.number("rope.freq_base", 1.0001, 1e12, self.defaults.rope_theta)
        scaled = f.text("rope.scaling.type") not in (None, "none")
        return {"layer_windows": windows, "sliding_rope": (theta, None) if scaled else None}

    def gguf_values(self, config: Config) -> dict[str, Any]:
        windows = [window for window in config.layer_windows if window is not None]
        return {"attention.sliding_window": max(windows)} if windows else {}
