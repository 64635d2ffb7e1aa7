"""Where a chat's answer begins: in a message of its own, or where the last message ends."""

from pyllama.server.errors import invalid
from pyllama.server.json_object import JsonObject

FLAGS = ("add_generation_prompt", "continue_final_message")


def beginning_of(body: JsonObject) -> dict[str, bool]:
    """The two flags, as Tokenizer.encode_chat has them, by a checked body. Raises ApiError for what contradicts itself.

    They are fields, or among the template's variables: clients send them in either place.
    """
    last = body["messages"][-1]
    prompt, goes_on = (_flag(body, name) for name in FLAGS)
    if goes_on is None:  # DeepSeek's and Mistral's way of saying it
        goes_on = bool(last.get("prefix")) and last["role"] == "assistant"
    if goes_on and prompt:
        raise invalid("continue_final_message", "not together with add_generation_prompt")
    return dict(zip(FLAGS, (not goes_on and prompt is not False, goes_on), strict=True))


def _flag(body: JsonObject, name: str) -> bool | None:
    value = body.get(name)
    if value is None:
        value = (body.get("chat_template_kwargs") or {}).get(name)
    return value if isinstance(value, bool) else None
