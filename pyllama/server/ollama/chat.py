"""POST /api/chat and /api/generate: a conversation or a prompt in, the answer out, a line of JSON for each piece."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pyllama.server.conversation import Asked, ask
from pyllama.server.errors import ApiError, ollama_body, unsupported
from pyllama.server.fill_in import Gap, continued, fill_in
from pyllama.server.json_object import JsonObject
from pyllama.server.ollama.translation import conversation_of, sampling_of
from pyllama.server.one_reply import Block, OneReply
from pyllama.server.service import Service


async def chat(service: Service, request: Request, body: JsonObject) -> Response:
    if not body.get("messages"):
        return _there(service, {"message": {"role": "assistant", "content": ""}})
    reply = _Chat(service, await ask(service, request, conversation_of(body, body["messages"])))
    del body  # an answer may take long
    return await reply.response(request)


async def generate(service: Service, request: Request, body: JsonObject) -> Response:
    if not (body.get("prompt") or body.get("suffix")):
        return _there(service, {"response": ""})
    if body.get("raw") or body.get("suffix") or service.tokenizer.chat_template is None:
        asked = await _continued(service, request, body)
    else:
        messages = [{"role": "system", "content": body["system"]}] if body.get("system") else []
        messages.append({"role": "user", "content": body["prompt"]})
        asked = await ask(service, request, conversation_of(body, messages))
    reply = _Generated(service, asked)
    del body  # an answer may take long
    return await reply.response(request)


async def _continued(service: Service, request: Request, body: JsonObject) -> Asked:
    """A text to go on with, or a gap to fill, without any template."""
    if body.get("format"):
        raise unsupported("format", "not with raw or suffix")
    prompt, sampling = body.get("prompt") or "", sampling_of(body)
    if body.get("suffix"):
        return await fill_in(service, request, sampling, Gap(prompt, body["suffix"]), "suffix")
    prompt_ids = await service.in_text_thread(request, service.model.encode_prompt, prompt)
    return continued(service, request, sampling, prompt_ids)


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _there(service: Service, empty: JsonObject) -> JSONResponse:
    """What who asks nothing is told: clients load a model so."""
    return JSONResponse({"model": service.name, "created_at": now(), **empty, "done": True, "done_reason": "load"})


def _bytes(line: JsonObject) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


class _Lines(OneReply):
    media_type = "application/x-ndjson"

    def part(self, *blocks: Block) -> JsonObject:
        """Where text, thinking and calls of these blocks stand."""
        raise NotImplementedError

    def whole(self) -> JsonObject:
        return {**self._head(), **self.part(*self.blocks), **self._ending()}

    def ping(self) -> bytes:
        return self._line()

    def grown(self, index: int, block: Block, text: str) -> bytes:
        return self._line(Block(block.kind, text, block.call))

    def end(self) -> bytes:
        return _bytes({**self._head(), **self.part(), **self._ending()})

    def failed(self, error: ApiError) -> bytes:
        return _bytes(ollama_body(error))

    def _head(self) -> JsonObject:
        return {"model": self.service.name, "created_at": now()}

    def _line(self, *blocks: Block) -> bytes:
        return _bytes({**self._head(), **self.part(*blocks), "done": False})

    def _ending(self) -> JsonObject:
        usage = self.usage
        queued, first, total = self.times
        return {
            "done": True,
            "done_reason": "length" if self.finish_reason == "length" else "stop",
            "total_duration": round(total * 1e9),
            "load_duration": round(queued * 1e9),
            "prompt_eval_count": usage["prompt_tokens"],
            "prompt_eval_duration": round((first - queued) * 1e9),
            "eval_count": usage["completion_tokens"],
            "eval_duration": round((total - first) * 1e9),
        }


def _text_of(blocks: Sequence[Block], kind: str) -> str:
    return "".join(block.text for block in blocks if block.kind == kind)


class _Chat(_Lines):
    def part(self, *blocks: Block) -> JsonObject:
        message: JsonObject = {"role": "assistant", "content": _text_of(blocks, "text")}
        if thinking := _text_of(blocks, "thinking"):
            message["thinking"] = thinking
        if calls := [block.call for block in blocks if block.call]:
            message["tool_calls"] = [
                {"id": call.id, "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
                for call in calls
            ]
        return {"message": message}


class _Generated(_Lines):
    def part(self, *blocks: Block) -> JsonObject:
        thinking = _text_of(blocks, "thinking")
        return {"response": _text_of(blocks, "text"), **({"thinking": thinking} if thinking else {})}
