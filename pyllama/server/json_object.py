"""What an object of JSON is here: its fields by their names."""

from typing import Any

JsonObject = dict[str, Any]


def no_constant(name: str) -> Any:
    """For json's parse_constant: what Python's parser takes and JSON does not know."""
    raise ValueError(f"{name} is not a JSON number")
