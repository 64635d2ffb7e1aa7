"""A request of OpenAI's Responses API to the one inside: items to messages, flat tools to nested ones."""

from typing import Any

from pyllama.server.errors import invalid, unsupported
from pyllama.server.json_object import JsonObject
from pyllama.server.schemas import CHAT
from pyllama.server.validate import check

_SAME = ("model", "temperature", "top_p", "top_k", "min_p", "seed", "stream", "user", "parallel_tool_calls")
_REFUSED = {
    "background": "answers are written while the client waits",
    "conversation": "this server keeps none; use previous_response_id",
    "prompt": "this server keeps no prompts",
}


def conversation_of(body: JsonObject, before: list[JsonObject]) -> JsonObject:
    """The conversation that a checked body asks for. Raises ApiError for what is not supported.

    before  messages that it goes on after
    """
    for name, why in _REFUSED.items():
        if body.get(name):
            raise unsupported(name, f"not supported: {why}")
    if body.get("top_logprobs"):
        raise unsupported("top_logprobs", "not supported here; /v1/chat/completions has log-probabilities")
    messages = [{"role": "system", "content": body["instructions"]}] if body.get("instructions") else []
    messages += before + messages_of(body["input"])
    found = {name: body[name] for name in _SAME if body.get(name) is not None}
    found |= {"messages": messages, "max_tokens": body.get("max_output_tokens")}
    variables = dict(body.get("chat_template_kwargs") or {})
    effort = (body.get("reasoning") or {}).get("effort")
    if effort is not None:
        variables.setdefault("enable_thinking", effort not in ("none", "minimal"))
        found["reasoning_effort"] = effort
    found["chat_template_kwargs"] = variables
    form = (body.get("text") or {}).get("format")
    if form:
        found["response_format"] = {"type": form["type"], "json_schema": {"schema": form.get("schema")}}
    if body.get("tools"):
        found["tools"] = [_nested(tool) for tool in body["tools"]]
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice["type"] == "allowed_tools":
        tools = [_nested(tool) for tool in choice.get("tools") or ()]
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": tools}}
    elif isinstance(choice, dict):
        choice = _nested(choice)
    found["tool_choice"] = choice
    check(found, CHAT)
    return found


def _nested(tool: JsonObject) -> JsonObject:
    kind = tool.get("type") or "function"
    if kind != "function":
        return {"type": kind}
    return {"type": kind, "function": {name: value for name, value in tool.items() if name != "type"}}


def messages_of(given: str | list[JsonObject]) -> list[JsonObject]:
    """Messages of a request's input, or of a response's output. Raises ApiError.

    What the model thought is not told to it again. Calls that follow one another, or a message, are one message's.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[JsonObject] = []
    for index, item in enumerate(given):
        at, kind = f"input[{index}]", item.get("type") or "message"
        if kind == "message":
            role, content = (_needed(item, name, at) for name in ("role", "content"))
            messages.append({"role": role, "content": _text(content, f"{at}.content")})
        elif kind == "function_call":
            function = {name: _needed(item, name, at) for name in ("name", "arguments")}
            if not (messages and messages[-1]["role"] == "assistant"):
                messages.append({"role": "assistant", "content": ""})
            call = {"id": _needed(item, "call_id", at), "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            content = _text(item.get("output") or "", f"{at}.output")
            message = {"role": "tool", "tool_call_id": _needed(item, "call_id", at), "content": content}
            names = _names_of_calls(messages)
            messages.append(message | ({"name": names[item["call_id"]]} if item["call_id"] in names else {}))
        elif kind != "reasoning":
            raise unsupported(at, f"an item of type {kind[:40]!r}, expected a message or a function call")
    return messages


def _names_of_calls(messages: list[JsonObject]) -> dict[str, str]:
    last = next((message for message in reversed(messages) if message.get("tool_calls")), None)
    return {call["id"]: call["function"]["name"] for call in last["tool_calls"]} if last else {}


def _needed(item: JsonObject, name: str, where: str) -> Any:
    if item.get(name) is None:
        raise invalid(f"{where}.{name}", "missing")
    return item[name]


def _text(content: str | list[JsonObject], where: str) -> str:
    if isinstance(content, str):
        return content
    for index, part in enumerate(content):
        if part["type"] not in ("input_text", "output_text", "text", "refusal"):
            raise unsupported(f"{where}[{index}]", f"a part of type {part['type'][:40]!r}, expected text")
    return "".join(part.get("text") or part.get("refusal") or "" for part in content)
