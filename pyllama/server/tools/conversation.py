"""OpenAI's messages as chat templates take them. Earlier calls stay as they are: the template knows what it wants."""

from pyllama.server.errors import unsupported
from pyllama.server.json_object import JsonObject


def messages_for_template(messages: list[JsonObject]) -> list[JsonObject]:
    """OpenAI's messages as chat templates take them: text for parts, roles that templates know."""
    result = []
    for index, message in enumerate(messages):
        message = {key: value for key, value in message.items() if value is not None}
        if isinstance(message.get("content"), list):
            message["content"] = text_of(message["content"], f"messages[{index}].content")
        elif "content" not in message:
            message["content"] = ""
        if message["role"] == "developer":
            message["role"] = "system"
        if message.get("tool_calls"):
            message["tool_calls"] = [{**call, "type": "function"} for call in message["tool_calls"]]
        result.append(message)
    return result


def text_of(parts: list[JsonObject], where: str) -> str:
    """The text of a list of parts. Raises ApiError for parts that are none, naming the field they stand in."""
    for index, part in enumerate(parts):
        if part["type"] != "text" or not isinstance(part.get("text"), str):
            raise unsupported(f"{where}[{index}]", f"a part of type {part['type'][:40]!r}, expected text")
    return "".join(part["text"] for part in parts)
