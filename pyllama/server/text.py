"""POST /tokenize, /detokenize and /apply-template: text to token ids and back, messages to text."""

from starlette.requests import Request
from starlette.responses import JSONResponse

from pyllama.server.conversation import prompt_of
from pyllama.server.endpoint import Endpoint
from pyllama.server.errors import ApiError, invalid
from pyllama.server.json_object import JsonObject
from pyllama.server.schemas import APPLY_TEMPLATE, DETOKENIZE, TOKENIZE
from pyllama.server.service import Service


async def tokenize(service: Service, request: Request, body: JsonObject) -> JSONResponse:
    if (body.get("prompt") is None) == (body.get("messages") is None):
        raise invalid("prompt", "expected either a prompt or messages")
    if body.get("prompt") is not None:
        ids = await service.in_text_thread(request, _encode, service, body)
    else:
        _, ids = await prompt_of(service, request, body)
    return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": service.model.context_length})


def _encode(service: Service, body: JsonObject) -> list[int]:
    flags = {name: body[name] for name in ("add_special_tokens", "parse_special") if body.get(name) is not None}
    return service.tokenizer.encode(body["prompt"], **flags)


async def apply_template(service: Service, request: Request, body: JsonObject) -> JSONResponse:
    _, ids = await prompt_of(service, request, body)
    text = await service.in_text_thread(request, lambda: service.tokenizer.decode(ids, skip_special_tokens=False))
    return JSONResponse({"prompt": text})


async def detokenize(service: Service, request: Request, body: JsonObject) -> JSONResponse:
    size = service.tokenizer.vocab_size
    for index, token_id in enumerate(body["tokens"]):
        if token_id >= size:
            at = f"tokens[{index}]"
            raise ApiError(400, f"{at}: token id {token_id}, expected 0 to {size - 1}", "tokens", "invalid_value")
    text = await service.in_text_thread(
        request, lambda: service.tokenizer.decode(body["tokens"], skip_special_tokens=False)
    )
    return JSONResponse({"prompt": text})


ENDPOINTS = (
    Endpoint("POST", "/tokenize", tokenize, "Text or messages to token ids", TOKENIZE),
    Endpoint("POST", "/apply-template", apply_template, "Messages to the text of their prompt", APPLY_TEMPLATE),
    Endpoint("POST", "/detokenize", detokenize, "Token ids to text", DETOKENIZE),
)
