"""continue_final_message: the answer goes on where the last message ends, instead of beginning a new one."""

import pytest
from conftest import write_model
from running_server import TOOL_TEMPLATE, WEATHER, running

pytest.importorskip("starlette")

ASKED = {"role": "user", "content": "Name a city."}
# What Llama 3's templates do with every message, and what Qwen3's do with one that has thoughts in it.
TRIMMING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% set c = m.content %}{% if m.role == 'assistant' %}"
    "{% if '</think>' in c %}{% set t = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}<think>\n{{ t }}\n</think>\n\n{% endif %}{% endif %}"
    "{{ c }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DROPPING = "{% for m in messages if m.role == 'user' %}{{ m.content }}\n{% endfor %}"
CHANGING = (
    "{% for m in messages %}{{ m.content | length }} {{ m.content | upper | replace('\ufdd0', '') }}\n{% endfor %}"
)
TWICE = "{% for m in messages %}{{ m.content }}|{{ m.content }};{% endfor %}"
HEAD = "<|im_start|>user\nName a city.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module", params=["chatml", "trimming", "thinking", "tools"])
def served(request, tmp_path_factory, chat_folder):
    """(name, server)"""
    template = {"trimming": TRIMMING, "thinking": THINKING, "tools": TOOL_TEMPLATE}.get(request.param)
    folder = (
        chat_folder if template is None else write_model(tmp_path_factory.mktemp("models") / "m", template=template)
    )
    with running(folder) as server:
        yield request.param, server


def talk(content, **more):
    return [ASKED, {"role": "assistant", "content": content} | more]


def prompt_of(server, body):
    tokens = server.post("/tokenize", body)["tokens"]
    return server.post("/detokenize", {"tokens": tokens})["prompt"]


FINALS = [
    "The city is",
    "The city is ",
    "x\n\n",
    " a b",
    "\n\ta\n b \n",
    "user",
    "<|im_end|>",
    "{{ x }}",
    "é😀\u200d",
    "a" * 300,
]


@pytest.mark.parametrize("final", FINALS)
def test_the_prompt_ends_where_the_message_ends(served, final):
    """Spaces at its end stay, unless the template takes them away: as in transformers."""
    name, server = served
    body = {"messages": talk(final), "continue_final_message": True}
    expected = HEAD + (final.strip() if name == "trimming" else final)
    assert prompt_of(server, body) == expected
    tokens = server.post("/tokenize", body)["tokens"]
    for change in (
        {"add_generation_prompt": False},
        {"chat_template_kwargs": {"add_generation_prompt": False}},
        {"messages": talk([{"type": "text", "text": final[:1]}, {"type": "text", "text": final[1:]}])},
    ):
        assert server.post("/tokenize", body | change)["tokens"] == tokens
    options = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    goes_on = server.post("/v1/completions", {"prompt": tokens, **options})["choices"][0]["text"]
    for change in (
        {},
        {"add_generation_prompt": False},
        {"continue_final_message": None, "messages": talk(final, prefix=True)},
        {"continue_final_message": None, "chat_template_kwargs": {"continue_final_message": True}},
    ):
        answer = server.post("/v1/chat/completions", body | options | change)
        assert answer["choices"][0]["message"]["content"] == goes_on
        assert answer["usage"]["prompt_tokens"] == len(tokens)
    events = server.events("/v1/chat/completions", body | options)
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events if e["choices"]) == goes_on


def test_thoughts_that_are_not_finished_go_on(served):
    name, server = served
    for final in ("<think>\nI should", "<think>\na\n</think>\n\nSo"):
        assert prompt_of(server, {"messages": talk(final), "continue_final_message": True}) == HEAD + final


def test_without_it_the_answer_is_a_message_of_its_own(served):
    name, server = served
    for more in ({}, {"continue_final_message": False}, {"add_generation_prompt": True}):
        prompt = prompt_of(server, {"messages": talk("Rome"), **more})
        assert prompt == HEAD + "Rome<|im_end|>\n<|im_start|>assistant\n"
    prompt = prompt_of(server, {"messages": talk("Rome"), "add_generation_prompt": False})
    assert prompt == HEAD + "Rome<|im_end|>\n"
    earlier = [ASKED, {"role": "assistant", "content": "x", "prefix": True}, ASKED]
    assert prompt_of(server, {"messages": earlier}).endswith("Name a city.<|im_end|>\n<|im_start|>assistant\n")


def test_a_message_that_cannot_go_on_is_refused_by_name(served):
    name, server = served
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    for messages, more in (
        ([ASKED], {}),
        ([ASKED, {"role": "assistant", "content": ""}], {}),
        ([ASKED, {"role": "assistant", "content": None}], {}),
        ([ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}], {}),
        ([ASKED, {"role": "assistant", "content": "x", "tool_calls": [call]}], {}),
        ([*talk("x"), {"role": "tool", "content": "x", "tool_call_id": "1"}], {}),
        (talk("x"), {"add_generation_prompt": True}),
    ):
        for path in ("/v1/chat/completions", "/tokenize"):
            error = server.refuse(path, {"messages": messages, "continue_final_message": True, **more})
            assert error["param"] == "continue_final_message", error


def test_tools_may_be_called_after_a_beginning(tmp_path):
    with running(write_model(tmp_path / "m", template=TOOL_TEMPLATE)) as server:
        body = {"messages": talk("I will look."), "tools": [WEATHER], "continue_final_message": True, "seed": 1}
        assert prompt_of(
            server, {name: body[name] for name in ("messages", "tools", "continue_final_message")}
        ).endswith("<|im_start|>assistant\nI will look.")
        free = server.post("/v1/chat/completions", body | {"max_tokens": 5, "ignore_eos": True, "tool_choice": "none"})
        assert free["choices"][0]["message"]["content"]
        pytest.importorskip("llguidance")
        forced = server.post("/v1/chat/completions", body | {"tool_choice": "required", "parallel_tool_calls": False})[
            "choices"
        ][0]
        assert forced["finish_reason"] == "tool_calls"
        assert forced["message"]["tool_calls"][0]["function"]["name"] == "weather"
        schema = {"type": "json_schema", "json_schema": {"schema": {"enum": ["x"]}}}
        begun = {"messages": talk("The answer is "), "continue_final_message": True, "response_format": schema}
        assert server.post("/v1/chat/completions", begun)["choices"][0]["message"]["content"] == '"x"'


@pytest.mark.parametrize("template", [DROPPING, CHANGING])
def test_a_template_that_does_not_show_it_is_told(tmp_path, template):
    with running(write_model(tmp_path / "m", template=template)) as server:
        error = server.refuse("/v1/chat/completions", {"messages": talk("abc"), "continue_final_message": True})
        assert error["param"] == "continue_final_message" and "template" in error["message"]


def test_the_last_place_counts_where_a_template_shows_it_twice(tmp_path):
    with running(write_model(tmp_path / "m", template=TWICE)) as server:
        prompt = prompt_of(server, {"messages": talk("abc "), "continue_final_message": True})
        assert prompt == "Name a city.|Name a city.;abc |abc "
