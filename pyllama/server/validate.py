"""Checks a parsed body against the part of JSON Schema that schemas.py uses, naming the field that is wrong.

The schemas are the ones the server publishes, so what is refused and what is documented cannot differ. Fields that
a schema does not name are tolerated, and null is as good as absent, as OpenAI has it. A whole number written 4.0 is
an integer, as JSON Schema has it.
"""

from typing import Any

from pyllama.server.errors import ApiError
from pyllama.server.json_object import JsonObject

Schema = JsonObject

_NAMES = {"string": "text", "integer": "an integer", "number": "a number", "boolean": "true or false",
          "array": "a list", "object": "an object", "null": "null"}  # fmt: skip

_KINDS = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}


def check(value: Any, schema: Schema) -> None:
    """Raises ApiError 400 with the field's name if the value does not fit. Integers written 4.0 become 4 in it."""
    problem = _problem(value, schema, "")
    if problem:
        at, message = problem
        raise ApiError(400, f"{at or 'body'}: {message}", at or None, "invalid_value")


def _problem(value: Any, schema: Schema, where: str) -> tuple[str, str] | None:
    """(field, what is wrong with it) or None."""
    if "anyOf" in schema:
        return _any_of(value, schema["anyOf"], where)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    kind = "integer" if _whole(value, schema) else _kind(value)
    if kinds and kind not in kinds and not (kind == "integer" and "number" in kinds):
        return where, f"got {_shown(value)}, expected {_expected(schema)}"
    if "enum" in schema and value not in schema["enum"]:
        return where, f"got {_shown(value)}, expected {_expected(schema)}"
    if kind in ("integer", "number"):
        low, high = schema.get("minimum"), schema.get("maximum")
        above = schema.get("exclusiveMinimum")
        # Written so that a value that is not a number at all fits nothing.
        inside = (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
        return None if inside else (where, f"got {_shown(value)}, expected {_range(schema)}")
    if kind == "string":
        return _size(len(value), schema, "minLength", "maxLength", "characters", where)
    if kind == "array":
        return _size(len(value), schema, "minItems", "maxItems", "elements", where) or _items(value, schema, where)
    if kind == "object":
        return _properties(value, schema, where)
    return None


def _whole(value: Any, schema: Schema) -> bool:
    return isinstance(value, float) and schema.get("type") == "integer" and value.is_integer()


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "object")


def _any_of(value: Any, choices: list[Schema], where: str) -> tuple[str, str] | None:
    problems = []
    for choice in choices:
        problem = _problem(value, choice, where)
        if problem is None:
            return None
        problems.append(problem)
    inside = [problem for problem in problems if problem[0] != where]
    if len(inside) == 1:  # one choice had the right type: its complaint is the useful one
        return inside[0]
    ranges = [p for p, choice in zip(problems, choices) if _kind(value) == choice.get("type")]
    if len(ranges) == 1:
        return ranges[0]
    return where, f"got {_shown(value)}, expected {' or '.join(dict.fromkeys(map(_expected, choices)))}"


def _size(size: int, schema: Schema, low: str, high: str, unit: str, where: str) -> tuple[str, str] | None:
    least, most = schema.get(low, 0), schema.get(high)
    if size < least:
        return where, f"{size} {unit}, expected at least {least}"
    if most is not None and size > most:
        return where, f"{size} {unit}, expected at most {most}"
    return None


def _items(value: list, schema: Schema, where: str) -> tuple[str, str] | None:
    for index, item in enumerate(value) if "items" in schema else ():
        problem = _problem(item, schema["items"], f"{where}[{index}]")
        if problem:
            return problem
        if _whole(item, schema["items"]):
            value[index] = int(item)
    return None


def _properties(value: dict, schema: Schema, where: str) -> tuple[str, str] | None:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if value.get(name) is None:
            return _join(where, name), "missing"
    others = schema.get("additionalProperties")
    for name, item in value.items():
        if name in properties:
            if item is None:
                continue
            problem = _problem(item, properties[name], _join(where, name))
            if not problem and _whole(item, properties[name]):
                value[name] = int(item)  # the key stays, so the loop is not disturbed
        else:
            problem = _problem(item, others, _join(where, name)) if isinstance(others, dict) else None
        if problem:
            return problem
    return None


def _join(where: str, name: str) -> str:
    return f"{where}.{name[:60]}" if where else name[:60]


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, (str, int, float)) else _NAMES[_kind(value)]
    return text if len(text) <= 60 else text[:57] + "..."


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        return f"more than {schema['exclusiveMinimum']}" + (f", up to {high}" if high is not None else "")
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"at least {low}" if low is not None else f"at most {high}"


def _expected(schema: Schema) -> str:
    if "enum" in schema:
        return " or ".join(repr(choice) for choice in schema["enum"])
    kinds = schema.get("type", "object")
    return " or ".join(_NAMES[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))
