"""Sliding windows as config.json tells them: shared by the families that have some."""

from __future__ import annotations

from pyllama.architecture.config import MAX_POSITIONS
from pyllama.architecture.fields import Fields


def sliding_window(f: Fields) -> int | None:
    """`sliding_window`: 4096 unless the key is there, none if it is null."""
    if f.absent("sliding_window") or f.has("sliding_window"):
        return f.integer("sliding_window", 1, MAX_POSITIONS, 4096)
    return None


def windows_if_used(f: Fields, layer_types: list[str] | None, layers: int) -> tuple[int | None, ...]:
    """Windows only under `use_sliding_window`: in the layers of `layer_types`, or from `max_window_layers` on."""
    window = sliding_window(f)
    if not f.boolean("use_sliding_window", False):
        if layer_types and "sliding_attention" in layer_types:
            # transformers masks such a layer with no window and fails; there is no right answer to copy.
            raise f.unsupported("layer_types", "'sliding_attention' without use_sliding_window")
        return (None,) * layers
    if layer_types is None:
        first = f.integer("max_window_layers", 0, MAX_POSITIONS, 28)
        return tuple(window if i >= first else None for i in range(layers))
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)
