"""The paths of OpenAI's API."""

from pyllama.server.endpoint import EVENTS, JSON, Endpoint
from pyllama.server.openai import chat, completions, embeddings, models, responses
from pyllama.server.openai.embeddings import EMBEDDINGS
from pyllama.server.schemas import CHAT, COMPLETION

ENDPOINTS = (
    Endpoint("POST", "/v1/chat/completions", chat.create, "Answer a conversation", CHAT, (JSON, EVENTS)),
    Endpoint("POST", "/v1/completions", completions.create, "Continue a text", COMPLETION, (JSON, EVENTS)),
    Endpoint("GET", "/v1/models", models.models, "The model that is served"),
    Endpoint("GET", "/v1/models/{model:path}", models.model, "One model"),
    *responses.ENDPOINTS,
    Endpoint("POST", "/v1/embeddings", embeddings.embeddings, "Texts to vectors, if they are served", EMBEDDINGS),
)
