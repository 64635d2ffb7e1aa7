"""How the server does, and what it understands: health, metrics, its own description."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pyllama.server.description import openapi
from pyllama.server.endpoint import Endpoint
from pyllama.server.service import Service
from pyllama.version import __version__


async def health(service: Service, request: Request) -> JSONResponse:
    """Answers without a key, so it says nothing of what is asked, and 503 once the server is stopping."""
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
        "draft": {
            "name": stats.drafter,
            "proposed": stats.proposed_tokens,
            "accepted": stats.accepted_tokens,
            "passes": stats.drafted_passes,
            "tokens_a_pass": round(stats.tokens_a_pass, 3),
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


async def metrics(service: Service, request: Request) -> Response:
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def props(service: Service, request: Request) -> JSONResponse:
    """With llama.cpp's names."""
    tokenizer = service.tokenizer

    def text_of(token_id: int | None) -> str:
        return "" if token_id is None else tokenizer.token_bytes(token_id).decode("utf-8", "replace")

    return JSONResponse(
        {
            "model_alias": service.name,
            "total_slots": service.engine.engine.max_running,
            "default_generation_settings": {"n_ctx": service.model.context_length},
            "chat_template": tokenizer.chat_template or "",
            "bos_token": text_of(tokenizer.bos_token_id),
            "eos_token": text_of(next(iter(tokenizer.eos_token_ids), None)),
            "build_info": f"pyllama {__version__}",
            "modalities": {"vision": False, "audio": False},
            "is_sleeping": False,
            "draft": service.engine.stats().drafter,
        }
    )


async def description(service: Service, request: Request) -> JSONResponse:
    return JSONResponse(openapi(request.app.state.endpoints, service.settings.api_key is not None))


ENDPOINTS = (
    Endpoint("GET", "/health", health, "Whether it runs, and how busy it is"),
    Endpoint("GET", "/metrics", metrics, "The same for Prometheus", kinds=("text/plain",)),
    Endpoint("GET", "/props", props, "The model's context, template and slots"),
    Endpoint("GET", "/openapi.json", description, "This description"),
)
