"""POST /v1/chat/completions: a conversation in, its next message out."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from pyllama.engine import Stream
from pyllama.generation import AnswerOptions, Step
from pyllama.server import foreign_fields, logprobs, tools
from pyllama.server.continuation import FLAGS, Beginning, beginning_of
from pyllama.server.errors import ApiError
from pyllama.server.grammar import json_grammar, lark_grammar
from pyllama.server.grammar_process import Grammar
from pyllama.server.reply import Part, Reply
from pyllama.server.sampling import Wanted, wanted
from pyllama.server.schemas import CHAT
from pyllama.server.service import Service


async def create(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await service.read(request, CHAT)
    foreign_fields.refuse(body)
    beginning = beginning_of(body)
    top = _top_logprobs(body)
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    want = wanted(body, most, top, service.model.config.vocab_size, service.sampling_defaults)
    if service.tokenizer.chat_template is None:
        raise ApiError(400, "messages: this model has no chat template; use /v1/completions", "messages", "unsupported")
    choice = tools.tool_choice(body, service.tool_format)
    messages = tools.messages_for_template(body["messages"])
    prompt_ids = await service.in_text_thread(request, encode, service, messages, choice, beginning, body)
    grammar = _grammar(service, choice, body)
    guide = await service.guide(request, grammar, want.n) if grammar else None
    options: AnswerOptions = {"guide": guide, "show_special": choice.tools is not None}
    options["continuation"] = beginning.continue_final_message
    streams = service.submit([prompt_ids], want, request, body.get("user"), "messages", **options)
    answer = _Chat(service, streams, want, choice)
    del body, messages, choice, grammar  # an answer may take long
    return await answer.response(request)


def _top_logprobs(body: dict[str, Any]) -> int | None:
    top = body.get("top_logprobs")
    if body.get("logprobs"):
        return top or 0
    if top:
        raise ApiError(400, "top_logprobs: only with logprobs", "top_logprobs", "invalid_value")
    return None


def encode(
    service: Service, messages: list[dict], choice: tools.ToolChoice, beginning: Beginning, body: dict[str, Any]
) -> list[int]:
    """The prompt of a request with messages, which /tokenize shows."""
    options = {
        "tools": choice.tools,
        "parse_special": bool(body.get("parse_special")),
        "continue_final_message": beginning.continue_final_message,
        "add_generation_prompt": beginning.add_generation_prompt,
    }
    variables = dict(body.get("chat_template_kwargs") or {})
    for name in (*options, "messages"):
        if variables.pop(name, None) is not None and name not in FLAGS:
            at = f"chat_template_kwargs.{name}"
            raise ApiError(400, f"{at}: the server's own, expected another name", at, "invalid_value")
    return service.tokenizer.encode_chat(messages, **options, **variables)


def _grammar(service: Service, choice: tools.ToolChoice, body: dict[str, Any]) -> Grammar | None:
    """What restricts the tokens: a tool that must be called, or else the format asked for, unless one is called."""
    form = service.tool_format
    schema = _format(body.get("response_format"))
    if form is None or choice.tools is None or not (choice.forced or schema):
        return json_grammar(schema, "response_format") if schema else None
    marker = service.tokenizer.id_of(form.opening) if form.opening else None
    if marker not in service.tokenizer.special_ids:
        marker = None
    if choice.forced:
        return lark_grammar(tools.forced_grammar(form, choice.forced, marker, parallel=choice.parallel), "tools")
    assert schema is not None
    functions = list(choice.offered.values())
    json_grammar(schema, "response_format")  # whose fault an error is
    return lark_grammar(tools.calls_or(schema, form, functions, marker, parallel=choice.parallel), "tools")


def _format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """The schema that `response_format` asks for, in json_schema (OpenAI) or beside the type (llama.cpp, Together)."""
    if not given or given["type"] == "text":
        return None
    own = given.get("json_schema") or {}
    schema = own.get("schema") or given.get("schema")
    if given["type"] == "json_schema" and schema is None and own.get("schema") is None:
        missing = "response_format.json_schema" + (".schema" if own else "")
        raise ApiError(400, f"{missing}: missing", missing)
    return schema or {"type": "object"}


class _Choice:
    """One of n answers, as far as it has come."""

    def __init__(self, form: tools.ToolFormat | None, choice: tools.ToolChoice):
        self.parser = tools.ToolParser(form, choice.offered, parallel=choice.parallel) if form else None
        self.content = ""
        self.calls: list[tools.ToolCall] = []
        self.logprobs: list[dict[str, Any]] = []
        self.finish_reason: str | None = None

    def take(self, step: Step) -> tuple[str, list[tools.ToolCall]]:
        """(content, calls) that are new with this step."""
        content = step.text
        calls: list[tools.ToolCall] = []
        if self.parser:
            content, calls = self.parser.push(step.text)
            if step.finish_reason:
                more, last = self.parser.finish(cut=step.finish_reason == "length")
                content, calls = content + more, calls + last
        self.content += content
        self.calls += calls
        self.finish_reason = step.finish_reason
        if self.calls and step.finish_reason == "stop":
            self.finish_reason = "tool_calls"
        return content, calls


class _Chat(Reply):
    def __init__(self, service: Service, streams: list[Stream], want: Wanted, choice: tools.ToolChoice):
        kind = "chat.completion.chunk" if want.stream else "chat.completion"
        super().__init__(service, streams, want, "chatcmpl", kind)
        form = service.tool_format if choice.tools else None
        self._choices = [_Choice(form, choice) for _ in streams]

    def opening(self) -> list[Part]:
        return [_delta(index, {"role": "assistant", "content": ""}) for index in range(len(self._streams))]

    def take(self, index: int, step: Step) -> list[Part]:
        choice, told = self._choices[index], len(self._choices[index].calls)
        content, new = choice.take(step)
        reported = self._logprobs(step)
        if reported and not self._want.stream:
            choice.logprobs += reported["content"]
        parts = []
        if content or (reported and reported["content"]):
            parts.append(_delta(index, {"content": content}, reported))
        parts += [_delta(index, {"tool_calls": [call.as_openai(told + i)]}) for i, call in enumerate(new)]
        if choice.finish_reason:
            parts.append(_delta(index, {}, finish_reason=choice.finish_reason))
        return parts

    def _logprobs(self, step: Step) -> dict[str, Any] | None:
        top, tokenizer = self._want.top_logprobs, self._service.tokenizer
        if top is None:
            return None
        content = [] if logprobs.is_ending(step, tokenizer) else [logprobs.of_chat(step, tokenizer, top)]
        return {"content": content, "refusal": None}

    def choices(self) -> list[Part]:
        return [self._choice(index, choice) for index, choice in enumerate(self._choices)]

    def _choice(self, index: int, choice: _Choice) -> Part:
        message: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
        if choice.calls:
            message["content"] = choice.content or None
            message["tool_calls"] = [call.as_openai() for call in choice.calls]
        reported = None if self._want.top_logprobs is None else {"content": choice.logprobs, "refusal": None}
        return {"index": index, "message": message, "logprobs": reported, "finish_reason": choice.finish_reason}


def _delta(
    index: int, delta: dict[str, Any], reported: dict[str, Any] | None = None, finish_reason: str | None = None
) -> Part:
    return {"index": index, "delta": delta, "logprobs": reported, "finish_reason": finish_reason}
