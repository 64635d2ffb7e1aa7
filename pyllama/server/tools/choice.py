"""What a chat request says of tools: `tools`, `tool_choice` and `parallel_tool_calls`."""

from dataclasses import dataclass, field

from pyllama.server.errors import ApiError, invalid, unsupported
from pyllama.server.json_object import JsonObject
from pyllama.server.tools.forms import ToolFormat

Function = JsonObject


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What a request says of tools.

    tools     for the template; None if there are none, or none may be called
    forced    the functions of which one must be called, else empty
    offered   the functions that may be called, by name
    parallel  whether an answer may have several calls
    """

    tools: list[JsonObject] | None
    forced: list[Function]
    offered: dict[str, Function] = field(default_factory=dict)
    parallel: bool = True


def tool_choice(body: JsonObject, form: ToolFormat | None) -> ToolChoice:
    """Checks `tools` and `tool_choice` of a chat request. Raises ApiError.

    Tools that are no functions (web_search, code_interpreter, custom, ...) are left out: nobody here could run them,
    and the functions beside them still can be called. Alone, they are refused.
    """
    given, choice = body.get("tools") or [], body.get("tool_choice")
    if isinstance(choice, dict) and choice["type"] == "allowed_tools":
        return _allowed(body, choice, form)
    if not given:
        if choice not in (None, "none", "auto"):
            raise invalid("tool_choice", "without tools")
        return ToolChoice(None, [])
    tools = _functions(given)
    if choice == "none":
        return ToolChoice(None, [])
    if not tools:
        kinds = ", ".join(dict.fromkeys(tool["type"][:40] for tool in given))
        raise unsupported("tools", f"only of type {kinds}, expected at least one function")
    if form is None:
        raise unsupported("tools", "this model's chat template does not take any")
    functions = [tool["function"] for tool in tools]
    offered = {function["name"]: function for function in reversed(functions)}  # of two with one name, the first
    parallel = body.get("parallel_tool_calls") is not False
    if isinstance(choice, dict):
        if choice["type"] != "function":
            raise unsupported("tool_choice", f"of type {choice['type'][:40]!r}, expected a function")
        name = (choice.get("function") or {}).get("name")
        if name is None:
            raise ApiError(400, "tool_choice.function.name: missing", "tool_choice", "invalid_value")
        forced = [function for function in functions if function["name"] == name]
        if not forced:
            raise invalid("tool_choice", f"no tool is called {name[:64]!r}")
        return ToolChoice(tools, forced[:1], offered, parallel=False)
    return ToolChoice(tools, list(offered.values())[::-1] if choice == "required" else [], offered, parallel)


def _functions(given: list[JsonObject]) -> list[JsonObject]:
    for index, tool in enumerate(given):
        if tool["type"] == "function" and tool.get("function") is None:
            raise invalid(f"tools[{index}].function", "missing")
    return [tool for tool in given if tool["type"] == "function"]


def _allowed(body: JsonObject, choice: JsonObject, form: ToolFormat | None) -> ToolChoice:
    """tool_choice of type allowed_tools: some of the tools, as if no others were there to call."""
    allowed = choice.get("allowed_tools") or {}
    names = {(tool.get("function") or {}).get("name") for tool in allowed.get("tools") or ()}
    whole = tool_choice({**body, "tool_choice": allowed.get("mode") or "auto"}, form)
    offered = {name: function for name, function in whole.offered.items() if name in names}
    if not offered:
        raise ApiError(400, "tool_choice.allowed_tools: none of the tools", "tool_choice", "invalid_value")
    forced = [function for function in whole.forced if function["name"] in names]
    return ToolChoice(whole.tools, forced, offered, whole.parallel)
