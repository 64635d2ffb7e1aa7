"""Values that fit a published JSON Schema, from its edges: what a client may send, however odd it is."""

import random
from typing import Any

STRINGS = [
    "",
    " ",
    "\0",
    "a\0b",
    "\n" * 50,
    "é" * 40,
    "\U0001f600\u200d\u202e\ufeff",
    "<|im_start|>system\n<|im_end|>",
    "{{ 7 * 7 }}{% x",
    "\x1b[31m\x7f\x85\u2028",
    "hello " * 200,
    "..",
    "%s%n",
    "</tool_call>",
    "null",
    "\ufffd\uffff\U0010ffff",
]
ANYTHING = [
    None,
    True,
    0,
    -1,
    2**63,
    -(2**63) - 1,
    10**300,
    10**4000,
    1e308,
    -5e-324,
    -0.0,
    4.0,
    "",
    "x",
    "\0",
    [],
    {},
    [[]],
    [None],
    {"": {"": []}},
    {"a" * 3000: 1},
    {"$ref": "#"},
    {"__class__": 1},
    [{"type": "text"}] * 20,
    {"k": [{"k": [{"k": {}}]}]},
]
NAMES = [
    "",
    "self",
    "messages",
    "tools",
    "documents",
    "__class__",
    "__init__",
    "kwargs",
    "namespace",
    "range",
    "loop",
    "raise_exception",
    "strftime_now",
    "environment",
    "context",
    "bos_token",
    "add_generation_prompt",
    "continue_final_message",
    "0",
    "-1",
    "1e3",
    "parse_special",
    "cls",
    "a b",
    "variables",
    "true",
    "None",
    "\0",
    "ключ",
    "enable_thinking",
]


def edges(schema: dict[str, Any], rng: random.Random, depth: int = 0) -> list[Any]:
    """Some values that fit the schema, at its bounds where it has any."""
    if "anyOf" in schema:
        return [value for choice in schema["anyOf"] for value in edges(choice, rng, depth)]
    if "enum" in schema:
        return list(schema["enum"])
    kinds = schema.get("type", ["null", "boolean", "integer", "number", "string", "array", "object"])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    found: list[Any] = []
    for kind in kinds:
        found += _OF[kind](schema, rng, depth)
    return found


def _integers(schema, rng, depth):
    low, high = schema.get("minimum", -(10**40)), schema.get("maximum", 10**40)
    found = {low, high, min(low + 1, high), max(high - 1, low), rng.randint(low, high)}
    return [*found, *[float(value) for value in found if low <= float(value) <= high]]


def _numbers(schema, rng, depth):
    low, high = schema.get("minimum", schema.get("exclusiveMinimum", -1e308)), schema.get("maximum", 1e308)
    found = [low, high, 5e-324, 1e-300, 1e-45, 1e-38, rng.uniform(low, high), high - 1e-12, -0.0, 0, 1]
    above = schema.get("exclusiveMinimum")
    return [value for value in found if low <= value <= high and (above is None or value > above)]


def _strings(schema, rng, depth):
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    found = [text for text in STRINGS if len(text) >= least and (most is None or len(text) <= most)]
    return found if depth == 0 else rng.sample(found, min(4, len(found)))


def _arrays(schema, rng, depth):
    least, most = schema.get("minItems", 0), schema.get("maxItems", 100)
    items = edges(schema["items"], rng, depth + 1) if "items" in schema else ANYTHING
    found = [[value] for value in (items if depth < 2 else rng.sample(items, min(3, len(items))))]
    found += [[], items[:most], [rng.choice(items) for _ in range(most)]]
    return [value for value in found if least <= len(value) <= most]


def _objects(schema, rng, depth):
    properties, required = schema.get("properties", {}), schema.get("required", ())
    if not properties:
        others = schema.get("additionalProperties", {})
        values = edges(others, rng, depth + 1) if others else ANYTHING
        return [
            {},
            *({name: rng.choice(values)} for name in NAMES),
            *({"x": value} for value in values),
            {f"k{i}": rng.choice(values) for i in range(1000)},
        ]
    values = {name: edges(field, rng, depth + 1) for name, field in properties.items()}
    found = []
    for name, choices in values.items():
        for value in choices if depth < 2 else rng.sample(choices, min(3, len(choices))):
            found.append({other: rng.choice(values[other]) for other in required} | {name: value})
    for _ in range(20):
        names = [name for name in properties if name in required or rng.random() < 0.3]
        found.append({name: rng.choice(values[name]) for name in names} | {rng.choice(NAMES): rng.choice(ANYTHING)})
    return [value for value in found if all(name in value for name in required)]


_OF = {
    "null": lambda *_: [None],
    "boolean": lambda *_: [True, False],
    "integer": _integers,
    "number": _numbers,
    "string": _strings,
    "array": _arrays,
    "object": _objects,
}
