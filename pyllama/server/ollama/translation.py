"""A request of Ollama's API to the one inside: a conversation with OpenAI's fields (CHAT in server/schemas.py)."""

import json

from pyllama.server.errors import ApiError, invalid, unsupported
from pyllama.server.json_object import JsonObject
from pyllama.server.schemas import CHAT
from pyllama.server.validate import check

_SAME = ("temperature", "top_k", "top_p", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty")


def sampling_of(body: JsonObject) -> JsonObject:
    """The fields that say how to sample. Raises ApiError for those that would make another answer of it."""
    options = body.get("options") or {}
    found = {name: options[name] for name in _SAME if options.get(name) is not None}
    found["repetition_penalty"] = options.get("repeat_penalty")
    most = options.get("num_predict") or 0
    found["max_tokens"] = most if most > 0 else None
    found["stream"] = body.get("stream") is not False
    for name in ("images", "template", "context"):
        if body.get(name):
            raise unsupported(name, "not supported")
    return found


def conversation_of(body: JsonObject, messages: list[JsonObject]) -> JsonObject:
    """The conversation that a checked body asks for. Raises ApiError.

    messages  Ollama's
    """
    found = sampling_of(body) | {"messages": _messages(messages)}
    think = body.get("think")
    if think is not None:
        found["chat_template_kwargs"] = {"enable_thinking": think not in (False, "none")}
        if isinstance(think, str):
            found["reasoning_effort"] = think
    form = body.get("format")
    if isinstance(form, dict):
        found["response_format"] = {"type": "json_schema", "json_schema": {"schema": form}}
    elif form:
        if form != "json":
            raise invalid("format", f"got {form[:60]!r}, expected 'json' or a schema")
        found["response_format"] = {"type": "json_object"}
    found["tools"] = body.get("tools")
    check(found, CHAT)
    return found


def _messages(given: list[JsonObject]) -> list[JsonObject]:
    """Calls have no ids of their own here: results are told apart by their order."""
    messages: list[JsonObject] = []
    waiting: list[tuple[str, str]] = []  # (name, id) of calls without a result yet
    for index, message in enumerate(given):
        if message.get("images"):
            raise ApiError(400, f"messages[{index}].images: this model takes text only", "messages", "unsupported")
        said: JsonObject = {"role": message["role"], "content": message.get("content") or ""}
        calls = [
            _call(call, call.get("id") or f"call_{index}_{number}")
            for number, call in enumerate(message.get("tool_calls") or ())
        ]
        if calls:
            said["tool_calls"] = calls
            waiting = [(call["function"]["name"], call["id"]) for call in calls]
        if message["role"] == "tool":
            said |= _answered(message, waiting)
        messages.append(said)
    return messages


def _call(call: JsonObject, call_id: str) -> JsonObject:
    arguments = call["function"].get("arguments") or {}
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {"id": call_id, "type": "function", "function": {"name": call["function"]["name"], "arguments": arguments}}


def _answered(message: JsonObject, waiting: list[tuple[str, str]]) -> JsonObject:
    """The fields that tell which call a result is of: the one that is named, or else the first without a result."""
    given = (message.get("tool_name"), message.get("tool_call_id"))
    if not waiting:
        return {field: value for field, value in zip(("name", "tool_call_id"), given) if value is not None}
    found = next((call for call in waiting if given[0] == call[0] or given[1] == call[1]), waiting[0])
    waiting.remove(found)
    return {"name": found[0], "tool_call_id": given[1] or found[1]}
