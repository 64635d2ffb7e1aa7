"""Requests of Anthropic's API, as JSON Schema."""

from pyllama.server.schemas import SAMPLING, STRING, Schema, either, integer, number, obj, text

_BLOCKS: Schema = {"type": "array", "items": obj({"type": STRING, "text": STRING}, ("type",))}

_TOOL: Schema = obj(
    {
        "type": text("custom, or left out; tools of other types are left out"),
        "name": text("", minLength=1, maxLength=64),
        "description": STRING,
        "input_schema": {"type": "object"},
    },
    ("name",),
)

_CONTENT: Schema = either(
    "text, or blocks of type text, tool_use, tool_result, thinking",
    STRING,
    {
        "type": "array",
        "items": obj(
            {
                "type": STRING,
                "text": STRING,
                "id": STRING,
                "name": STRING,
                "input": {"type": "object"},
                "tool_use_id": STRING,
                "content": either("of a tool_result", STRING, _BLOCKS),
            },
            ("type",),
        ),
    },
)

_FORMAT: Schema = obj({"type": {"type": "string", "enum": ["json_schema"]}, "schema": {"type": "object"}}, ("type",))

COUNT: Schema = obj(
    {
        "model": text("name of the model, as /v1/models has it; may be left out"),
        "messages": {
            "type": "array",
            "items": obj(
                {"role": {"type": "string", "enum": ["user", "assistant", "system"]}, "content": _CONTENT},
                ("role", "content"),
            ),
            "minItems": 1,
            "description": "the conversation; an assistant's message at its end is gone on with",
        },
        "system": either("text before it, or blocks of type text", STRING, _BLOCKS),
        "tools": {"type": "array", "items": _TOOL, "maxItems": 128, "description": "what the model may call"},
        "tool_choice": obj(
            {
                "type": {"type": "string", "enum": ["auto", "any", "tool", "none"]},
                "name": STRING,
                "disable_parallel_tool_use": {"type": "boolean"},
            },
            ("type",),
        ),
        "thinking": obj(
            {
                "type": {"type": "string", "enum": ["enabled", "adaptive", "disabled"]},
                "budget_tokens": {"type": "integer"},
            },
            ("type",),
            "whether the model thinks first, if its template lets it choose; the budget is not kept",
        ),
        "output_format": _FORMAT,
        "output_config": obj({"format": _FORMAT}),
    },
    ("messages",),
)

MESSAGES: Schema = obj(
    {
        **COUNT["properties"],
        "max_tokens": integer(1, 2**31 - 1, "tokens to write at most"),
        "temperature": number(0, 2, "0 takes the most probable token"),
        **{name: SAMPLING[name] for name in ("top_p", "top_k", "stream", "seed", "min_p")},
        "stop_sequences": {"type": "array", "items": STRING, "maxItems": 16},
        "metadata": obj({"user_id": STRING}),
    },
    ("messages", "max_tokens"),
)
