"""Lark grammars that let through nothing but calls of given functions, or calls and JSON of a format.

Each function's parameters are a schema of their own in the grammar, so `#`, `$defs` and `$id` in them are their own.
"""

import json

from pyllama.generation.harmony import CHANNEL, CONSTRAIN, END, MESSAGE, ROLE, START
from pyllama.server.errors import invalid
from pyllama.server.grammar import embedded
from pyllama.server.json_object import JsonObject
from pyllama.server.tools.forms import ToolFormat

Markers = tuple[int | None, int | None]
#: Calls of one answer: a model that goes on for ever is stopped.
MAX_CALLS = 16


def calls_grammar(
    form: ToolFormat,
    functions: list[JsonObject],
    markers: Markers | None,
    schema: JsonObject | None = None,
    *,
    parallel: bool = False,
) -> str:
    """One call of one of the functions, or with parallel one or more; or, if there is a schema, JSON of it.

    markers  the tokens of opening and closing, those that are control ones
    """
    start = "start: calls\n" if schema is None else f"start: calls | format\nformat: {embedded(schema)}\n"
    opening_id, closing_id = markers or (None, None)
    rules = []
    for index, function in enumerate(functions):
        # In the pieces that JSON of a schema is made of: where either may stand, the lexer must not run ahead in one.
        name = json.dumps(function["name"], ensure_ascii=False)
        if form.before_name:
            rules.append(f"call_{index}: {_text(form.before_name + function['name'])} arguments_{index}")
        else:
            head = " ".join(map(_text, ("{", '"name"', ": ", name, ", ", f'"{form.arguments}"', ": ")))
            rules.append(f"call_{index}: {head} arguments_{index} {_text('}')}")
        rules.append(f"arguments_{index}: {embedded(_of_arguments(function))}")
    rules.append("call: " + " | ".join(f"call_{index}" for index in range(len(functions))))
    one = "call"
    opening = ""
    if form.opening:
        newline = "\n" if form.closing and form.between == "\n" else ""
        opening = f"<[{opening_id}]>" if opening_id is not None else _text(form.opening + newline)
        if form.closing:
            closing = f"<[{closing_id}]>" if closing_id is not None else _text(newline + form.closing)
            one = f"{opening} call {closing}"
            opening = ""
    between = f"{_text(form.between)} " if form.between else ""
    more = f" ({between}{one}){{0,{MAX_CALLS - 1}}}" if parallel else ""
    if more and form.closing and form.between:
        more += f" {_text(form.between)}?"  # a model that has begun a line after its call need not call again
    many = f"{one}{more}"
    if form.is_list:
        many = f"{_text('[')} {many} {_text(']')}"
    rules.append(f"calls: {opening} {many}")
    return start + "\n".join(rules) + "\n"


def channels_grammar(schema: JsonObject | None, functions: list[JsonObject], marker_ids: dict[str, int | None]) -> str:
    """An answer in harmony: thought, if the model will, then JSON of the schema, if there is one, or a call.

    marker_ids  harmony's markers as text -> their tokens
    """

    def marker(text: str) -> str:
        found = marker_ids.get(text)
        return _text(text) if found is None else f"<[{found}]>"

    channel, message, again = marker(CHANNEL), marker(MESSAGE), f"{marker(END)} {marker(START)} {_text(ROLE)}"
    answers, rules = [], []
    if schema is not None:
        answers.append("final")
        rules.append(f"final: {channel} {_text('final')} {message} format")
        rules.append(f"format: {embedded(schema)}")
    for index, function in enumerate(functions):
        answers.append(f"call_{index}")
        head = _text(f"commentary to=functions.{function['name']} ")
        kind = f"{marker(CONSTRAIN)} {_text('json')}"
        rules.append(f"call_{index}: {channel} {head} {kind} {message} arguments_{index}")
        rules.append(f"arguments_{index}: {embedded(_of_arguments(function))}")
    thought = f"{channel} {_text('analysis')} {message} THOUGHT {again}"
    return "\n".join(
        [f"start: thought? ({' | '.join(answers)})", f"thought: {thought}", r"THOUGHT: /(.|\n)*/", *rules, ""]
    )


def _of_arguments(function: JsonObject) -> JsonObject:
    """The schema of a function's arguments, which are an object."""
    schema = function.get("parameters") or {}
    kinds = schema.get("type", "object")
    if "object" not in (kinds if isinstance(kinds, list) else [kinds]):
        name, kind = function["name"][:64], str(kinds)[:40]
        raise invalid("tools", f"parameters of {name!r} of type {kind}, expected object")
    return schema if "$ref" in schema else {**schema, "type": "object"}


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
