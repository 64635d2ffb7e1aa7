"""Requests of Anthropic's API, as JSON Schema."""

from pyllama.server.schemas import (
    BOOLEAN,
    OBJECT,
    SAMPLING,
    STRING,
    TEXT_PARTS,
    Schema,
    array,
    either,
    number,
    obj,
    one_of,
    text,
)

_TOOL: Schema = obj(
    {
        "type": text("custom, or left out; tools of other types are left out"),
        "name": text("", minLength=1, maxLength=64),
        "description": STRING,
        "input_schema": OBJECT,
    },
    ("name",),
)

_CONTENT: Schema = either(
    "text, or blocks of type text, tool_use, tool_result, thinking",
    STRING,
    array(
        obj(
            {
                "type": STRING,
                "text": STRING,
                "id": STRING,
                "name": STRING,
                "input": OBJECT,
                "tool_use_id": STRING,
                "content": either("of a tool_result", STRING, TEXT_PARTS),
            },
            ("type",),
        )
    ),
)

_FORMAT: Schema = obj({"type": one_of("json_schema"), "schema": OBJECT}, ("type",))

COUNT: Schema = obj(
    {
        "model": text("name of the model, as /v1/models has it; may be left out"),
        "messages": array(
            obj(
                {"role": one_of("user", "assistant", "system"), "content": _CONTENT},
                ("role", "content"),
            ),
            minItems=1,
            description="the conversation; an assistant's message at its end is gone on with",
        ),
        "system": either("text before it, or blocks of type text", STRING, TEXT_PARTS),
        "tools": array(_TOOL, maxItems=128, description="what the model may call"),
        "tool_choice": obj(
            {
                "type": one_of("auto", "any", "tool", "none"),
                "name": STRING,
                "disable_parallel_tool_use": BOOLEAN,
            },
            ("type",),
        ),
        "thinking": obj(
            {
                "type": one_of("enabled", "adaptive", "disabled"),
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
        "temperature": number(0, 2, "0 takes the most probable token"),
        **{name: SAMPLING[name] for name in ("max_tokens", "top_p", "top_k", "stream", "seed", "min_p")},
        "stop_sequences": array(STRING, maxItems=16),
        "metadata": obj({"user_id": STRING}),
    },
    ("messages", "max_tokens"),
)
