"""Fields of OpenAI's requests that change the answer and that this server cannot follow: refused, saying why.

Fields that only say how an answer is to be kept, billed, routed or made faster (store, metadata, service_tier,
prediction, safety_identifier, prompt_cache_key, reasoning_effort, verbosity, ...) are ignored, as unknown ones are: the
answer is a right one without them.
"""

from typing import Any

from pyllama.server.errors import ApiError


def refuse_unsupported(body: dict[str, Any]) -> None:
    """Raises ApiError 400 naming the field. For the body of a chat request; null, empty and harmless values pass."""
    for name, problem in (
        ("functions", "functions: OpenAI's earlier form of tools, expected tools"),
        ("audio", "audio: the models here write text"),
        ("web_search_options", "web_search_options: this server looks nothing up"),
    ):
        if body.get(name):
            raise ApiError(400, problem, name, "unsupported")
    call = body.get("function_call")
    if call and call not in ("none", "auto"):
        problem = "function_call: OpenAI's earlier form of tool_choice, expected tool_choice"
        raise ApiError(400, problem, "function_call", "unsupported")
    others = [kind for kind in _list(body.get("modalities")) if kind != "text"]
    if others:
        raise ApiError(400, f"modalities: got {str(others[0])[:40]!r}, expected ['text']", "modalities", "unsupported")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
