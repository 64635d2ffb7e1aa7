"""The ASGI application: which path goes where, and what every answer goes through."""

import mimetypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pyllama.checkpoint.digest import model_digest
from pyllama.engine import AsyncEngine
from pyllama.errors import PyllamaError
from pyllama.server import infill, status, text
from pyllama.server.access import Access
from pyllama.server.anthropic import messages
from pyllama.server.errors import ApiError, handle, handle_http
from pyllama.server.metrics import Metrics
from pyllama.server.ollama import endpoints as ollama
from pyllama.server.openai import endpoints as openai
from pyllama.server.service import Service, Settings

ENDPOINTS = (
    *openai.ENDPOINTS,
    *messages.ENDPOINTS,
    *ollama.ENDPOINTS,
    *infill.ENDPOINTS,
    *text.ENDPOINTS,
    *status.ENDPOINTS,
)
STATIC = "static"
_PAGE_HEADERS = {
    # Nothing from elsewhere, nothing inline, and no text that becomes markup, whatever the page's script does.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def build_app(engine: AsyncEngine, names: tuple[str, ...], settings: Settings) -> Starlette:
    """The application over an engine that it starts and stops. names: what clients may call the model."""
    digest = model_digest(engine.model.checkpoint, engine.model.decoder.cache.dtype)
    metrics = Metrics(engine)
    service = Service(engine, names, settings, metrics, "fp_" + digest[:12])
    routes = [
        *(endpoint.route() for endpoint in ENDPOINTS),
        Route("/", page),
        Route("/static/{name}", page),
    ]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await engine.start(warm_up=settings.warm_up)
        try:
            yield
        finally:
            service.stopping = True
            await engine.stop(0.0)

    paths = frozenset(route.path for route in routes)
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Access, settings=settings, metrics=metrics, paths=paths)],
        # Not for Exception: Starlette would answer and then raise it again. What is left over, Access answers.
        exception_handlers={HTTPException: handle_http, ApiError: handle, PyllamaError: handle},
    )
    app.router.redirect_slashes = False
    app.state.service, app.state.endpoints = service, ENDPOINTS
    return app


async def page(request: Request) -> Response:
    """The web page's files: what lies in server/static/, under its own name, and nothing else."""
    name = request.path_params.get("name", "index.html")
    folder = files("pyllama.server") / STATIC
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.is_file() and file.name == name:
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            return Response(file.read_bytes(), media_type=kind, headers=_PAGE_HEADERS)
    raise ApiError(404, "there is no such page here; the API is under /v1")
