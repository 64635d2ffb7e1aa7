"""POST /v1/messages and /v1/messages/count_tokens: a conversation in, the next message or its cost out."""

import json
import secrets

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pyllama.server.answers import typed_event
from pyllama.server.anthropic.schemas import COUNT, MESSAGES
from pyllama.server.anthropic.translation import conversation_of
from pyllama.server.conversation import Asked, ask, prompt_of
from pyllama.server.endpoint import EVENTS, JSON, Endpoint
from pyllama.server.errors import ApiError, anthropic_body
from pyllama.server.json_object import JsonObject
from pyllama.server.one_reply import Block, OneReply
from pyllama.server.service import Service


async def create(service: Service, request: Request, body: JsonObject) -> Response:
    body = conversation_of(body)
    reply = _Message(service, await ask(service, request, body))
    del body  # an answer may take long
    return await reply.response(request)


async def count_tokens(service: Service, request: Request, body: JsonObject) -> Response:
    _, prompt_ids = await prompt_of(service, request, conversation_of(body))
    return JSONResponse({"input_tokens": len(prompt_ids)})


_PING = typed_event({"type": "ping"})


class _Message(OneReply):
    def __init__(self, service: Service, asked: Asked):
        super().__init__(service, asked)
        self._head = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": service.name,
        }

    def whole(self) -> JsonObject:
        content = [self._content(block) for block in self.blocks]
        return {**self._head, "content": content, **self._ending(), "usage": self._usage()}

    def begin(self) -> bytes:
        usage = {**self._usage(), "output_tokens": 0}
        message: JsonObject = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        return typed_event({"type": "message_start", "message": message}) + _PING

    def ping(self) -> bytes:
        return _PING

    def opened(self, index: int, block: Block) -> bytes:
        return typed_event({"type": "content_block_start", "index": index, "content_block": self._content(block)})

    def grown(self, index: int, block: Block, text: str) -> bytes:
        field = {"thinking": "thinking", "text": "text", "call": "partial_json"}[block.kind]
        kind = "input_json_delta" if block.call else f"{block.kind}_delta"
        return typed_event({"type": "content_block_delta", "index": index, "delta": {"type": kind, field: text}})

    def closed(self, index: int, block: Block) -> bytes:
        return typed_event({"type": "content_block_stop", "index": index})

    def end(self) -> bytes:
        ending = {"type": "message_delta", "delta": self._ending(), "usage": self._usage()}
        return typed_event(ending) + typed_event({"type": "message_stop"})

    def failed(self, error: ApiError) -> bytes:
        return typed_event(anthropic_body(error))

    @staticmethod
    def _content(block: Block) -> JsonObject:
        if block.call:
            arguments = json.loads(block.text) if block.text else {}
            return {"type": "tool_use", "id": block.call.id, "name": block.call.name, "input": arguments}
        if block.kind == "thinking":
            return {"type": "thinking", "thinking": block.text, "signature": ""}
        return {"type": "text", "text": block.text}

    def _ending(self) -> JsonObject:
        stop = self.request.answer.stop_string
        reason = {"length": "max_tokens", "tool_calls": "tool_use"}.get(self.finish_reason or "", "end_turn")
        if stop is not None and reason == "end_turn":
            reason = "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": stop if reason == "stop_sequence" else None}

    def _usage(self) -> JsonObject:
        usage = self.usage
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage["completion_tokens"],
        }


ENDPOINTS = (
    Endpoint("POST", "/v1/messages", create, "Answer a conversation, as Anthropic does", MESSAGES, (JSON, EVENTS)),
    Endpoint("POST", "/v1/messages/count_tokens", count_tokens, "Tokens of a conversation", COUNT),
)
