"""GET /v1/models: what is served, with the fields of OpenAI's API and of Anthropic's."""

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import JSONResponse

from pyllama.server.json_object import JsonObject
from pyllama.server.service import Service


def _model(service: Service, name: str) -> JsonObject:
    config = service.model.config
    return {
        "id": name,
        "object": "model",
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(service.created, UTC).isoformat(),
        "created": service.created,
        "owned_by": "pyllama",
        "max_model_len": service.model.context_length,
        "pyllama": {
            "model_type": config.model_type,
            "num_hidden_layers": config.num_hidden_layers,
            "chat": service.tokenizer.chat_template is not None,
            "tools": service.tool_format is not None,
        },
    }


async def models(service: Service, request: Request) -> JSONResponse:
    found = [_model(service, name) for name in service.names]
    ends = {"has_more": False, "first_id": found[0]["id"], "last_id": found[-1]["id"]}
    return JSONResponse({"object": "list", "data": found, **ends})


async def model(service: Service, request: Request) -> JSONResponse:
    name = request.path_params["model"]
    service.check_name(name)
    return JSONResponse(_model(service, name))
