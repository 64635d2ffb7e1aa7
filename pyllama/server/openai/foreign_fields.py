"""Fields of OpenAI's API that this server has no part in: those that would change the answer are refused, saying why.

All others (store, metadata, service_tier, prompt_cache_key, ...) change nothing that a client could
see, and are passed over.
"""

from pyllama.server.errors import unsupported
from pyllama.server.json_object import JsonObject

_REFUSED = {
    "functions": "of OpenAI's first function calls; expected tools",
    "function_call": "of OpenAI's first function calls; expected tool_choice",
    "audio": "this model writes text only",
    "web_search_options": "this server searches nothing",
}


def refuse(body: JsonObject) -> None:
    """Raises ApiError 400 for a field whose absence from the answer would mislead."""
    for name, why in _REFUSED.items():
        if body.get(name) not in (None, [], {}, "none", "auto"):
            raise unsupported(name, f"not supported: {why}")
    modalities = body.get("modalities")
    if modalities not in (None, [], ["text"]):
        raise unsupported("modalities", "not supported: this model writes text only")
