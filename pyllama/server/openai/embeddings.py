"""POST /v1/embeddings: texts in, vectors out."""

import base64

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse

from pyllama.server.json_object import JsonObject
from pyllama.server.schemas import STRING, Schema, integer, listed, obj, one_of, prompts, text
from pyllama.server.service import Service
from pyllama.server.vectors import MAX_TEXTS, refuse_unless_asked, vectors_of

EMBEDDINGS: Schema = obj(
    {
        "model": text("name of the model"),
        "input": prompts("text or token ids, or a list of either", MAX_TEXTS),
        "encoding_format": one_of("float", "base64"),
        "dimensions": integer(1, "must be the model's hidden_size"),
        "user": STRING,
    },
    ("input",),
)


async def embeddings(service: Service, request: Request, body: JsonObject) -> JSONResponse:
    refuse_unless_asked(service, body.get("dimensions"))
    vectors, tokens = await vectors_of(service, request, listed(body["input"]), "input")
    as_text = body.get("encoding_format") == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _base64(vector) if as_text else vector.tolist(),
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": service.name, "usage": usage})


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
