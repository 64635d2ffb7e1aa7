"""Typed, range-checked look-ups in what a file says of a model; messages name the key and the file.

Knows no key and no family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllama.architecture.config import LIMITS, MAX_SIZE
from pyllama.errors import CheckpointError, UnsupportedError, shown


class Fields:
    """One parsed mapping.

    source  the mapping, as JSON or GGUF metadata gives it
    where   what to call it in messages
    prefix  what stands before every key
    """

    def __init__(self, source: Mapping[str, Any], where: str, prefix: str = ""):
        if not isinstance(source, Mapping):
            raise CheckpointError(f"{where}: expected an object, got {shown(source)}")
        self.source = source
        self.where = where
        self.prefix = prefix

    def get(self, key: str) -> Any:
        return self.source.get(self.prefix + key)

    def having(self, values: Mapping[str, Any]) -> Fields:
        """The same with other values under these keys."""
        return Fields({**self.source, **{self.prefix + key: v for key, v in values.items()}}, self.where, self.prefix)

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.get(key) is not None

    def absent(self, key: str) -> bool:
        """Whether the key is not there at all: null counts as there."""
        return self.prefix + key not in self.source

    def fail(self, key: str, expected: str) -> CheckpointError:
        got = "nothing" if self.get(key) is None else shown(self.get(key))
        return CheckpointError(f"{self.prefix}{key}: got {got}, expected {expected} (in {self.where})")

    def unsupported(self, key: str, what: str) -> UnsupportedError:
        return UnsupportedError(f"{self.prefix}{key}: {what} is not supported (in {self.where})")

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fail(key, f"an integer from {low} to {high}")
        return int(value)

    def size(self, field: str, key: str | None = None, default: int | None = None) -> int:
        """An integer that a Config may hold in this field, under a key of its name or another."""
        return self.integer(key or field, *LIMITS[field], default)

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self.get(key)
        if value is None and default is not None:
            return default
        # An integer is compared before it is converted: a huge one does not fit a float.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.fail(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def text(self, key: str) -> str | None:
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.fail(key, "a string")
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        value = self.get(key)
        values = [] if value is None else value if isinstance(value, list) else [value]
        if len(values) > 64 or any(isinstance(v, bool) or not isinstance(v, int) for v in values):
            raise self.fail(key, "a token id or a short list of them")
        return tuple(v for v in values if 0 <= v < MAX_SIZE)  # -1 stands for "none" in some files

    def token_id(self, key: str) -> int | None:
        ids = self.token_ids(key)
        return ids[0] if ids else None
