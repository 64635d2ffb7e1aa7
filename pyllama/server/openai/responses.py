"""/v1/responses: a conversation in, the next items of it out, and kept for the request that goes on after it."""

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pyllama.server.answers import typed_event
from pyllama.server.conversation import Asked, ask
from pyllama.server.endpoint import EVENTS, JSON, Endpoint
from pyllama.server.errors import ApiError, openai_body
from pyllama.server.json_object import JsonObject
from pyllama.server.one_reply import Block, OneReply
from pyllama.server.openai.response_items import conversation_of, messages_of
from pyllama.server.openai.response_schemas import RESPONSE
from pyllama.server.openai.response_store import new_id
from pyllama.server.service import Service

_EVENT = {"text": "response.output_text", "thinking": "response.reasoning_text"}

_NO_LOGPROBS: JsonObject = {"logprobs": []}


async def create(service: Service, request: Request, body: JsonObject) -> Response:
    before: list[JsonObject] = []
    previous = body.get("previous_response_id")
    if previous is not None:
        found = service.responses.get(previous)
        if found is None:
            message = f"previous_response_id: {previous[:60]!r} is not kept here"
            raise ApiError(400, message, "previous_response_id", "previous_response_not_found")
        before = found["messages"]
    conversation = conversation_of(body, before)
    reply = _Response(service, await ask(service, request, conversation), body, before)
    del body, before, conversation  # an answer may take long
    return await reply.response(request)


async def one(service: Service, request: Request) -> JSONResponse:
    """GET and DELETE of a response by its id."""
    response_id = request.path_params["response_id"]
    found = service.responses.get(response_id)
    if found is None:
        raise ApiError(404, f"response: {response_id[:60]!r} is not kept here", "response_id", "response_not_found")
    if request.method == "DELETE":
        service.responses.delete(response_id)
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})
    return JSONResponse(found["response"])


class _Response(OneReply):
    def __init__(
        self,
        service: Service,
        asked: Asked,
        body: JsonObject,
        before: list[JsonObject],
    ):
        super().__init__(service, asked)
        self._store, self._number = body.get("store") is not False, 0
        # Without the instructions, which are this request's alone.
        self._messages = [*before, *messages_of(body["input"])] if self._store else []
        self._items: list[JsonObject] = []
        params = asked.want.params
        self._head: JsonObject = {
            "id": new_id(),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"),
            "metadata": body.get("metadata") or {},
            "model": service.name,
            "output": [],
            "parallel_tool_calls": asked.choice.parallel,
            "previous_response_id": body.get("previous_response_id"),
            "reasoning": {"effort": (body.get("reasoning") or {}).get("effort"), "summary": None},
            "store": self._store,
            "temperature": params.temperature,
            "text": {"format": (body.get("text") or {}).get("format") or {"type": "text"}},
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [],
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.get("user"),
        }

    def whole(self) -> JsonObject:
        cut, usage = self.finish_reason == "length", self.usage
        self._items = [self._item(index, block, "completed") for index, block in enumerate(self.blocks)]
        response = {
            **self._head,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self._items,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": usage["prompt_tokens_details"],
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": self.thinking_tokens},
                "total_tokens": usage["total_tokens"],
            },
        }
        if self._store:
            messages = [*self._messages, *messages_of(self._items)]
            self.service.responses.put(response["id"], {"messages": messages, "response": response})
        return response

    # --- as events ---

    def begin(self) -> bytes:
        both = ("response.created", "response.in_progress")
        return b"".join(self._event(kind, response=self._head) for kind in both)

    def opened(self, index: int, block: Block) -> bytes:
        item = self._item(index, block, "in_progress")
        out = self._event("response.output_item.added", output_index=index, item=item)
        if block.call:
            return out
        return out + self._part("response.content_part.added", index, block)

    def grown(self, index: int, block: Block, text: str) -> bytes:
        place = self._place(index, block)
        if block.call:
            done = {"name": block.call.name, "arguments": text}
            return self._event("response.function_call_arguments.delta", **place, delta=text) + self._event(
                "response.function_call_arguments.done", **place, **done
            )
        more = _NO_LOGPROBS if block.kind == "text" else {}
        return self._event(f"{_EVENT[block.kind]}.delta", **place, delta=text, **more)

    def closed(self, index: int, block: Block) -> bytes:
        out = b""
        if not block.call:
            more = _NO_LOGPROBS if block.kind == "text" else {}
            out = self._event(f"{_EVENT[block.kind]}.done", **self._place(index, block), text=block.text, **more)
            out += self._part("response.content_part.done", index, block)
        item = self._item(index, block, "completed")
        return out + self._event("response.output_item.done", output_index=index, item=item)

    def end(self) -> bytes:
        response = self.whole()
        return self._event(f"response.{response['status']}", response=response)

    def failed(self, error: ApiError) -> bytes:
        told = openai_body(error)["error"]
        problem = {"code": told["code"] or "server_error", "message": told["message"]}
        return self._event("response.failed", response={**self._head, "status": "failed", "error": problem})

    def _event(self, kind: str, **data: Any) -> bytes:
        self._number += 1
        return typed_event({"type": kind, "sequence_number": self._number - 1, **data})

    def _place(self, index: int, block: Block) -> JsonObject:
        place = {"item_id": self._id_of(index, block), "output_index": index}
        return place if block.call else place | {"content_index": 0}

    def _part(self, kind: str, index: int, block: Block) -> bytes:
        return self._event(kind, **self._place(index, block), part=self._content(block))

    # --- items ---

    def _id_of(self, index: int, block: Block) -> str:
        prefix = {"thinking": "rs", "text": "msg", "call": "fc"}[block.kind]
        return f"{prefix}_{self._head['id'].removeprefix('resp_')}{index}"

    @staticmethod
    def _content(block: Block) -> JsonObject:
        if block.kind == "thinking":
            return {"type": "reasoning_text", "text": block.text}
        return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}

    def _item(self, index: int, block: Block, status: str) -> JsonObject:
        if status == "completed" and self.finish_reason == "length" and index == len(self.blocks) - 1:
            status = "incomplete"
        item = {"id": self._id_of(index, block), "status": status}
        content = [self._content(block)] if status != "in_progress" else []
        if block.call:
            call = {"call_id": block.call.id, "name": block.call.name, "arguments": block.text}
            return {**item, "type": "function_call", **call}
        if block.kind == "thinking":
            return {**item, "type": "reasoning", "summary": [], "content": content}
        return {**item, "type": "message", "role": "assistant", "content": content}


ENDPOINTS = (
    Endpoint("POST", "/v1/responses", create, "The next items of a conversation", RESPONSE, (JSON, EVENTS)),
    Endpoint("GET", "/v1/responses/{response_id}", one, "A response that was kept"),
    Endpoint("DELETE", "/v1/responses/{response_id}", one, "Forget it"),
)
