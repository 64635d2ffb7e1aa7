"""Requests of Ollama's API, as JSON Schema."""

from pyllama.server.schemas import (
    BOOLEAN,
    OBJECT,
    SAMPLING,
    STRING,
    TOOL,
    Schema,
    array,
    either,
    flag,
    integer,
    number,
    obj,
    one_of,
    text,
)

_OPTIONS: Schema = obj(
    {
        "temperature": number(0, 2, "0 takes the most probable token"),
        "top_k": integer(-1, "draw among so many of the most probable tokens"),
        "top_p": number(0, 1, "draw among the most probable tokens that together reach it"),
        "min_p": number(0, 1, "draw among tokens at least so many times as probable as the best"),
        "seed": integer(-(2**63), "the same seed gives the same answer", 2**63 - 1),
        "num_predict": integer(-2, "tokens to write at most; 0 and less: no limit"),
        "stop": SAMPLING["stop"],
        "repeat_penalty": {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
        "presence_penalty": number(-2, 2, ""),
        "frequency_penalty": number(-2, 2, ""),
    }
)

_COMMON: dict[str, Schema] = {
    "model": text("name of the model"),
    "stream": flag("send the answer as it comes, a line of JSON each; default true"),
    "format": either("json, or a schema of the JSON that the answer must be", STRING, OBJECT),
    "options": _OPTIONS,
    "think": either("whether the model thinks first, if its template lets one choose", BOOLEAN, STRING),
}

CHAT: Schema = obj(
    {
        **_COMMON,
        "messages": array(
            obj(
                {
                    "role": one_of("system", "user", "assistant", "tool"),
                    "content": STRING,
                    "thinking": STRING,
                    "tool_name": STRING,
                    "tool_call_id": STRING,
                    "tool_calls": array(
                        obj(
                            {
                                "id": STRING,
                                "function": obj({"name": STRING, "arguments": either("", OBJECT, STRING)}, ("name",)),
                            },
                            ("function",),
                        )
                    ),
                },
                ("role",),
            ),
            description="the conversation; none: the model is there, and that is all",
        ),
        "tools": array(TOOL, maxItems=128),
    },
    ("model",),
)

GENERATE: Schema = obj(
    {
        **_COMMON,
        "prompt": text("what a user says, or with raw a text to continue; none: the model is there, and that is all"),
        "suffix": text("what follows the gap that is to be filled, for models that know how"),
        "system": text("a system message before it"),
        "raw": flag("continue the prompt as it is, without template"),
    },
    ("model",),
)

SHOW: Schema = obj({"model": text("name of the model"), "name": text("the same, of old")})
