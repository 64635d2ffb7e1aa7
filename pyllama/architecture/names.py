"""What a form of file calls a family's tensors, in the words of `config.json`'s form.

A stored matrix may hold the rows of several of ours, one below the other: query, key and value in one, or all
experts of a layer. Which rows are whose follows from the shapes; here are only the names.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import NamedTuple

from pyllama.architecture.layer import layer_name

MAX_STACKED = 1024  # experts in one stored tensor
_OURS = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,3})\.([a-z0-9_.]+)\.(weight|bias)")
_IN_LAYER = re.compile(r"(0|[1-9][0-9]{0,3})\.([A-Za-z0-9_.]+?)(?:\.(weight|bias))?")
_OF_EXPERT = ("gate_proj", "up_proj", "down_proj")
_NUMBER = re.compile(r"(?<=\.)(0|[1-9][0-9]{0,3})(?=\.|$)")


class Names(NamedTuple):
    """One form's names.

    layers  what stands before a layer's number: "blk."
    outer   stored name -> ours, of what belongs to no layer
    inner   stored name -> ours within a layer, without `.weight` and `.bias`; several where the rows of several
            are stored as one; {} in both where an expert's number stands
    stacks  stored name of the matrices of all experts of a layer, in one -> ours, with {} for the number; several where
            the rows of several follow each other in every expert
    exact   stored name within a layer, all of it -> ours, without `.weight`, which ours has

    Some tensors are stored without `.weight`.
    """

    layers: str
    outer: Mapping[str, str] = MappingProxyType({})
    inner: Mapping[str, str | tuple[str, ...]] = MappingProxyType({})
    stacks: Mapping[str, str | tuple[str, ...]] = MappingProxyType({})
    exact: Mapping[str, str] = MappingProxyType({})

    def within(self, names: Mapping[str, str | tuple[str, ...]], without: Container[str] = ()) -> Names:
        """The same, with these within a layer as well; without: names, as stored, that it has not."""
        kept = {stored: ours for stored, ours in self.inner.items() if stored not in without}
        return self._replace(inner={**kept, **names})

    def ours(self, stored: str, experts: int = 1) -> tuple[str, ...]:
        """Our names of the tensors that are stored under this one, in the order of their rows; () for none.

        experts  how many a stack holds
        """
        if stored in self.outer:
            return (self.outer[stored],)
        if not stored.startswith(self.layers):
            return ()
        match = _IN_LAYER.fullmatch(stored, len(self.layers))
        if match is None:
            return ()
        whole = stored[match.end(1) + 1 :]
        if whole in self.exact:
            return (f"{layer_name(int(match[1]))}{self.exact[whole]}.weight",)
        kind = match[3]
        if match[2] in self.stacks and experts <= MAX_STACKED:
            each = _tuple(self.stacks[match[2]])
            inner = tuple(name.format(number) for number in range(experts) for name in each)
        else:
            inner = self._inner(match[2])
        kind = kind or "weight"
        return tuple(f"{layer_name(int(match[1]))}{name}.{kind}" for name in inner)

    def _inner(self, stored: str) -> tuple[str, ...]:
        if stored in self.inner:
            return _tuple(self.inner[stored])
        number = _NUMBER.search(stored)
        found = self.inner.get(_with_braces(stored, number), ()) if number else ()
        return tuple(name.format(number[1]) for name in _tuple(found)) if number else ()

    def holder(self, ours: str) -> str | None:
        """The name that one of our tensors is stored under, by itself or among others; None where there is none."""
        whole = self.stored(ours)
        match = _OURS.fullmatch(ours)
        if whole is not None or match is None:
            return whole
        held = next((stored for stored, names in self.inner.items() if match[2] in names), None)
        return f"{self.layers}{match[1]}.{held}.{match[3]}" if held else None

    def stored(self, ours: str) -> str | None:
        """The name that one of our tensors is stored under, whole, by itself or in a stack of experts; None where there
        is none."""
        for stored, name in self.outer.items():
            if name == ours:
                return stored
        match = _OURS.fullmatch(ours)
        if match is None:
            return None
        exact = next((stored for stored, name in self.exact.items() if name == match[2]), None)
        if exact and match[3] == "weight":
            return f"{self.layers}{match[1]}.{exact}"
        number = _NUMBER.search(match[2])
        wanted = _with_braces(match[2], number) if number else match[2]
        for names in (self.stacks, self.inner):
            inner = next((stored for stored, name in names.items() if name == wanted), None)
            if inner:
                inner = inner.format(number[1]) if number else inner
                kind = "" if inner.endswith(".scale") else f".{match[3]}"
                return f"{self.layers}{match[1]}.{inner}{kind}"
        return None


def expert_number(ours: str) -> int | None:
    """The number of the expert that one of our tensors belongs to; None where it belongs to none."""
    match = _OURS.fullmatch(ours)
    number = _NUMBER.search(match[2]) if match else None
    return int(number[1]) if number else None


def expert_matrix(ours: str) -> int:
    """Which of an expert's matrices one of our tensors is: 0 its gate, 1 its up, 2 its down."""
    return _OF_EXPERT.index(ours.split(".")[-2])


def _tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _with_braces(name: str, number: re.Match[str]) -> str:
    return f"{name[: number.start()]}{{}}{name[number.end() :]}"
