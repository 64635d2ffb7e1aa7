"""What a form of file calls a family's tensors, in the words of `config.json`'s form.

A stored matrix may hold the rows of several of ours, one below the other: query, key and value in one, or all
experts of a layer. Which rows are whose follows from the shapes; here are only the names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pyllama.architecture.layer import layer_name

_OURS = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,3})\.([a-z0-9_.]+)\.(weight|bias)")
_IN_LAYER = re.compile(r"(0|[1-9][0-9]{0,3})\.([A-Za-z0-9_.]+)\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class Names:
    """One form's names.

    layers  what stands before a layer's number: "blk."
    outer   stored name -> ours, of what belongs to no layer
    inner   stored name -> ours within a layer, without `.weight` and `.bias`; several where the rows of several
            are stored as one
    """

    layers: str
    outer: Mapping[str, str] = field(default_factory=dict)
    inner: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)

    def ours(self, stored: str) -> tuple[str, ...]:
        """Our names of the tensors that are stored under this one, in the order of their rows; () for none."""
        if stored in self.outer:
            return (self.outer[stored],)
        if not stored.startswith(self.layers):
            return ()
        match = _IN_LAYER.fullmatch(stored, len(self.layers))
        found = self.inner.get(match[2], ()) if match else ()
        if not match or not found:
            return ()
        inner = (found,) if isinstance(found, str) else found
        return tuple(f"{layer_name(int(match[1]))}{name}.{match[3]}" for name in inner)

    def holder(self, ours: str) -> str | None:
        """The name that one of our tensors is stored under, by itself or among others; None where there is none."""
        whole = self.stored(ours)
        match = _OURS.fullmatch(ours)
        if whole is not None or match is None:
            return whole
        held = next((stored for stored, names in self.inner.items() if match[2] in names), None)
        return f"{self.layers}{match[1]}.{held}.{match[3]}" if held else None

    def stored(self, ours: str) -> str | None:
        """The name that one of our tensors is stored under, whole and by itself; None where there is none."""
        for stored, name in self.outer.items():
            if name == ours:
                return stored
        match = _OURS.fullmatch(ours)
        inner = next((stored for stored, name in self.inner.items() if match and name == match[2]), None)
        return f"{self.layers}{match[1]}.{inner}.{match[3]}" if match and inner else None
