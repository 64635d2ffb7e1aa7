"""POST /infill: what is before a gap and what is after it in, what fills it out. The fields are llama.cpp's."""

from starlette.requests import Request
from starlette.responses import Response

from pyllama.server.answers import event
from pyllama.server.endpoint import EVENTS, JSON, Endpoint
from pyllama.server.fill_in import Gap, fill_in
from pyllama.server.json_object import JsonObject
from pyllama.server.one_reply import Block, OneReply
from pyllama.server.schemas import SAMPLING, STRING, Schema, array, integer, obj, text
from pyllama.server.service import Service

INFILL: Schema = obj(
    {
        **{name: field for name, field in SAMPLING.items() if name not in ("n", "stream_options")},
        "input_prefix": text("what is before the gap"),
        "input_suffix": text("what is after it"),
        "prompt": text("more of what is before it"),
        "input_extra": array(
            obj({"filename": STRING, "text": STRING}, ("text",)), description="other files that may help"
        ),
        "n_predict": integer(-1, "tokens to write at most; -1: no limit"),
    },
    ("input_prefix", "input_suffix"),
)


async def infill(service: Service, request: Request, body: JsonObject) -> Response:
    files = tuple((one.get("filename") or "file", one["text"]) for one in body.get("input_extra") or ())
    gap = Gap(body["input_prefix"] + (body.get("prompt") or ""), body["input_suffix"], files)
    most = body.get("n_predict")
    if most is not None:
        body["max_tokens"] = most if most > 0 else None
    reply = _Infill(service, await fill_in(service, request, body, gap, "input_suffix"))
    del body, gap, files  # an answer may take long
    return await reply.response(request)


class _Infill(OneReply):
    def whole(self) -> JsonObject:
        usage = self.usage
        return {
            "content": "".join(block.text for block in self.blocks),
            "model": self.service.name,
            "stop": True,
            "stop_type": self._stop_type(),
            "stopping_word": self.request.answer.stop_string or "",
            "tokens_predicted": usage["completion_tokens"],
            "tokens_evaluated": usage["prompt_tokens"],
            "tokens_cached": usage["prompt_tokens_details"]["cached_tokens"],
            "timings": self._timings(),
        }

    def _timings(self) -> JsonObject:
        """Of prompt and answer, in milliseconds; what was drafted where anything was, as llama.cpp has it."""
        request = self.request
        queued, first, total = self.times
        timings = {
            "cache_n": request.cached_tokens,
            "prompt_n": len(request.answer.prompt_ids) - request.cached_tokens,
            "prompt_ms": round(1e3 * (first - queued), 3),
            "predicted_n": len(request.answer.token_ids),
            "predicted_ms": round(1e3 * (total - first), 3),
        }
        if request.proposed:
            timings |= {"draft_n": request.proposed, "draft_n_accepted": request.accepted}
        return timings

    def _stop_type(self) -> str:
        if self.finish_reason == "length":
            return "limit"
        return "word" if self.request.answer.stop_string else "eos"

    def grown(self, index: int, block: Block, text: str) -> bytes:
        return event({"content": text, "stop": False})

    def end(self) -> bytes:
        return event({**self.whole(), "content": ""})


ENDPOINTS = (Endpoint("POST", "/infill", infill, "Fill a gap in a text", INFILL, (JSON, EVENTS)),)
