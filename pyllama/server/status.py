"""What the server is and how it does: models, health, metrics, its own description; and why there are no embeddings."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pyllama.server.errors import ApiError
from pyllama.server.schemas import openapi
from pyllama.server.service import Service
from pyllama.version import __version__


def _model(service: Service, name: str) -> dict[str, Any]:
    config = service.model.config
    return {
        "id": name,
        "object": "model",
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


async def models(request: Request) -> JSONResponse:
    service: Service = request.app.state.service
    return JSONResponse({"object": "list", "data": [_model(service, name) for name in service.names]})


async def model(request: Request) -> JSONResponse:
    service: Service = request.app.state.service
    name = request.path_params["model"]
    service.check_name(name)
    return JSONResponse(_model(service, name))


async def embeddings(request: Request) -> Response:
    raise ApiError(
        400,
        "embeddings: not served; the models here were trained to write text, and their hidden states make poor "
        "embeddings: use a model made for it",
        code="unsupported",
    )


async def health(request: Request) -> JSONResponse:
    """Answers without a key, so it says nothing of what is asked, and 503 once the server is stopping."""
    service: Service = request.app.state.service
    stats = service.engine.stats()
    body = {
        "status": "stopping" if service.stopping else "ok",
        "version": __version__,
        "model": service.name,
        "requests": {
            "waiting": stats.waiting,
            "running": stats.running,
            "max_running": service.engine.engine.max_running,
            "max_waiting": service.engine.engine.max_waiting,
            "ended": stats.requests,
        },
        "tokens": {
            "prompt": stats.prompt_tokens,
            "prompt_cached": stats.cached_tokens,
            "completion": stats.completion_tokens,
        },
        "passes": stats.passes,
        "layer": stats.layer,
        "layers": stats.layers,
        "kv_cache": {
            "pages_used": stats.pages_used,
            "pages_kept": stats.pages_kept,
            "pages_allocated": stats.pages_allocated,
            "pages": stats.max_pages,
            "page_nbytes": stats.page_nbytes,
        },
    }
    return JSONResponse(body, 503 if service.stopping else 200)


async def metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def description(request: Request) -> JSONResponse:
    service: Service = request.app.state.service
    return JSONResponse(openapi(service.settings.api_key is not None))
