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
    _fitted(value, schema, "")


def _fitted(value: Any, schema: Schema, where: str) -> Any:
    """The value of the field `where`, if it fits."""
    if "anyOf" in schema:
        return _any_of(value, schema["anyOf"], where)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    is_whole = kinds == ["integer"] and isinstance(value, float) and value.is_integer()
    kind = "integer" if is_whole else _kind(value)
    if kinds and kind not in kinds and not (kind == "integer" and "number" in kinds):
        raise _misfit(where, f"got {_shown(value)}, expected {_expected(schema)}")
    if "enum" in schema and value not in schema["enum"]:
        raise _misfit(where, f"got {_shown(value)}, expected {_expected(schema)}")
    if kind in ("integer", "number"):
        low, high = schema.get("minimum"), schema.get("maximum")
        above = schema.get("exclusiveMinimum")
        # Written so that a value that is not a number at all fits nothing.
        if not ((low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)):
            raise _misfit(where, f"got {_shown(value)}, expected {_range(schema)}")
    elif kind == "string":
        _check_size(len(value), schema, "minLength", "maxLength", "characters", where)
    elif kind == "array":
        _check_size(len(value), schema, "minItems", "maxItems", "elements", where)
        if "items" in schema:
            value[:] = [_fitted(item, schema["items"], f"{where}[{index}]") for index, item in enumerate(value)]
    elif kind == "object":
        _check_properties(value, schema, where)
    return int(value) if is_whole else value


def _misfit(where: str, what: str) -> ApiError:
    return ApiError(400, f"{where or 'body'}: {what}", where or None, "invalid_value")


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "object")


def _any_of(value: Any, choices: list[Schema], where: str) -> Any:
    problems = []
    for choice in choices:
        try:
            return _fitted(value, choice, where)
        except ApiError as problem:
            problems.append(problem.with_traceback(None))  # which would hold the value
    inside = [problem for problem in problems if problem.param != (where or None)]
    if len(inside) == 1:  # one choice had the right type: its complaint is the useful one
        raise inside[0]
    ranges = [problem for problem, choice in zip(problems, choices) if _kind(value) == choice.get("type")]
    if len(ranges) == 1:
        raise ranges[0]
    raise _misfit(where, f"got {_shown(value)}, expected {' or '.join(dict.fromkeys(map(_expected, choices)))}")


def _check_size(size: int, schema: Schema, low: str, high: str, unit: str, where: str) -> None:
    least, most = schema.get(low, 0), schema.get(high)
    if size < least:
        raise _misfit(where, f"{size} {unit}, expected at least {least}")
    if most is not None and size > most:
        raise _misfit(where, f"{size} {unit}, expected at most {most}")


def _check_properties(value: JsonObject, schema: Schema, where: str) -> None:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if value.get(name) is None:
            raise _misfit(_join(where, name), "missing")
    for name, item in value.items():
        field = properties.get(name, schema.get("additionalProperties"))
        if isinstance(field, dict) and not (item is None and name in properties):
            value[name] = _fitted(item, field, _join(where, name))  # the key stays, so the loop is not disturbed


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
