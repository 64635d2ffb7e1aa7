"""A request of OpenAI's Responses API, as JSON Schema."""

from pyllama.server.schemas import (
    CHAT,
    FUNCTION,
    OBJECT,
    SAMPLING,
    STRING,
    TOOL_TYPE,
    Schema,
    array,
    either,
    flag,
    obj,
    one_of,
    text,
)

_PARTS: Schema = array(obj({"type": STRING, "text": STRING, "refusal": STRING}, ("type",)))

_ITEM: Schema = obj(
    {
        "type": text("message, function_call, function_call_output or reasoning; default message"),
        "role": one_of("system", "developer", "user", "assistant"),
        "content": either("of a message", STRING, _PARTS),
        "call_id": STRING,
        "name": STRING,
        "arguments": STRING,
        "output": either("of a call", STRING, _PARTS),
    }
)

RESPONSE: Schema = obj(
    {
        **{
            name: SAMPLING[name]
            for name in ("model", "temperature", "top_p", "top_k", "min_p", "seed", "stream", "user")
        },
        "input": either("text, or the items of a conversation", STRING, array(_ITEM, minItems=1)),
        "instructions": text("a system message before it, for this response only"),
        "previous_response_id": text("go on after this one; instructions are not carried on"),
        "store": flag("whether previous_response_id may name this one; default true"),
        "max_output_tokens": SAMPLING["max_tokens"],
        "text": obj(
            {
                "format": obj(
                    {
                        "type": one_of("text", "json_object", "json_schema"),
                        "name": STRING,
                        "schema": OBJECT,
                    },
                    ("type",),
                )
            }
        ),
        "tools": array(obj({"type": TOOL_TYPE, **FUNCTION}, ("type",)), maxItems=128),
        "tool_choice": either(
            "whether it may, must not or must call one",
            one_of("none", "auto", "required"),
            obj(
                {
                    "type": text("function or allowed_tools"),
                    "name": STRING,
                    "mode": one_of("auto", "required"),
                    "tools": array(obj({"type": STRING, "name": STRING})),
                },
                ("type",),
            ),
        ),
        "parallel_tool_calls": flag("whether an answer may have several calls; default true"),
        "reasoning": obj(
            {"effort": text("none and minimal ask the model not to think, all others to think, if its template can")}
        ),
        "chat_template_kwargs": CHAT["properties"]["chat_template_kwargs"],
        "metadata": OBJECT,
        "background": flag("refused"),
    },
    ("input",),
)
