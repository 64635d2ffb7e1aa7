"""The paths of Ollama's API."""

from pyllama.server.endpoint import JSON, LINES, Endpoint
from pyllama.server.ollama import about, chat, embed
from pyllama.server.ollama.schemas import CHAT, GENERATE, SHOW

ENDPOINTS = (
    Endpoint("POST", "/api/chat", chat.chat, "Answer a conversation, as Ollama does", CHAT, (JSON, LINES)),
    Endpoint("POST", "/api/generate", chat.generate, "Answer a prompt, as Ollama does", GENERATE, (JSON, LINES)),
    Endpoint("POST", "/api/embed", embed.embed, "Texts to vectors, if they are served", embed.EMBED),
    Endpoint("POST", "/api/embeddings", embed.embeddings, "The same, as it was before", embed.EMBEDDINGS),
    Endpoint("GET", "/api/tags", about.tags, "The models that there are"),
    Endpoint("GET", "/api/ps", about.running, "Those that are loaded"),
    Endpoint("POST", "/api/show", about.show, "What a model is", SHOW),
    Endpoint("GET", "/api/version", about.version, "The server's version"),
)
