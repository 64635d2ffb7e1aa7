"""Granite 4's dense models: Granite's block under the class of its hybrids, whose layers are all attention there.

The feed-forward block is what the class calls a shared MLP, its gate and up in one matrix. Layers of Mamba 2, and
experts beside the shared MLP, are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllama.architecture.fields import Fields
from pyllama.architecture.granite import Granite
from pyllama.architecture.names import Names

_EXPERTS, _WIDTH = 8, 1024  # what the class takes where config.json has nothing


class GraniteMoeHybrid(Granite):
    model_type = "granitemoehybrid"
    architecture = "GraniteMoeHybridForCausalLM"
    layer_kinds = frozenset({"attention", "full_attention"})
    huggingface = Names(
        "model.layers.",
        inner={
            "shared_mlp.input_linear": ("mlp.gate_proj", "mlp.up_proj"),
            "shared_mlp.output_linear": "mlp.down_proj",
        },
    )
    gguf_architecture = None
    gguf_as = "granite"  # what llama.cpp's converter makes of one without Mamba

    def plain(self, source: Mapping[str, Any]) -> Mapping[str, Any]:
        kinds = source.get("layer_types") or source.get("layers_block_type")
        found = {
            **source,
            "layer_types": kinds,
            "intermediate_size": source.get("shared_intermediate_size", _WIDTH),
            "num_local_experts": source.get("num_local_experts", _EXPERTS),
            "mlp_bias": False,
        }
        found.pop("num_experts_per_tok", None)
        return found

    def refuse(self, f: Fields) -> None:
        if f.get("num_local_experts") not in (None, 0):
            raise f.unsupported("num_local_experts", "a mixture of experts beside a shared MLP")
        if not f.has("layer_types"):
            raise f.unsupported("layer_types", "Mamba in every layer, as nothing else is said,")
        if f.text("position_embedding_type") not in (None, "nope", "rope"):
            raise f.unsupported("position_embedding_type", repr(f.get("position_embedding_type"))[:40])
        super().refuse(f)

    def options(self, f: Fields, head_dim: int, layers: int) -> dict[str, Any]:
        unrotated = () if f.text("position_embedding_type") == "rope" else tuple(range(layers))
        return {**super().options(f, head_dim, layers), "unrotated_layers": unrotated}
