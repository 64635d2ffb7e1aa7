"""The requests this server understands, as JSON Schema: what validate.py checks and what /openapi.json publishes."""

from typing import Any

from pyllama.server.validate import Schema

MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_STOPS = 16


def number(low: float, high: float, about: str) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high, "description": about}


def integer(low: int, about: str, high: int = 2**31 - 1) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high, "description": about}


def text(about: str, **more: Any) -> Schema:
    return {"type": "string", "description": about, **more}


def flag(about: str) -> Schema:
    return {"type": "boolean", "description": about}


def array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def one_of(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}


def obj(properties: dict[str, Schema], required: tuple[str, ...] = (), about: str = "") -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(required)
    if about:
        schema["description"] = about
    return schema


def either(about: str, *choices: Schema) -> Schema:
    return {"anyOf": list(choices), "description": about}


TOKEN_IDS: Schema = array({"type": "integer", "minimum": 0, "maximum": 2**31})
STRING: Schema = {"type": "string"}
OBJECT: Schema = {"type": "object"}
BOOLEAN: Schema = {"type": "boolean"}

SAMPLING: dict[str, Schema] = {
    "model": text("name of the model, as /v1/models has it; may be left out"),
    "temperature": number(0, 2, "0 takes the most probable token; default: the model's own, else 0.7"),
    "top_p": number(0, 1, "draw among the most probable that together reach it; default: the model's own, else 0.95"),
    "top_k": integer(-1, "draw among so many of the best, 0: all; default: the model's own, else 40"),
    "min_p": number(0, 1, "at least so many times as probable as the best; default: the model's own, else 0.05"),
    "seed": integer(-(2**63), "the same seed gives the same answer; choice i of n has seed + i", 2**63 - 1),
    "stop": either(
        "the answer ends before any of these; an empty one is none",
        STRING,
        array(STRING, maxItems=MAX_STOPS),
    ),
    "stop_token_ids": {**TOKEN_IDS, "maxItems": 64, "description": "the answer ends at any of these"},
    "ignore_eos": flag("go on past the model's own end of text"),
    "max_tokens": integer(1, "tokens to write at most"),
    "presence_penalty": number(-2, 2, "subtracted from the logits of tokens the answer has; default 0"),
    "frequency_penalty": number(-2, 2, "the same, for each time the answer has them; default 0"),
    "repetition_penalty": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 100,
        "description": "divides the logits of tokens in prompt and answer; default 1",
    },
    "logit_bias": {
        "type": "object",
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        "description": "token id: what is added to its logit",
    },
    "n": integer(1, "answers to write; default 1", MAX_CHOICES),
    "stream": flag("send the answer as it comes, as server-sent events"),
    "stream_options": obj(
        {
            "include_usage": flag("end the stream with the numbers of tokens"),
            "include_progress": flag("say every second, while nothing else comes, how far the request is"),
        }
    ),
    "user": text("takes turns in the queue with other users; default: the client's address"),
    "logits_fingerprint": flag("report SHA-256 of the logits of every sampled position, for each choice"),
}

TOOL_TYPE: Schema = text("function; tools of other types are left out", minLength=1)
FUNCTION: dict[str, Schema] = {
    "name": text("", minLength=1, maxLength=64),
    "description": STRING,
    "parameters": OBJECT,
    "strict": BOOLEAN,
}
TOOL: Schema = obj({"type": TOOL_TYPE, "function": obj(FUNCTION, ("name",))}, ("type",))

TEXT_PARTS: Schema = array(obj({"type": STRING, "text": STRING}, ("type",)))

MESSAGE: Schema = obj(
    {
        "role": one_of("system", "developer", "user", "assistant", "tool", "function"),
        "content": either(
            "text, or a list of parts of type text",
            STRING,
            TEXT_PARTS,
        ),
        "name": STRING,
        "tool_calls": array(
            obj(
                {
                    "id": STRING,
                    "type": STRING,
                    "function": obj({"name": STRING, "arguments": STRING}, ("name", "arguments")),
                },
                ("function",),
            )
        ),
        "tool_call_id": STRING,
        "prefix": flag("of the last message, an assistant's: as continue_final_message"),
    },
    ("role",),
)

CONTINUATION: dict[str, Schema] = {
    "add_generation_prompt": flag("end the prompt with the beginning of an answer; default true, but for the next"),
    "continue_final_message": flag("go on with the last message, an assistant's, instead of answering it"),
}

CHAT: Schema = obj(
    {
        **SAMPLING,
        "messages": array(MESSAGE, minItems=1, description="the conversation"),
        "max_completion_tokens": integer(1, "tokens to write at most; goes before max_tokens"),
        "logprobs": flag("report the log-probability of each token"),
        "top_logprobs": integer(0, "and those of so many of the most probable ones; needs logprobs", 20),
        "response_format": obj(
            {
                "type": one_of("text", "json_object", "json_schema"),
                "json_schema": obj({"name": STRING, "schema": OBJECT}),
                "schema": {"type": "object", "description": "of the JSON, in place of json_schema"},
            },
            ("type",),
            "what the answer must be; enforced token by token",
        ),
        "prediction": obj(
            {
                "type": one_of("content"),
                "content": either("text, or a list of parts of type text", STRING, TEXT_PARTS),
            },
            ("type", "content"),
            "what the answer may repeat, as an edited file does the old one: proposed where the server drafts",
        ),
        "tools": array(TOOL, maxItems=128, description="functions the model may call"),
        "tool_choice": either(
            "whether it may, must not or must call one",
            one_of("none", "auto", "required"),
            obj(
                {
                    "type": text("function or allowed_tools"),
                    "function": obj({"name": STRING}),
                    "allowed_tools": obj(
                        {
                            "mode": one_of("auto", "required"),
                            "tools": array(obj({"type": STRING, "function": obj({"name": STRING})})),
                        }
                    ),
                },
                ("type",),
            ),
        ),
        "parallel_tool_calls": flag("whether an answer may have several calls; default true"),
        "reasoning_effort": text("none, minimal, low, medium, high: how long to think, for templates that ask"),
        "chat_template_kwargs": {"type": "object", "description": "more variables for the chat template"},
        "parse_special": flag("control tokens written out in messages count as such; default false: they are text"),
        **CONTINUATION,
    },
    ("messages",),
)


def listed(given: Any) -> list[Any]:
    """What prompts() describes, several or not."""
    return [given] if isinstance(given, str) or isinstance(given[0], int) else given


def prompts(description: str, most: int) -> Schema:
    """A text or token ids, or a list of up to so many of either."""
    ids = {**TOKEN_IDS, "minItems": 1}
    lists = (array(items, minItems=1, maxItems=most) for items in (STRING, ids))
    return either(description, STRING, ids, *lists)


COMPLETION: Schema = obj(
    {
        **SAMPLING,
        "prompt": prompts("text or token ids to continue, or a list of either", MAX_PROMPTS),
        "max_tokens": integer(0, "tokens to write at most; default 16. 0 reads the prompt alone"),
        "logprobs": integer(0, "report log-probabilities: of the token, and of so many of the most probable", 20),
        "echo": flag("begin the answer with the prompt, and its log-probabilities with the prompt's"),
        "best_of": integer(1, "must equal n", MAX_CHOICES),
        "suffix": text("what follows the gap that is to be filled, for models that know how"),
    },
    ("prompt",),
)

APPLY_TEMPLATE: Schema = obj(
    {name: CHAT["properties"][name] for name in ("model", "messages", "tools", "chat_template_kwargs", *CONTINUATION)},
    ("messages",),
)

TOKENIZE: Schema = obj(
    {
        "model": STRING,
        "prompt": text("text; or give messages"),
        "messages": {**CHAT["properties"]["messages"], "description": "a conversation; or give a prompt"},
        "add_special_tokens": flag("begin and end as the model's files say; default true. For a prompt only"),
        "parse_special": flag("control tokens written out in the text count as such; default false"),
        **CONTINUATION,
        **{name: CHAT["properties"][name] for name in ("tools", "chat_template_kwargs")},
    }
)

DETOKENIZE: Schema = obj({"model": STRING, "tokens": TOKEN_IDS}, ("tokens",))
