"""Where a chat's answer begins: in a message of its own, or where the last message ends."""

from dataclasses import dataclass
from typing import Any

from pyllama.server.errors import ApiError

FLAGS = ("add_generation_prompt", "continue_final_message")


@dataclass(frozen=True, slots=True)
class Beginning:
    """The two flags, as Tokenizer.encode_chat has them."""

    add_generation_prompt: bool
    continue_final_message: bool


def beginning_of(body: dict[str, Any]) -> Beginning:
    """What a checked body says of it. Raises ApiError for what contradicts itself.

    The two flags are fields, or among the template's variables: clients send them in either place.
    """
    last = body["messages"][-1]
    prompt, goes_on = (_flag(body, name) for name in FLAGS)
    if goes_on is None:  # DeepSeek's and Mistral's way of saying it
        goes_on = bool(last.get("prefix")) and last["role"] == "assistant"
    if not goes_on:
        return Beginning(prompt is not False, False)
    if prompt:
        message = "continue_final_message: not together with add_generation_prompt"
        raise ApiError(400, message, "continue_final_message", "invalid_value")
    return Beginning(False, True)


def _flag(body: dict[str, Any], name: str) -> bool | None:
    value = body.get(name)
    if value is None:
        value = (body.get("chat_template_kwargs") or {}).get(name)
    return value if isinstance(value, bool) else None
