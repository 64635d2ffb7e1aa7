"""Earlier tool calls of a conversation, written the way one chat template wants them.

Clients send arguments as JSON text and null, nothing or "" as the content beside calls. Templates differ: some want an
object and fail on text, others the reverse; some write the calls only where content is none, others join content to
text; some take one call a message, or no text beside it; some know no calls at all. None of them says so, and what a
template does not expect it often drops without a word. So each is asked once, with a conversation of our own whose
words must come out again; what it drops or fails on is put differently.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from pyllama.errors import RequestError, TokenizerError
from pyllama.tokenizer.call_texts import HERMES, text_of_calls

Message = dict[str, Any]
#: messages to text; raises RequestError or TokenizerError
Render = Callable[[list[Message]], str]
Text = TypeVar("Text", bound=str)

_ABSENT = "absent"
_THOUGHTS = ("thinking", "reasoning_content", "reasoning")  # they stay with the calls
_PROBES_S = 2.0  # a slow template is asked no further, and what it has shown so far must do


class CallStyle(NamedTuple):
    """How a template wants calls.

    arguments  "object" or "text"
    content    beside calls without any: "", None or "absent"
    one        one call a message, each followed by its result
    apart      text beside calls goes into a message of its own, before them
    as_text    the template knows no calls: they are written into the content, in the form of that name
    as_user    nor a role for their results: they come from the user
    responses  results are given with the calls, as `tool_responses` (Gemma 4)
    """

    arguments: str = "object"
    content: str | None = ""
    one: bool = False
    apart: bool = False
    as_text: str = ""
    as_user: bool = False
    responses: bool = False

    def applied(self, messages: list[Message]) -> list[Message]:
        """The conversation with its calls in this style; the messages given are not changed."""
        if self.one:
            messages = list(_one_by_one(messages))
        result: list[Message] = []
        for message in messages:
            if self.responses and message.get("role") == "tool" and _add_response(result, message):
                continue
            if self.as_user and message.get("role") == "tool":
                _add_result(result, message)
                continue
            if not message.get("tool_calls"):
                result.append(message)
                continue
            message = {**message, "tool_calls": [self._call(call) for call in message["tool_calls"]]}
            content = message.pop("content", None)
            if self.as_text:
                text = text_of_calls(self.as_text, message.pop("tool_calls"))
                result.append({**message, "content": f"{content}\n{text}" if content else text})
                continue
            if content and self.apart:
                rest = {key: value for key, value in message.items() if key not in ("tool_calls", *_THOUGHTS)}
                result.append({**rest, "content": content})
                content = None
            if content:
                message["content"] = content
            elif self.content != _ABSENT:
                message["content"] = self.content
            result.append(message)
        return result

    def _call(self, call: Any) -> Any:
        """A call, with "function" around it or without."""
        if not isinstance(call, dict):
            return call
        if isinstance(call.get("function"), dict):
            return {**call, "function": self._call(call["function"])}
        if "arguments" not in call:
            return call
        return {**call, "arguments": self._arguments(call["arguments"])}

    def _arguments(self, arguments: Any) -> Any:
        if self.arguments == "text":
            return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        if not isinstance(arguments, str):
            return arguments
        try:
            found = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            return arguments
        return found if isinstance(found, dict) else arguments


def _one_by_one(messages: list[Message]) -> Iterator[Message]:
    """Each call in a message of its own, followed by its result; results without an id follow in order."""
    index = 0
    while index < len(messages):
        message = messages[index]
        index += 1
        calls = message.get("tool_calls")
        if not isinstance(calls, list) or len(calls) < 2:
            yield message
            continue
        results = []
        while index < len(messages) and messages[index].get("role") == "tool":
            results.append(messages[index])
            index += 1
        for number, call in enumerate(calls):
            content = {"content": message.get("content")} if number == 0 and "content" in message else {}
            yield {**{k: v for k, v in message.items() if k != "content"}, **content, "tool_calls": [call]}
            own = [
                r for r in results if isinstance(call, dict) and call.get("id") and r.get("tool_call_id") == call["id"]
            ]
            if not own and results and not any(r.get("tool_call_id") for r in results):
                own = results[:1]
            yield from own
            results = [result for result in results if not any(result is used for used in own)]
        yield from results


def _add_result(messages: list[Message], result: Message) -> None:
    text = f"<tool_response>\n{result.get('content') or ''}\n</tool_response>"
    if messages and messages[-1].get("role") == "user":  # roles must alternate in many templates
        messages[-1] = {**messages[-1], "content": f"{messages[-1].get('content') or ''}\n{text}"}
    else:
        messages.append({"role": "user", "content": text})


def _add_response(messages: list[Message], result: Message) -> bool:
    """Puts a result beside the calls it is of; whether there are such."""
    if not messages or not messages[-1].get("tool_calls"):
        return False
    content = result.get("content") or ""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    name = result.get("name") or next(
        (
            call.get("function", call).get("name")
            for call in messages[-1]["tool_calls"]
            if isinstance(call, dict) and call.get("id") == result.get("tool_call_id")
        ),
        None,
    )
    response = {"name": name, "response": found if isinstance(found, dict) else content}
    before = messages[-1].get("tool_responses") or []
    messages[-1] = {**messages[-1], "tool_responses": [*before, response]}
    return True


def tools_elsewhere(source: str, given: dict[str, Any]) -> dict[str, Any]:
    """What a template sees, with the tools where it looks for them: SmolLM3's under `xml_tools`, unless the request has
    told which kind it wants; Phi-4-mini's as text in the system message."""
    tools = given.get("tools")
    if not tools:
        return given
    if "xml_tools" in source and not (given.get("xml_tools") or given.get("python_tools")):
        return {**given, "xml_tools": tools}
    if "'tools' in message" not in source:
        return given
    functions = [tool.get("function", tool) if isinstance(tool, dict) else tool for tool in tools]
    text, messages = json.dumps(functions, ensure_ascii=False), given["messages"]
    if messages and messages[0].get("role") == "system":
        first, rest = messages[0], messages[1:]
    else:
        first, rest = {"role": "system", "content": ""}, messages
    return {**given, "messages": [{"tools": text, **first}, *rest]}


class ToolTurns:
    """What one template wants, found out when the first conversation with a call comes.

    responses  whether it speaks of `tool_responses`: then it is asked first whether results go there
    form       in which its model writes calls, should it know none (call_texts.py)
    """

    def __init__(self, *, responses: bool = False, form: str = HERMES) -> None:
        self._style: CallStyle | None = None
        self._responses = responses
        self._form = form

    def render(self, messages: list[Message], render: Callable[[list[Message]], Text], probe: Render) -> Text:
        """The text of a conversation.

        render  renders the conversation, with all that the request gives
        probe   renders one of ours, with nothing of the request's
        """
        if not any(message.get("tool_calls") for message in messages):
            return render(messages)
        if self._style is None:
            own = CallStyle(responses=True)
            takes_them = self._responses and not _marks_results(probe) and _score(probe, own, 2, result=_RESULT)
            self._style = own if takes_them else _style_of(probe, self._form)
        end = time.monotonic() + _PROBES_S
        try:
            return render(self._style.applied(messages))
        except (RequestError, TokenizerError) as error:
            first = error
        # A conversation may be refused for what ours had not: gpt-oss's for text and thoughts beside a call.
        for style in (self._style._replace(apart=True), *_styles()):
            if time.monotonic() > end:
                break
            if style == self._style:
                continue
            try:
                text = render(style.applied(messages))
            except (RequestError, TokenizerError):
                continue
            if _shows(text, messages):
                return text
        raise first


def _shows(text: str, messages: list[Message]) -> bool:
    """Whether the name of every call is in the text, whatever stands in for characters of it (marks.py)."""
    text = getattr(text, "plain", text)
    calls = [call for message in messages for call in message.get("tool_calls") or () if isinstance(call, dict)]
    functions = [call["function"] if isinstance(call.get("function"), dict) else call for call in calls]
    return all(str(function.get("name")) in text for function in functions)


def _styles() -> Iterator[CallStyle]:
    for arguments in ("object", "text"):
        for content in ("", None, _ABSENT):
            yield CallStyle(arguments, content)


# --- the conversation that a template is asked with ---

_NAMES = ("probe_first", "probe_second")
_TEXT, _RESULT = "probe text", "probe result"
_NEAR = 80  # characters between a mark and the result that it is of
PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "a function",
        "parameters": {
            "type": "object",
            "properties": {"probe_key": {"type": "string", "description": "a text"}},
            "required": ["probe_key"],
        },
    },
}


def _marks_results(probe: Render) -> bool:
    """Whether a template that speaks of `tool_responses` marks results that are messages of their own as well."""
    try:
        before, _, _ = probe(CallStyle().applied(_conversation(1, ""))).partition(_RESULT)
    except (RequestError, TokenizerError):
        return False
    return "tool_response" in before[-_NEAR:]


def _style_of(probe: Render, form: str) -> CallStyle:
    end = time.monotonic() + _PROBES_S
    scored = []
    for order, style in enumerate(_styles()):
        if time.monotonic() > end:
            break
        score = _score(probe, style, 1)
        if score == (0, 0):
            scored = [(score, order, style)]
            break
        if score is not None:
            scored.append((score, order, style))
    if not scored:
        for style in (CallStyle(as_text=form), CallStyle(as_text=form, as_user=True)):
            if _score(probe, style, 1, result=_RESULT) is not None:
                return style
        return CallStyle()
    style = min(scored)[2]
    if time.monotonic() < end and _score(probe, style, 2) is None:
        one = style._replace(one=True)
        style = one if _score(probe, one, 2) is not None else style
    if time.monotonic() < end and _score(probe, style, 1, _TEXT) is None:
        apart = style._replace(apart=True)
        if _score(probe, apart, 1, _TEXT) is not None:
            style = apart
    return style


def _score(probe: Render, style: CallStyle, calls: int, content: str = "", result: str = "") -> tuple[int, int] | None:
    """How much is wrong with a rendering: arguments that are no JSON, words for nothing. None: something is lost."""
    try:
        text = probe(style.applied(_conversation(calls, content)))
    except (RequestError, TokenizerError):
        return None
    wanted = [*_NAMES[:calls], *(f"value of {name}" for name in _NAMES[:calls]), content, result]
    if not all(word in text for word in wanted):
        return None
    return (text.count('\\"probe_key') + text.count("'probe_key'"), text.count("None") + text.count("null"))


def _conversation(calls: int, content: str) -> list[Message]:
    ids = ["probe0001", "probe0002"]  # nine characters: Mistral's templates insist on them
    made = [
        {
            "id": ids[i],
            "type": "function",
            "function": {"name": _NAMES[i], "arguments": {"probe_key": f"value of {_NAMES[i]}"}},
        }
        for i in range(calls)
    ]
    results = [{"role": "tool", "tool_call_id": ids[i], "name": _NAMES[i], "content": _RESULT} for i in range(calls)]
    return [
        {"role": "user", "content": "probe question"},
        {"role": "assistant", "content": content, "tool_calls": made},
        *results,
    ]
