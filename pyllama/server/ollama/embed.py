"""POST /api/embed, and /api/embeddings as it was before: texts in, vectors out."""

import time

from starlette.requests import Request
from starlette.responses import JSONResponse

from pyllama.server.json_object import JsonObject
from pyllama.server.schemas import STRING, Schema, array, either, integer, obj, text
from pyllama.server.service import Service
from pyllama.server.vectors import MAX_TEXTS, refuse_unless_asked, vectors_of

EMBED: Schema = obj(
    {
        "model": text("name of the model"),
        "input": either("a text, or several", STRING, array(STRING, maxItems=MAX_TEXTS)),
        "dimensions": integer(1, "must be the model's hidden_size"),
    },
    ("model", "input"),
)
EMBEDDINGS: Schema = obj({"model": text("name of the model"), "prompt": text("a text")}, ("model", "prompt"))


async def embed(service: Service, request: Request, body: JsonObject) -> JSONResponse:
    started = time.perf_counter_ns()
    refuse_unless_asked(service, body.get("dimensions"))
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    vectors, tokens = await vectors_of(service, request, texts, "input")
    return JSONResponse(
        {
            "model": service.name,
            "embeddings": [vector.tolist() for vector in vectors],
            "total_duration": time.perf_counter_ns() - started,
            "load_duration": 0,
            "prompt_eval_count": tokens,
        }
    )


async def embeddings(service: Service, request: Request, body: JsonObject) -> JSONResponse:
    refuse_unless_asked(service)
    (vector,), _ = await vectors_of(service, request, [body["prompt"]], "prompt")
    return JSONResponse({"embedding": vector.tolist()})
