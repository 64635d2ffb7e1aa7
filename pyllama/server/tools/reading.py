"""The text of calls, as models write it, to names and arguments; None for a text that is anything else.

JSON objects with a name and arguments, single, in lists or one after the other, also with the doubled braces that
Qwen2.5-Coder's template shows; Mistral's name[ARGS]{...}; Qwen3-Coder's <function=name> with <parameter=key> or, as
Llama 3.1 and Functionary have it, JSON in it; Llama's [name(key=value)] and name.call(key=value).
"""

import ast
import json
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from pyllama.server.json_object import JsonObject, no_constant

Call = tuple[str, JsonObject]
#: name: its function, as the request has it
Offered = Mapping[str, Mapping[str, Any]]

PYTHON_TAG = "<|python_tag|>"
#: Keys of an object that is a call. Any other makes it plain JSON.
KEYS = frozenset(("name", "arguments", "parameters", "id", "type", "function"))
#: What stands around calls, besides the family's own marker.
TAGS = ("tool_call", "tool_calls", "tools", "tool", "function_call", "function_calls", "functioncall")
#: Languages of a ``` block that may hold calls.
LANGUAGES = ("", "json", "jsonc", "tool_call", "tool_calls", "tool", "tool_code", "function_call", "xml", "plaintext")

_WRAPPER = re.compile(
    rf"```(?i:{'|'.join(LANGUAGES)})(?=[ \t\r\n{{\[<])|```|</?(?:{'|'.join(TAGS)})>|{re.escape(PYTHON_TAG)}"
)
_STRING = re.compile(r'("(?:[^"\\]|\\.)*(?:"|\Z))', re.DOTALL)
_FUNCTION = re.compile(r"<function=([^>\n]+)>\s*")
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)(?:\n?</parameter>\s*|(?=<parameter=)|\Z)", re.DOTALL)
_END = "</function>"
_MAX_PYTHON = 20_000  # characters: a parser of Python is no place for more


def read(text: str, offered: Offered, *, mistral: bool = False) -> list[Call] | None:
    """All calls of a text that is nothing but calls of functions that are offered."""
    by_name = mistral and text.lstrip()[:1] not in ("[", "{")
    calls = _read_mistral(text) if by_name else _read(text, offered)
    if not calls or not all(name in offered and isinstance(arguments, dict) for name, arguments in calls):
        return None
    return calls


def _read(text: str, offered: Offered) -> list[Call] | None:
    for candidate in _candidates(text):
        calls = _read_values(candidate, offered)
        if calls is not None:
            return calls
    return _read_python(_unwrapped(text), offered)


def _read_values(text: str, offered: Offered) -> list[Call] | None:
    """Calls one after the other, in blocks and tags or not, with white space, commas or semicolons between."""
    calls: list[Call] = []
    at = 0
    while at < len(text):
        if text[at] in " \t\r\n;,":
            at += 1
        elif found := _WRAPPER.match(text, at):
            at = found.end()
        elif found := _FUNCTION.match(text, at):
            read = _read_function(text, found.end(), found[1].strip().strip("\"'"), offered)
            if read is None:
                return None
            call, at = read
            calls.append(call)
        else:
            value, at = _read_value(text, at)
            if value == []:
                return None
            for item in value if isinstance(value, list) else [value]:
                made = _call_of(item, offered)
                if made is None:
                    return None
                calls.append(made)
    return calls


def _unwrapped(text: str) -> str:
    """The text without the blocks and tags that begin it, and those that end it."""
    at = 0
    while found := re.compile(rf"\s*(?:{_WRAPPER.pattern})").match(text, at):
        at = found.end()
    return re.sub(rf"(?:\s*(?:```|</?(?:{'|'.join(TAGS)})>))*\s*\Z", "", text[at:].strip())


# --- JSON ---

_DECODER = json.JSONDecoder(parse_constant=no_constant)


def _read_value(text: str, at: int) -> tuple[Any, int]:
    """The value of JSON at a place, None if there is none, and where it ends."""
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None, len(text)


def loaded(text: str) -> Any:
    """The value that a text spells in JSON; None where it spells none, or null."""
    value, end = _read_value(text.strip(), 0)
    return value if end == len(text.strip()) else None


def _candidates(text: str) -> list[str]:
    """The text, and if it has doubled braces: those around the calls single, closed as often or not; all single."""
    if not any(re.search(r"\{\s*\{", piece) for piece in _STRING.split(text)[::2]):
        return [text]
    opened_once = _outside_strings(text, lambda piece: re.sub(r"\{(\s*)\{(?=\s*$)", r"{\1", piece))
    all_once = _outside_strings(text, lambda piece: re.sub(r"(\{|\})\1", r"\1", piece))
    return [text, _closed_once(opened_once), all_once]


def _outside_strings(text: str, change: Callable[[str], str]) -> str:
    """The text, changed where it is no JSON string."""
    pieces = _STRING.split(text)
    pieces[::2] = map(change, pieces[::2])
    return "".join(pieces)


def _closed_once(text: str) -> str:
    """The text without the braces that close nothing."""
    opened: list[str] = []

    def closes_nothing(char: str) -> bool:
        if char in "{[":
            opened.append(char)
        elif char in "}]":
            if char == "}" and (not opened or opened[-1] == "["):
                return True
            if opened:
                opened.pop()
        return False

    return _outside_strings(text, lambda piece: "".join(char for char in piece if not closes_nothing(char)))


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
        return None if (offered[name].get("parameters") or {}).get("required") else (name, {})
    arguments = given[0]
    if isinstance(arguments, str):
        arguments = loaded(arguments) if arguments.strip() else {}
    return (name, arguments) if isinstance(arguments, dict) else None


# --- other forms ---


def _read_mistral(text: str) -> list[Call] | None:
    """Since 2025: name[ARGS]{...}, each behind a marker of its own."""
    calls = []
    text = text.strip()
    while text:
        found = re.match(r"(?:\[TOOL_CALLS\]\s*)?([^\[{]+?)\s*(?:\[CALL_ID\]\s*[^\[{]*)?(?:\[ARGS\]\s*)?(?=\{)", text)
        if not found:
            return None
        arguments, end = _read_value(text, found.end())
        calls.append((found[1], arguments))
        text = text[end:].strip()
    return calls


def _read_function(text: str, at: int, name: str, offered: Offered) -> tuple[Call, int] | None:
    """What follows <function=name>: the call, and where it ends."""
    if name not in offered:
        return None
    arguments: JsonObject = {}
    if text.startswith("{", at):
        arguments, at = _read_value(text, at)
        at += len(text[at:]) - len(text[at:].lstrip())
    else:
        types = (offered[name].get("parameters") or {}).get("properties") or {}
        while found := _PARAMETER.match(text, at):
            key, value, at = found[1].strip(), found[2], found.end()
            if not found[0].rstrip().endswith("</parameter>"):
                at = found.start(2) + (value.find(_END) if _END in value else len(value))
                value = text[found.start(2) : at].rstrip("\n")
            arguments[key] = _typed(value, types.get(key))
    if text.startswith(_END, at):
        at += len(_END)
    elif at < len(text):
        return None
    return (name, arguments), at


def _typed(value: str, schema: Any) -> Any:
    """A parameter's text as the schema has it: text stays text, anything else is JSON if it can be."""
    kinds = schema.get("type") if isinstance(schema, dict) else None
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(kinds, list) and "string" in kinds and not (value == "null" and "null" in kinds):
        return value
    if isinstance(schema, dict) and value in (schema.get("enum") or ()):
        return value
    text = {"True": "true", "False": "false", "None": "null"}.get(value.strip(), value)
    if text.strip() == "null":
        return None
    found = loaded(text)
    return value if found is None else found


def _read_python(text: str, offered: Offered) -> list[Call] | None:
    """[name(key=value), ...] or name.call(key=value), with literals as values."""
    head = re.match(r"(\[?)\s*([^(]*?)(\.call)?\s*\(", text)
    if not head or head[2] not in offered or bool(head[1]) == bool(head[3]) or len(text) > _MAX_PYTHON:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in a model's strings
            tree = ast.parse(text, mode="eval").body
        calls = tree.elts if isinstance(tree, ast.List) else [tree]
        return [_python_call(call) for call in calls]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _python_call(call: ast.expr) -> Call:
    if not isinstance(call, ast.Call) or call.args or any(word.arg is None for word in call.keywords):
        raise ValueError("expected a call with named arguments")
    arguments = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    # As JSON has it: a tuple is a list, and what JSON does not know is refused.
    return ast.unparse(call.func).removesuffix(".call"), json.loads(json.dumps(arguments, allow_nan=False))
