"""Where a chat's answer begins: in a message of its own, or where the last message ends."""

from dataclasses import dataclass
from typing import Any

from pyllama.server.errors import ApiError


@dataclass(frozen=True, slots=True)
class Beginning:
    """The two flags, as Tokenizer.encode_chat has them."""

    add_generation_prompt: bool
    continue_final_message: bool


def beginning_of(body: dict[str, Any]) -> Beginning:
    """What a checked body says of it. Raises ApiError for what contradicts itself."""
    index = len(body["messages"]) - 1
    last = body["messages"][index]
    prompt, goes_on = body.get("add_generation_prompt"), body.get("continue_final_message")
    if goes_on is None:  # DeepSeek's and Mistral's way of saying it
        goes_on = bool(last.get("prefix")) and last["role"] == "assistant"
    if not goes_on:
        return Beginning(prompt is not False, False)
    if prompt:
        message = "continue_final_message: not together with add_generation_prompt"
        raise ApiError(400, message, "continue_final_message", "invalid_value")
    if last["role"] != "assistant":
        at = f"messages[{index}].role"
        message = f"{at}: got {last['role']!r}, expected 'assistant' for continue_final_message"
        raise ApiError(400, message, at, "invalid_value")
    if last.get("tool_calls"):
        at = f"messages[{index}].tool_calls"
        raise ApiError(400, f"{at}: a message that ends with calls cannot go on", at, "invalid_value")
    return Beginning(False, True)
