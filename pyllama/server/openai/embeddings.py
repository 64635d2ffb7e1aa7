"""POST /v1/embeddings: refused."""

from starlette.requests import Request
from starlette.responses import Response

from pyllama.server.errors import ApiError


async def embeddings(request: Request) -> Response:
    raise ApiError(
        400,
        "embeddings: not served; the models here were trained to write text, and their hidden states make poor "
        "embeddings: use a model made for it",
        code="unsupported",
    )
