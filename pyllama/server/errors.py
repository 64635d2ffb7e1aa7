"""What went wrong, in the body and with the status that an API's clients know. Never a path, never a traceback."""

import logging
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse

from pyllama.errors import (
    BoardError,
    BusyError,
    ContextOverflowError,
    PyllamaError,
    RequestError,
    StoppingError,
    TokenizerError,
)
from pyllama.printable import one_line
from pyllama.server.json_object import JsonObject

_log = logging.getLogger("pyllama")

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = _TYPES | {
    404: "not_found_error", 413: "request_too_large", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


class ApiError(Exception):
    """An answer that is an error.

    status   HTTP status
    message  for whoever wrote the request; made one line without control characters, whatever it quotes
    param    the field it is about
    code     a word for programs
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        message = one_line(message)
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def response(self, path: str = "") -> JSONResponse:
        """In the words of the API that the path belongs to."""
        return JSONResponse(body_of(path)(self), self.status, self.headers)


def invalid(param: str, what: str) -> ApiError:
    """A field of the request has a value that it must not have."""
    return ApiError(400, f"{param}: {what}", param, "invalid_value")


def unsupported(param: str, what: str) -> ApiError:
    """A field of the request asks for what this server, or its model, does not do."""
    return ApiError(400, f"{param}: {what}", param, "unsupported")


def openai_body(error: ApiError) -> JsonObject:
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def anthropic_body(error: ApiError) -> JsonObject:
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def ollama_body(error: ApiError) -> JsonObject:
    return {"error": error.message}


def body_of(path: str) -> Callable[[ApiError], JsonObject]:
    """How errors look to clients that ask for the path."""
    if path.startswith("/v1/messages"):
        return anthropic_body
    return ollama_body if path.startswith("/api/") else openai_body


def as_api_error(error: Exception, retry_after_s: int = 1) -> ApiError:
    """The error a client is told for one that was raised while its request was handled."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BoardError):
        return ApiError(503, str(error), code="busy", headers={"retry-after": "5"})
    if isinstance(error, BusyError):
        stopping = isinstance(error, StoppingError)
        status, headers = (503, None) if stopping else (429, {"retry-after": str(retry_after_s)})
        return ApiError(status, str(error), code="busy", headers=headers)
    if isinstance(error, ContextOverflowError):
        return ApiError(400, str(error), "messages", "context_length_exceeded")
    if isinstance(error, RequestError):
        return ApiError(400, str(error), error.param, "invalid_value")
    if isinstance(error, TokenizerError):  # its message may name a file of ours
        _log.warning("chat template or tokenizer: %s", error)
        return invalid("messages", "the model's chat template cannot take them")
    if isinstance(error, PyllamaError):
        _log.error("request failed: %s", error)
    else:
        _log.error("request failed", exc_info=error)
    return ApiError(500, "internal error, see the server's log", code="internal_error")


async def handle(request: Request, error: Exception) -> JSONResponse:
    """Starlette's exception handler for all that a route raises."""
    return as_api_error(error, request.app.state.service.engine.engine.retry_after_s()).response(request.scope["path"])


async def handle_http(request: Request, error: Exception) -> JSONResponse:
    """For what Starlette raises itself: no such path, no such method."""
    status = getattr(error, "status_code", 500)
    # Not request.url: it is put together from the Host header, and no URL comes of some.
    what = {404: f"no such path: {request.scope['path'][:200]}", 405: f"{request.method} is not possible here"}
    message = what.get(status, str(getattr(error, "detail", "")))
    return ApiError(status, message, headers=getattr(error, "headers", None)).response(request.scope["path"])
