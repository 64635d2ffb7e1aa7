"""Tool calls: OpenAI's fields to what a chat template takes, and what the model writes back to OpenAI's fields.

Each family writes calls in its own form. Which one a model writes is told by its template, for the template shows the
model its own earlier calls in that form. Knows text; no tokens but the ones that stand for a form's marker.
"""

import json
import secrets
import string
from dataclasses import dataclass
from typing import Any

from pyllama.generation import overlap
from pyllama.server.errors import ApiError
from pyllama.server.grammar import embedded


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a family writes calls.

    name        for humans
    opening     what stands before a call; None: a call is all there is, and begins with a brace
    closing     what stands after it; None: it goes on to the end
    arguments   the key of the arguments beside "name"
    is_list     whether a forced call is written as a list of calls
    id_length   characters of a call's id; Mistral's templates insist on 9
    """

    name: str
    opening: str | None
    closing: str | None
    arguments: str = "arguments"
    is_list: bool = False
    id_length: int = 24

    def new_id(self) -> str:
        letters = string.ascii_letters + string.digits
        text = "".join(secrets.choice(letters) for _ in range(self.id_length))
        return text if self.id_length < 24 else "call_" + text


_HERMES, _MISTRAL = "<tool_call>", "[TOOL_CALLS]"
HERMES = ToolFormat("hermes", _HERMES, "</tool_call>")
MISTRAL = ToolFormat("mistral", _MISTRAL, None, is_list=True, id_length=9)
LLAMA = ToolFormat("llama", None, None, arguments="parameters")
_PYTHON_TAG = "<|python_tag|>"


def format_of(template: str | None) -> ToolFormat | None:
    """The form that a template's model writes calls in; None if the template takes no tools."""
    if not template or "tools" not in template:
        return None
    if _MISTRAL in template:
        return MISTRAL
    if _HERMES in template:
        return HERMES
    return LLAMA


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model made. arguments is JSON text."""

    id: str
    name: str
    arguments: str

    def as_openai(self, index: int | None = None) -> dict[str, Any]:
        call: dict[str, Any] = {} if index is None else {"index": index}
        return call | {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class ToolParser:
    """Text in pieces in; text that is no call, and calls, out. What might become a call is held back."""

    def __init__(self, form: ToolFormat):
        self._form = form
        self._held = ""
        self._in_call = False
        self._started = False  # whether any content was shown: white space before it is not
        self.calls = 0

    def push(self, piece: str) -> tuple[str, list[ToolCall]]:
        """(content, calls) that have become certain."""
        self._held += piece
        content, calls = "", []
        while True:
            if self._in_call:
                closing = self._form.closing
                end = self._held.find(closing) if closing else -1
                if closing is None or end < 0:
                    break
                text, self._held = self._held[:end], self._held[end + len(closing) :]
                self._in_call = False
                found = self._parse(text)
                calls += found
                if not found:
                    content += self._show(f"{self._form.opening}{text}{closing}")
            else:
                before, begun = self._look_for_call()
                content += self._show(before)
                if not begun:
                    break
                self._in_call = True
        return content, calls

    def finish(self) -> tuple[str, list[ToolCall]]:
        """What was held back, when no more comes."""
        text, self._held = self._held, ""
        if not self._in_call:
            return self._show(text), []
        calls = self._parse(text)
        return ("", calls) if calls else (self._show((self._form.opening or "") + text), [])

    def _look_for_call(self) -> tuple[str, bool]:
        """The text before the next call, and whether one begins."""
        opening, held = self._form.opening, self._held
        if opening is None:
            start = held.lstrip()
            if self._started or (start and start[0] != "{" and overlap(start, _PYTHON_TAG) != len(start)
                                 and not start.startswith(_PYTHON_TAG)):  # fmt: skip
                self._held = ""
                return held, False
            return "", start.startswith("{") or start.startswith(_PYTHON_TAG)
        at = held.find(opening)
        if at >= 0:
            self._held = held[at + len(opening) :]
            return held[:at], True
        keep = overlap(held, opening)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def _show(self, text: str) -> str:
        """Content; white space around calls is part of their form."""
        if not self._started or self.calls:
            if not text.strip():
                return ""
            text = text.lstrip() if self.calls else text
        self._started = True
        return text

    def _parse(self, text: str) -> list[ToolCall]:
        found = _mistral(text) if self._form is MISTRAL else _json_calls(text.replace(_PYTHON_TAG, ""))
        self.calls += len(found)
        return [ToolCall(self._form.new_id(), name, json.dumps(arguments)) for name, arguments in found]


def _json_calls(text: str) -> list[tuple[str, Any]]:
    """(name, arguments) of JSON objects or lists of them, one after the other; none if it is anything else."""
    decoder, calls, at = json.JSONDecoder(), [], 0
    while at < len(text):
        if text[at] in " \t\r\n;,":
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        for item in value if isinstance(value, list) else [value]:
            call = item.get("function", item) if isinstance(item, dict) else None
            if not isinstance(call, dict) or not isinstance(call.get("name"), str):
                return []
            arguments: Any = next((call[key] for key in ("arguments", "parameters") if call.get(key) is not None), {})
            if isinstance(arguments, str):
                try:
                    arguments = json.loads(arguments)
                except (ValueError, RecursionError):
                    return []
            calls.append((call["name"], arguments))
    return calls


def _mistral(text: str) -> list[tuple[str, Any]]:
    """A list of calls, or since 2025 name[ARGS]{...}, each behind a marker of its own."""
    if text.lstrip().startswith("["):
        return _json_calls(text)
    calls = []
    for part in text.split(_MISTRAL):
        name, brace, rest = part.replace("[ARGS]", "").partition("{")
        try:
            calls.append((name.split("[CALL_ID]")[0].strip(), json.loads(brace + rest)))
        except (ValueError, RecursionError):
            return []
    return calls if all(name for name, _ in calls) else []


# --- requests ---


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What a request says of tools.

    tools   for the template; None if there are none, or none may be called
    forced  the functions of which one must be called, else empty
    """

    tools: list[dict[str, Any]] | None
    forced: list[dict[str, Any]]


def tool_choice(body: dict[str, Any], form: ToolFormat | None) -> ToolChoice:
    """Checks `tools` and `tool_choice` of a chat request. Raises ApiError."""
    tools, choice = body.get("tools") or [], body.get("tool_choice")
    if not tools:
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "tool_choice: without tools", "tool_choice", "invalid_value")
        return ToolChoice(None, [])
    if form is None:
        raise ApiError(400, "tools: this model's chat template does not take any", "tools", "unsupported")
    if choice == "none":
        return ToolChoice(None, [])
    functions = [tool["function"] for tool in tools]
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        functions = [function for function in functions if function["name"] == name]
        if not functions:
            raise ApiError(400, f"tool_choice: no tool is called {name[:64]!r}", "tool_choice", "invalid_value")
        return ToolChoice(tools, functions)
    return ToolChoice(tools, functions if choice == "required" else [])


def forced_grammar(form: ToolFormat, functions: list[dict[str, Any]], marker_id: int | None) -> str:
    """A Lark grammar for one call of one of the functions. marker_id: the opening's token, if it is a control one."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": f["name"]}, form.arguments: f.get("parameters") or {"type": "object"}},
            "required": ["name", form.arguments],
            "additionalProperties": False,
        }
        for f in functions
    ]
    schema: dict[str, Any] = {"anyOf": calls}
    for f in functions:  # references in a function's parameters are from their own root
        definitions = {k: v for k, v in (f.get("parameters") or {}).items() if k in ("$defs", "definitions")}
        for key, value in definitions.items():
            schema[key] = {**schema.get(key, {}), **value}
    if form.is_list:
        definitions = {key: schema.pop(key) for key in ("$defs", "definitions") if key in schema}
        schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": 1, **definitions}
    parts = ["call"]
    if form.opening:
        newline = "\n" if form.closing else ""
        parts = ([f"<[{marker_id}]>"] if marker_id is not None else [json.dumps(form.opening + newline)]) + parts
        if form.closing:
            parts.append(json.dumps(newline + form.closing))
    return f"start: {' '.join(parts)}\ncall: {embedded(schema)}\n"


def messages_for_template(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI's messages as chat templates take them: text for parts, objects for the arguments of calls."""
    result = []
    for index, message in enumerate(messages):
        message = {key: value for key, value in message.items() if value is not None}
        if isinstance(message.get("content"), list):
            message["content"] = _text_of(message["content"], f"messages[{index}].content")
        elif "content" not in message:
            message["content"] = ""
        if message["role"] == "developer":
            message["role"] = "system"
        if message.get("tool_calls"):
            message["tool_calls"] = [_call_for_template(call) for call in message["tool_calls"]]
        result.append(message)
    return result


def _text_of(parts: list[dict[str, Any]], where: str) -> str:
    for index, part in enumerate(parts):
        if part["type"] != "text" or not isinstance(part.get("text"), str):
            at = f"{where}[{index}]"
            raise ApiError(400, f"{at}: a part of type {part['type'][:40]!r}, expected text", at, "unsupported")
    return "".join(part["text"] for part in parts)


def _call_for_template(call: dict[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    try:
        function["arguments"] = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        pass  # the template may take text as well
    return {**call, "type": "function", "function": function}
