"""A client's JSON Schema to one that the grammar compiler takes and that allows nothing else.

What only annotates (an unknown format, a bound beyond every number that can be written) goes. What the compiler does
not know but its words can say is said in them: `uniqueItems` of few values, `propertyNames`, `oneOf`. Anything else it
cannot follow stays, for the compiler to refuse by name. Positions stay too: a `$ref` may point anywhere.
"""

import itertools
from collections.abc import Callable
from typing import Any

from pyllama.server.json_object import JsonObject

#: The formats llguidance can hold a string to. Others are annotations, as JSON Schema has it.
FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
)
#: Values of a set whose arrays are listed one by one: 4 give 65 arrays.
MAX_SET = 4

_BOUND = 1 << 63  # integers are compared in 64 bits
_SIZE = 1 << 31

_ONE = ("items", "additionalItems", "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else",
        "unevaluatedItems", "unevaluatedProperties", "contentSchema")  # fmt: skip
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def enforceable(schema: Any) -> Any:
    """The schema as llguidance takes it; a copy. Wrong types are left for the compiler to name."""
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    for key in _ONE:
        if isinstance(result.get(key), dict):
            result[key] = enforceable(result[key])
    for key in _LISTS:
        if isinstance(result.get(key), list):
            result[key] = [enforceable(item) for item in result[key]]
    for key in _NAMED:
        if isinstance(result.get(key), dict):
            result[key] = {name: enforceable(item) for name, item in result[key].items()}
    for change in _CHANGES:
        change(result)
    return result


def _drop_annotations(schema: JsonObject) -> None:
    if isinstance(schema.get("format"), str) and schema["format"] not in FORMATS:
        del schema["format"]
    # llguidance's own switches are the server's to set.
    schema.pop("x-guidance", None)


def _drop_bounds_beyond_numbers(schema: JsonObject) -> None:
    for key, beyond in _BEYOND.items():
        value = schema.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and beyond(value):
            del schema[key]


_BEYOND: dict[str, Callable[[float], bool]] = {
    "minimum": lambda value: value <= -_BOUND,
    "exclusiveMinimum": lambda value: value < -_BOUND,
    "maximum": lambda value: value >= _BOUND - 1,
    "exclusiveMaximum": lambda value: value >= _BOUND,
    **dict.fromkeys(("maxLength", "maxItems", "maxProperties"), lambda value: value >= _SIZE),
}


def _list_sets(schema: JsonObject) -> None:
    """uniqueItems: all arrays of few values are listed; of many, or of other items, uniqueness is not enforced."""
    if not schema.pop("uniqueItems", False):
        return
    values = _values(schema.get("items"))
    if values is None or "prefixItems" in schema or "enum" in schema or "const" in schema:
        return
    least, most = schema.get("minItems", 0), schema.get("maxItems", len(values))
    if not isinstance(least, int) or not isinstance(most, int):
        return
    most = min(most, len(values))
    if len(values) > MAX_SET:
        schema["maxItems"] = most  # no set has more
        return
    sizes = range(max(0, least), most + 1)
    schema["enum"] = [list(array) for size in sizes for array in itertools.permutations(values, size)]


def _values(items: Any) -> list[Any] | None:
    """The different values that items may have, if they are listed."""
    if not isinstance(items, dict):
        return None
    if items.get("type") == "boolean" and set(items) <= {"type", "title", "description"}:
        return [True, False]
    values = [items["const"]] if "const" in items else items.get("enum")
    others = set(items) - {"const", "enum", "type", "title", "description"}
    if not isinstance(values, list) or others:
        return None
    different: list[Any] = []
    for value in values:
        if not any(value == known and type(value) is type(known) for known in different):
            different.append(value)
    return different


def _say_property_names(schema: JsonObject) -> None:
    """propertyNames of an enum or a pattern, as pydantic writes it for dict[Literal[...], T]."""
    names = schema.get("propertyNames")
    if not isinstance(names, dict) or schema.get("properties") or schema.get("patternProperties"):
        return
    value = schema.get("additionalProperties", True)
    known = {key: names[key] for key in names if key not in ("type", "title", "description")}
    if set(known) == {"enum"} and isinstance(known["enum"], list):
        schema["properties"] = {name: value for name in known["enum"] if isinstance(name, str)}
    elif set(known) == {"pattern"}:
        schema["patternProperties"] = {known["pattern"]: value}
    elif known:
        return
    if known:
        schema["additionalProperties"] = False
    del schema["propertyNames"]


def _close_alternatives(schema: JsonObject) -> None:
    """oneOf of open objects: closed, so that an object that fits one does not fit the next by what it leaves open.

    The compiler then takes any one of them (coerce_one_of).
    """
    branches = schema.get("oneOf")
    if not isinstance(branches, list) or any(key in schema for key in ("properties", "allOf", "$ref", "required")):
        return
    closing = ("additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "anyOf", "oneOf", "$ref")
    for branch in branches:
        if isinstance(branch, dict) and branch.get("properties") and not any(key in branch for key in closing):
            branch["additionalProperties"] = False


def _say_unevaluated(schema: JsonObject) -> None:
    """unevaluatedProperties is additionalProperties where nothing else in the schema knows properties."""
    combined = ("anyOf", "oneOf", "allOf", "$ref", "if", "dependentSchemas", "additionalProperties")
    if "unevaluatedProperties" in schema and not any(key in schema for key in combined):
        schema["additionalProperties"] = schema.pop("unevaluatedProperties")


_CHANGES = (_drop_annotations, _drop_bounds_beyond_numbers, _list_sets, _say_property_names, _close_alternatives,
            _say_unevaluated)  # fmt: skip
