"""Sliding windows as config.json tells them: shared by the families that have some."""

from __future__ import annotations

from pyllama.architecture.config import MAX_POSITIONS, Windows
from pyllama.architecture.fields import Fields


def sliding_window(f: Fields, default: int | None = 4096) -> int | None:
    """`sliding_window`: the default unless the key is there, none if it is null."""
    if f.absent("sliding_window"):
        return default
    return f.integer("sliding_window", 1, MAX_POSITIONS) if f.has("sliding_window") else None


def in_all(window: int | None, f: Fields, layer_types: list[str] | None, layers: int, model_type: str) -> Windows:
    """One window, or none, in every layer, for classes that ignore `layer_types`: following a list that says otherwise
    would be a different model, so it is refused."""
    if layer_types and set(layer_types) != {"sliding_attention" if window else "full_attention"}:
        raise f.unsupported("layer_types", f"a list against sliding_window {window} in a {model_type} model")
    return (window,) * layers


def by_type(window: int | None, layer_types: list[str] | None) -> Windows:
    """The window in the layers of `layer_types` that have one."""
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types or ())


def gguf_windows(f: Fields, pattern: int, layers: int, default: int = 0) -> Windows:
    """The windows of a GGUF file's layers: `attention.sliding_window` in all but the last of each `pattern` of them.

    Files of newer converters have the pattern: a number, or a list that is true where a layer has a window. 0 is none.
    """
    window = f.integer("attention.sliding_window", 0, MAX_POSITIONS, default) or None
    said = f.get("attention.sliding_window_pattern")
    if isinstance(said, tuple):
        if len(said) != layers or any(one not in (0, 1) for one in said):
            raise f.fail("attention.sliding_window_pattern", f"a list of true and false for {layers} layers")
        return tuple(window if one else None for one in said)
    if isinstance(said, bool):  # alike for all: the reader of metadata makes one value of such a list
        return (window if said else None,) * layers
    pattern = f.integer("attention.sliding_window_pattern", 0, 1024, pattern)
    return tuple(window if pattern and (i + 1) % pattern else None for i in range(layers))


def windows_if_used(f: Fields, layer_types: list[str] | None, layers: int) -> Windows:
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
    return by_type(window, layer_types)
