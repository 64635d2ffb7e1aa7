"""A conversation to answer: the one request inside, which every chat API's translation makes, and its answers queued.

It has the fields of OpenAI's chat completions (CHAT in schemas.py), whoever asked.
"""

from dataclasses import dataclass
from functools import partial

from starlette.requests import Request

from pyllama.engine import Stream
from pyllama.generation import AnswerOptions
from pyllama.generation.harmony import MARKS
from pyllama.server import tools
from pyllama.server.continuation import FLAGS, beginning_of
from pyllama.server.errors import ApiError, invalid, unsupported
from pyllama.server.grammar import json_grammar
from pyllama.server.grammar_process import Grammar
from pyllama.server.json_object import JsonObject
from pyllama.server.sampling import Wanted, wanted
from pyllama.server.service import Service
from pyllama.server.tools.conversation import text_of


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation whose answers are queued.

    streams  of steps, one for each of the n answers
    want     how they are to be made and sent
    choice   what the request says of tools
    guided   whether a grammar holds from the first token on
    goes_on  the message that they continue, "" if they are messages of their own
    """

    streams: list[Stream]
    want: Wanted
    choice: tools.ToolChoice
    guided: bool = False
    goes_on: str = ""


async def ask(service: Service, request: Request, body: JsonObject) -> Asked:
    """Queue the answers to a conversation. Raises ApiError, and what Service.submit raises.

    body  checked against CHAT
    """
    goes_on = beginning_of(body)["continue_final_message"]
    most = body.get("max_completion_tokens") or body.get("max_tokens")
    want = wanted(body, most, _top_logprobs(body), service.model.config.vocab_size, service.sampling_defaults)
    choice, prompt_ids = await prompt_of(service, request, body)
    grammar = _grammar(service, choice, body)
    guide = await service.guide(request, grammar, want.n) if grammar else None
    options: AnswerOptions = {
        "guide": guide,
        "show_special": choice.tools is not None or service.thinking_marks.control or service.has_channels,
        "continuation": goes_on,
        "prediction": await _prediction(service, request, body.get("prediction")),
    }
    streams = service.submit([prompt_ids], want, request, body.get("user"), "messages", **options)
    begun = tools.messages_for_template(body["messages"][-1:])[0]["content"] if goes_on else ""
    return Asked(streams, want, choice, guide is not None, begun)


async def prompt_of(service: Service, request: Request, body: JsonObject) -> tuple[tools.ToolChoice, list[int]]:
    """What the request says of tools, and the token ids of its prompt. Raises ApiError."""
    if service.tokenizer.chat_template is None:
        raise unsupported(
            "messages", "this model has no chat template; use /v1/completions, or serve it with --chat-template"
        )
    choice = tools.tool_choice(body, service.tool_format)
    return choice, await service.in_text_thread(request, _encode, service, body, choice)


def _encode(service: Service, body: JsonObject, choice: tools.ToolChoice) -> list[int]:
    options: JsonObject = {"tools": choice.tools, "parse_special": bool(body.get("parse_special"))}
    options |= beginning_of(body)
    variables = dict(body.get("chat_template_kwargs") or {})
    effort = body.get("reasoning_effort")
    if effort is not None:
        variables.setdefault("reasoning_effort", "low" if effort in ("none", "minimal") else effort)
    for name in (*options, "messages"):
        if variables.pop(name, None) is not None and name not in FLAGS:
            raise invalid(f"chat_template_kwargs.{name}", "the server's own, expected another name")
    return service.tokenizer.encode_chat(tools.messages_for_template(body["messages"]), **options, **variables)


async def _prediction(service: Service, request: Request, given: JsonObject | None) -> list[int]:
    """Token ids of what the answer is told to repeat; none where nobody could propose them."""
    text = "" if given is None else given["content"]
    if isinstance(text, list):
        text = text_of(text, "prediction.content")
    if not text or service.model.drafting is None:
        return []
    encode = partial(service.tokenizer.encode, add_special_tokens=False, parse_special=False)
    ids: list[int] = await service.in_text_thread(request, encode, text)
    return ids


def _top_logprobs(body: JsonObject) -> int | None:
    top = body.get("top_logprobs")
    if body.get("logprobs"):
        return top or 0
    if top:
        raise invalid("top_logprobs", "only with logprobs")
    return None


def _grammar(service: Service, choice: tools.ToolChoice, body: JsonObject) -> Grammar | None:
    """What restricts the tokens: a tool that must be called, or else the format asked for, unless one is called."""
    form = service.tool_format
    schema = _format(body.get("response_format"))
    functions = choice.forced or (list(choice.offered.values()) if choice.tools else [])
    if service.has_channels and (choice.forced or schema):
        if schema:
            json_grammar(schema, "response_format")  # whose fault an error is
        ids = {mark: service.tokenizer.id_of(mark) for mark in MARKS}
        text = tools.channels_grammar(None if choice.forced else schema, functions, ids)
        return Grammar(text, "tools" if functions else "response_format")
    if form is None or choice.tools is None or not (choice.forced or schema):
        return json_grammar(schema, "response_format") if schema else None
    if choice.forced:
        schema = None
    if schema:
        json_grammar(schema, "response_format")  # whose fault an error is
    marker = _control(service, form.opening), _control(service, form.closing)
    return Grammar(tools.calls_grammar(form, functions, marker, schema, parallel=choice.parallel), "tools")


def _control(service: Service, text: str | None) -> int | None:
    """The token of a marker, if it is a control one."""
    found = service.tokenizer.id_of(text) if text else None
    return found if found in service.tokenizer.special_ids else None


def _format(given: JsonObject | None) -> JsonObject | None:
    """The schema that `response_format` asks for, in json_schema (OpenAI) or beside the type (llama.cpp, Together)."""
    if not given or given["type"] == "text":
        return None
    own = given.get("json_schema") or {}
    schema = own.get("schema") or given.get("schema")
    if given["type"] == "json_schema" and schema is None and own.get("schema") is None:
        missing = "response_format.json_schema" + (".schema" if own else "")
        raise ApiError(400, f"{missing}: missing", missing)
    return schema or {"type": "object"}
