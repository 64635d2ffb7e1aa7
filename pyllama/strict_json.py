"""JSON bytes -> dict, refusing what the standard module lets through.

Duplicate keys, NaN and Infinity (also as 1e999), a top that is no object, bytes that are no UTF-8,
nesting beyond the interpreter's stack, and anything so long that parsing it would cost memory or time.
"""

from __future__ import annotations

import json
import math
from typing import Any

from pyllama.errors import CheckpointError, PyllamaError, shown

MAX_NBYTES = 8 << 20
MAX_ITEMS = 400_000  # values in all; the largest real header has under 100,000


def parse_object(data: bytes, where: str, *, constants: bool = False) -> dict[str, Any]:
    """The object that `data` spells. Raises CheckpointError naming `where`.

    constants  NaN, Infinity and -Infinity pass, as Python's writer spells them: for whom checks every range
    """
    if len(data) > MAX_NBYTES:
        raise CheckpointError(f"{where}: {len(data)} bytes of JSON, expected at most {MAX_NBYTES}")
    check_items(data, where, CheckpointError)

    def pairs_to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise CheckpointError(f"{where}: key {shown(key)} appears twice")
                seen.add(key)
        return found

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise CheckpointError(f"{where}: number {shown(text)} is out of range")
        return value

    def constant(text: str) -> float:
        if constants:
            return float(text)
        raise CheckpointError(f"{where}: {text} is not a JSON number")

    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=pairs_to_dict, parse_float=finite, parse_constant=constant
        )
    except RecursionError:
        raise CheckpointError(f"{where}: JSON nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, an integer of thousands of digits
        raise CheckpointError(f"{where}: not valid JSON: {str(error).lower()}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object, got {shown(value)}")
    return value


def check_items(data: bytes, where: str, error: type[PyllamaError]) -> None:
    """Raises the error for JSON of too many values, before it is parsed: a Python object for each is what would cost
    the memory."""
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_ITEMS:
        raise error(f"{where}: too many JSON values, expected at most {MAX_ITEMS}")
