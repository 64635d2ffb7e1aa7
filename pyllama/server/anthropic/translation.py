"""A request of Anthropic's API to the one inside: a conversation with OpenAI's fields (CHAT in schemas.py)."""

import json

from pyllama.server.errors import invalid, unsupported
from pyllama.server.json_object import JsonObject
from pyllama.server.schemas import CHAT
from pyllama.server.validate import check

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_SAME = ("model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stream")
#: What the model thought is not told to it again.
_PASSED_OVER = ("thinking", "redacted_thinking")


def conversation_of(body: JsonObject) -> JsonObject:
    """The conversation that a checked body asks for. Raises ApiError for parts that are no text."""
    messages: list[JsonObject] = []
    if body.get("system"):
        messages.append({"role": "system", "content": _text(body["system"], "system")})
    names: dict[str, str] = {}  # of the calls, by their ids
    for index, message in enumerate(body["messages"]):
        messages += _messages(message, f"messages[{index}].content", names)
    if messages and messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        messages[-1]["prefix"] = True
    found = {name: body[name] for name in _SAME if body.get(name) is not None}
    found |= {"messages": messages, "stop": body.get("stop_sequences")}
    found["user"] = (body.get("metadata") or {}).get("user_id")
    thinks = (body.get("thinking") or {}).get("type") in ("enabled", "adaptive")
    found["chat_template_kwargs"] = {"enable_thinking": thinks}
    form = body.get("output_format") or (body.get("output_config") or {}).get("format")
    if form:
        found["response_format"] = {"type": form["type"], "json_schema": {"schema": form.get("schema")}}
    if body.get("tools"):
        found["tools"] = [_tool(tool) for tool in body["tools"]]
    choice = body.get("tool_choice")
    if choice:
        named = {"type": "function", "function": {"name": choice.get("name")}}
        found["tool_choice"] = _CHOICES.get(choice["type"], named)
        found["parallel_tool_calls"] = not choice.get("disable_parallel_tool_use")
    check(found, CHAT)
    return found


def _tool(tool: JsonObject) -> JsonObject:
    kind = tool.get("type") or "custom"
    if kind != "custom":
        return {"type": kind}
    function = {"name": tool["name"], "parameters": tool.get("input_schema"), "description": tool.get("description")}
    return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


def _messages(message: JsonObject, where: str, names: dict[str, str]) -> list[JsonObject]:
    """One of Anthropic's as those of OpenAI that say the same: results of calls are messages of their own there."""
    role, content = message["role"], message["content"]
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    results, texts, calls = [], [], []
    for index, block in enumerate(content):
        kind, at = block["type"], f"{where}[{index}]"
        if kind == "tool_use" and role == "assistant":
            name, call_id = _needed(block, "name", at), _needed(block, "id", at)
            names[call_id] = name
            arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
            calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}})
        elif kind == "tool_result" and role == "user":
            call_id = _needed(block, "tool_use_id", at)
            result = {"role": "tool", "tool_call_id": call_id, "content": _text(block.get("content") or "", at)}
            results.append(result | ({"name": names[call_id]} if call_id in names else {}))
        elif kind not in _PASSED_OVER:
            texts.append(_text([block], at))
    said: JsonObject = {"role": role, "content": "\n\n".join(texts) if role == "user" else "".join(texts)}
    if calls:
        said["tool_calls"] = calls
    return results + ([said] if texts or calls or not results else [])


def _needed(block: JsonObject, name: str, where: str) -> str:
    if not block.get(name):
        raise invalid(f"{where}.{name}", "missing")
    return block[name]


def _text(content: str | list[JsonObject], where: str) -> str:
    if isinstance(content, str):
        return content
    for block in content:
        if block["type"] != "text" or not isinstance(block.get("text"), str):
            raise unsupported(where, f"a block of type {block['type'][:40]!r}, expected text")
    return "\n\n".join(block["text"] for block in content)
