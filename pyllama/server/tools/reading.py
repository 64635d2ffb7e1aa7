"""The text of calls, as models write it, to names and arguments; None for a text that is anything else.

JSON objects with a name and arguments, single, in lists or one after the other, also with the doubled braces that
Qwen2.5-Coder's template shows; Mistral's name[ARGS]{...}; Qwen3-Coder's <function=name> with <parameter=key> or, as
Llama 3.1 and Functionary have it, JSON in it; Llama's [name(key=value)] and name.call(key=value).
"""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

Call = tuple[str, dict[str, Any]]
#: name: its function, as the request has it
Offered = Mapping[str, Mapping[str, Any]]

PYTHON_TAG = "<|python_tag|>"
#: Keys of an object that is a call. Any other makes it plain JSON.
KEYS = frozenset(("name", "arguments", "parameters", "id", "type", "function"))
#: What stands around calls, besides the family's own marker.
TAGS = ("tool_call", "tool_calls", "tools", "tool", "function_call", "function_calls", "functioncall")
#: Languages of a ``` block that may hold calls.
LANGUAGES = ("", "json", "jsonc", "tool_call", "tool_calls", "tool", "tool_code", "function_call", "xml", "plaintext")

_FENCE = re.compile(r"```[a-z_]*[ \t]*(?=[\r\n{\[<]|$)|```")
_TAG = re.compile("</?(?:%s)>" % "|".join(TAGS))
_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
_MAX_PYTHON = 20_000  # characters: a parser of Python is no place for more


def read(text: str, offered: Offered, *, mistral: bool = False) -> list[Call] | None:
    """All calls of a text that is nothing but calls of functions that are offered."""
    calls = _read_mistral(text) if mistral and not text.lstrip().startswith("[") else _read(text, offered)
    if not calls or not all(_acceptable(name, arguments, offered) for name, arguments in calls):
        return None
    return calls


def _acceptable(name: Any, arguments: Any, offered: Offered) -> bool:
    return isinstance(name, str) and name in offered and isinstance(arguments, dict)


def _read(text: str, offered: Offered) -> list[Call] | None:
    if "<function=" in text and not text.lstrip().startswith(("{", "[")):
        return _read_functions(text, offered)
    body = _without_wrappers(text)
    if PYTHON_TAG in body:
        body = body.replace(PYTHON_TAG, "", 1)
    body = body.strip()
    if body.startswith(("{", "[")):
        calls = _read_json(body, offered)
        if calls is not None:
            return calls
    return _read_python(body) if body.endswith((")", "]")) else None


def _without_wrappers(text: str) -> str:
    """Fences and tags at both ends gone, and between calls; those in strings of JSON stay."""
    return _outside_strings_replaced(text, f"{_FENCE.pattern}|{_TAG.pattern}", " ")


def _outside_strings(text: str) -> list[tuple[int, int]]:
    """Where the text is no JSON string: (start, end) of each stretch."""
    stretches, at = [], 0
    for found in re.finditer(r'"(?:[^"\\]|\\.)*(?:"|\Z)', text, re.DOTALL):
        stretches.append((at, found.start()))
        at = found.end()
    stretches.append((at, len(text)))
    return stretches


# --- JSON ---


def _read_json(text: str, offered: Offered) -> list[Call] | None:
    candidates = [text]
    if re.match(r"\[?\s*\{\s*\{", text):
        candidates += _single_braces(text)
    for candidate in candidates:
        values = _json_values(candidate)
        if values is not None:
            return _calls_of(values, offered)
    return None


def _single_braces(text: str) -> list[str]:
    """Doubled braces taken for single ones: those around the calls only, closed as often or not, or all."""
    opened_once = _outside_strings_replaced(text, r"\{(\s*)\{(?=\s*$)", r"{\1")
    return [_closed_once(opened_once), _outside_strings_replaced(text, r"(\{|\})\1", r"\1")]


def _outside_strings_replaced(text: str, pattern: str, replacement: str) -> str:
    pieces, at = [], 0
    for start, end in _outside_strings(text):
        pieces.append(text[at:start])
        pieces.append(re.sub(pattern, replacement, text[start:end]))
        at = end
    pieces.append(text[at:])
    return "".join(pieces)


def _closed_once(text: str) -> str:
    """The text without the braces that close nothing."""
    opened: list[str] = []
    result, at = [], 0
    for start, end in _outside_strings(text):
        result.append(text[at:start])
        for char in text[start:end]:
            if char in "{[":
                opened.append(char)
            elif char in "}]":
                if char == "}" and (not opened or opened[-1] == "["):
                    continue
                if opened:
                    opened.pop()
            result.append(char)
        at = end
    result.append(text[at:])
    return "".join(result)


def _json_values(text: str) -> list[Any] | None:
    """Values of JSON one after the other, with white space, commas or semicolons between."""
    decoder, values, at = json.JSONDecoder(parse_constant=_no_constant), [], 0
    while at < len(text):
        if text[at] in " \t\r\n;,":
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        values += value if isinstance(value, list) else [value]
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _calls_of(values: list[Any], offered: Offered) -> list[Call] | None:
    calls = []
    for value in values:
        call = _call_of(value, offered)
        if call is None:
            return None
        calls.append(call)
    return calls


def _call_of(value: Any, offered: Offered) -> Call | None:
    if not isinstance(value, dict) or not KEYS.issuperset(value):
        return None
    if isinstance(value.get("function"), dict):  # as OpenAI writes it
        value = value["function"]
        if not KEYS.issuperset(value):
            return None
    name = value.get("name")
    if not isinstance(name, str) or name not in offered:
        return None
    given = [value[key] for key in ("arguments", "parameters") if value.get(key) is not None]
    if not given:
        # Only a name: a call of a function that needs nothing more, else a text that happens to have that key.
        return None if _required(offered[name]) else (name, {})
    arguments = given[0]
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, parse_constant=_no_constant) if arguments.strip() else {}
        except (ValueError, RecursionError):
            return None
    return (name, arguments) if isinstance(arguments, dict) else None


def _required(function: Mapping[str, Any]) -> Any:
    return (function.get("parameters") or {}).get("required")


# --- other forms ---


def _read_mistral(text: str) -> list[Call] | None:
    """Since 2025: name[ARGS]{...}, each behind a marker of its own."""
    decoder, calls = json.JSONDecoder(parse_constant=_no_constant), []
    text = text.strip()
    while text:
        found = re.match(r"(?:\[TOOL_CALLS\]\s*)?([^\[{]+?)\s*(?:\[CALL_ID\]\s*[^\[{]*)?(?:\[ARGS\]\s*)?(?=\{)", text)
        if not found:
            return None
        try:
            arguments, end = decoder.raw_decode(text, found.end())
        except (ValueError, RecursionError):
            return None
        calls.append((found[1], arguments))
        text = text[end:].strip()
    return calls


def _read_functions(text: str, offered: Offered) -> list[Call] | None:
    calls, rest, at = [], [], 0
    for found in _FUNCTION.finditer(text):
        rest.append(text[at : found.start()])
        at = found.end()
        name, body = found[1].strip().strip("\"'"), found[2].strip()
        if name not in offered:
            return None
        if body.startswith("{"):
            values = _json_values(body)
            if values is None or len(values) != 1:
                return None
            calls.append((name, values[0]))
            continue
        parameters = _PARAMETER.findall(body)
        if _PARAMETER.sub("", body).strip():
            return None
        types = (offered[name].get("parameters") or {}).get("properties") or {}
        calls.append((name, {key.strip(): _typed(value, types.get(key.strip())) for key, value in parameters}))
    rest.append(text[at:])
    outside = _TAG.sub("", _FENCE.sub("", "".join(rest))).replace(PYTHON_TAG, "")
    return None if outside.strip(" \t\r\n,;") else calls


def _typed(value: str, schema: Any) -> Any:
    """A parameter's text as the schema has it: text stays text, anything else is JSON if it can be."""
    kinds = schema.get("type") if isinstance(schema, dict) else None
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(kinds, list) and "string" in kinds and not (value == "null" and "null" in kinds):
        return value
    if isinstance(schema, dict) and value in (schema.get("enum") or ()):
        return value
    text = {"True": "true", "False": "false", "None": "null"}.get(value.strip(), value)
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return value


def _read_python(text: str) -> list[Call] | None:
    """[name(key=value), ...] or name.call(key=value), with literals as values."""
    if len(text) > _MAX_PYTHON:
        return None
    try:
        tree = ast.parse(text, mode="eval").body
        calls = tree.elts if isinstance(tree, ast.List) else [tree]
        result = []
        for call in calls:
            if not isinstance(call, ast.Call) or call.args or any(word.arg is None for word in call.keywords):
                return None
            name = ast.unparse(call.func)
            if isinstance(tree, ast.Call):
                if not name.endswith(".call"):
                    return None
                name = name.removesuffix(".call")
            arguments = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
            result.append((name, json.loads(json.dumps(arguments, allow_nan=False))))
        return result
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
