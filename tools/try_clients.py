"""A real model through the official clients of the APIs that the server speaks: a table of what each asked and got.

    python tools/try_clients.py qwen2.5-coder-1.5b.gguf [--only openai] [--thinks OTHER]

Clients: openai (chat, completions, responses), anthropic, ollama, and litellm by three ways; those that are missing are
told. Each is asked whole and streamed, with tools and their results, with a schema, and with errors, and must give
what the API promises: its own classes, its own shapes, the same text both ways. The model has to take tools.

Thinking needs a model that thinks: --thinks, or else MODEL is made one. A copy of its file (a GGUF) gets, byte for byte
in the place of its chat template, one that asks for thoughts and begins them with <think>; what comes then is the
model's own.

Needs pyllama[server,grammar], openai, anthropic, ollama, litellm. Exit code 1 if anything was not as promised.
"""

import argparse
import importlib.util
import json
import mmap
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask a server of its own for prices

KEY = "correct-horse"
QUESTION = [{"role": "user", "content": "Name the capital of France in one short sentence."}]
ASKED = [{"role": "user", "content": "What is the weather in Paris?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
          "additionalProperties": False}  # fmt: skip
ABOUT = "Get the current weather of a city"
TOOL = {"type": "function", "function": {"name": "get_weather", "description": ABOUT, "parameters": SCHEMA}}
RESPONSES_TOOL = {"type": "function", "strict": True, **TOOL["function"]}
ANTHROPIC_TOOL = {"name": "get_weather", "description": ABOUT, "input_schema": SCHEMA}
OLLAMA_OPTIONS = {"temperature": 0, "num_predict": 60}
RESULT = '{"temperature_c": 31, "sky": "cloudless"}'
IN_WORDS = "Answer in one sentence."
LONG = [{"role": "user", "content": "again and " * 4000}]
RIDDLE = [{"role": "user", "content": 'How many letters has the word "tree"?'}]
TEMPLATE = (
    "<|im_start|>system\nFirst think: write a short reasoning between <think> and </think>. After </think> write the"
    " answer alone.<|im_end|>\n{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}{% endif %}"
)


class Failed(AssertionError):
    """What came is not what the API promises."""


def need(condition: object, what: object) -> None:
    if not condition:
        raise Failed(str(what))


def refused(kind: type[Exception], what: Callable, word: str = "") -> None:
    """The client raises this class; `word` is in its message, or in the body that it took apart."""
    try:
        what()
    except kind as error:
        told = f"{error} {getattr(error, 'body', '')}"
        need(word in told, f"{word!r} is not in {told}")
    else:
        raise Failed(f"no {kind.__name__}")


def only(calls: list) -> object:
    need(len(calls) == 1, f"{len(calls)} calls")
    return calls[0]


def in_paris(name: str, arguments: object) -> None:
    arguments = json.loads(arguments) if isinstance(arguments, str) else dict(arguments)
    need((name, arguments) == ("get_weather", {"city": "Paris"}), f"{name}({arguments})")


def said(text: str) -> None:
    """An answer in words to the tool's result."""
    need("31" in text and text[:1] not in "{`", text)


# --- a client each: the docstring is its name in the table, ask_... and thinks are what is asked. ---


class OpenAI:
    """openai, chat and completions"""

    def __init__(self, url: str, model: str, key: str):
        import openai

        self.errors, self.model = openai, model
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=600)

    def chat(self, messages=QUESTION, **options):
        options = {"temperature": 0, "max_tokens": 60} | options
        return self.client.chat.completions.create(model=self.model, messages=messages, **options)

    def ask_whole_and_streamed(self):
        whole = self.chat()
        parts = list(self.chat(stream=True, stream_options={"include_usage": True}))
        text = "".join(choice.delta.content or "" for part in parts for choice in part.choices)
        need("Paris" in text and text == whole.choices[0].message.content, text)
        need(whole.choices[0].finish_reason == "stop" and parts[-1].usage == whole.usage, parts[-1].usage)

    def ask_sampled_with_a_seed(self):
        first, again = (self.chat(temperature=0.8, seed=5, n=2) for _ in range(2))
        texts = [[choice.message.content for choice in made.choices] for made in (first, again)]
        need(texts[0] == texts[1] and len(texts[0]) == 2, texts)

    def ask_logprobs(self):
        made = self.chat(logprobs=True, top_logprobs=3)
        content = made.choices[0].logprobs.content
        need("".join(one.token for one in content) == made.choices[0].message.content, content)
        need(all(len(one.top_logprobs) == 3 and one.logprob <= 0 for one in content), content)

    def ask_tools_whole(self):
        call = only(self.chat(ASKED, tools=[TOOL]).choices[0].message.tool_calls)
        in_paris(call.function.name, call.function.arguments)

    def ask_tools_streamed(self):
        with self.client.chat.completions.stream(
            model=self.model, messages=ASKED, temperature=0, max_tokens=60, tools=[TOOL]
        ) as stream:
            made = stream.get_final_completion().choices[0]
        call = only(made.message.tool_calls)
        need(made.finish_reason == "tool_calls", made.finish_reason)
        in_paris(call.function.name, call.function.arguments)

    def ask_a_tools_result(self):
        message = self.chat(ASKED, tools=[TOOL]).choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": RESULT}
        system = {"role": "system", "content": IN_WORDS}
        said(self.chat([system, *ASKED, message, result], tools=[TOOL]).choices[0].message.content)

    def ask_a_schema(self):
        form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
        for stream in (False, True):
            made = self.chat(response_format=form, stream=stream)
            content = (part.choices[0].delta.content for part in made) if stream else [made.choices[0].message.content]
            text = "".join(piece or "" for piece in content)
            need(json.loads(text).keys() == {"city"}, text)

    def ask_completions(self):
        asked = {"model": self.model, "prompt": "def add(a, b):\n    return", "max_tokens": 8, "temperature": 0}
        whole = self.client.completions.create(**asked).choices[0].text
        streamed = "".join(part.choices[0].text for part in self.client.completions.create(**asked, stream=True))
        need("a + b" in whole and streamed == whole, whole)
        gap = self.client.completions.create(**asked | {"prompt": "def add(a, b):\n", "suffix": "\n\nadd(1, 2)\n"})
        need("a + b" in gap.choices[0].text, gap.choices[0].text)

    def ask_embeddings(self):
        made = self.client.embeddings.create(model=self.model, input=["a cat", "a dog", "interest rates"])
        need(all(abs(sum(x * x for x in one.embedding) - 1) < 1e-5 for one in made.data), "not of length 1")

    def ask_models(self):
        need(next(iter(self.client.models.list())).id == self.model, "not listed")
        need(self.client.models.retrieve(self.model).id == self.model, "not found")

    def ask_a_stream_that_is_hung_up(self):
        stream = self.chat(stream=True, max_tokens=400, messages=[{"role": "user", "content": "Count to a hundred."}])
        next(iter(stream))
        stream.close()
        need("Paris" in self.chat().choices[0].message.content, "no answer after that")

    def ask_errors(self):
        refused(self.errors.BadRequestError, lambda: self.chat(temperature=9), "temperature")
        refused(self.errors.BadRequestError, lambda: self.chat(LONG), "context_length_exceeded")
        refused(self.errors.NotFoundError, lambda: self.client.models.retrieve("other"), "other")
        wrong = self.client.with_options(api_key="wrong")
        refused(self.errors.AuthenticationError, lambda: wrong.models.list(), "key")


class OpenAIResponses(OpenAI):
    """openai, responses"""

    ask_sampled_with_a_seed = ask_logprobs = ask_completions = ask_embeddings = ask_models = None
    ask_a_stream_that_is_hung_up = None

    def respond(self, asked=QUESTION, **options):
        options = {"temperature": 0, "max_output_tokens": 60} | options
        return self.client.responses.create(model=self.model, input=asked, **options)

    def streamed(self, asked=QUESTION, **options):
        """All events; their numbers ascend, and the response in the last one is what a whole one would be."""
        events = list(self.respond(asked, stream=True, **options))
        need([event.sequence_number for event in events] == list(range(len(events))), "numbers of events")
        return events

    def ask_whole_and_streamed(self):
        whole, events = self.respond(), self.streamed()
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        need("Paris" in text and text == whole.output_text == events[-1].response.output_text, text)
        need(events[-1].type == "response.completed" and whole.status == "completed", events[-1].type)

    def ask_tools_whole(self):
        call = only(
            [item for item in self.respond(ASKED, tools=[RESPONSES_TOOL]).output if item.type == "function_call"]
        )
        in_paris(call.name, call.arguments)

    def ask_tools_streamed(self):
        events = self.streamed(ASKED, tools=[RESPONSES_TOOL])
        done = only([event for event in events if event.type == "response.function_call_arguments.done"])
        call = only([item for item in events[-1].response.output if item.type == "function_call"])
        need(done.arguments == call.arguments, done)
        in_paris(call.name, call.arguments)

    def ask_a_tools_result(self):
        first = self.respond(ASKED, tools=[RESPONSES_TOOL], instructions=IN_WORDS)
        result = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": RESULT}
        kept = {"tools": [RESPONSES_TOOL], "instructions": IN_WORDS}
        said(self.respond([result], previous_response_id=first.id, **kept).output_text)

    def ask_kept_responses(self):
        first = self.respond("My name is Ada. Say hello.")
        after = self.respond("What is my name?", previous_response_id=first.id)
        need("Ada" in after.output_text, after.output_text)
        need(self.client.responses.retrieve(first.id).output_text == first.output_text, "another text")
        self.client.responses.delete(first.id)
        refused(self.errors.NotFoundError, lambda: self.client.responses.retrieve(first.id))

    def ask_a_schema(self):
        form = {"format": {"type": "json_schema", "name": "answer", "strict": True, "schema": SCHEMA}}
        need(json.loads(self.respond(text=form).output_text).keys() == {"city"}, "not of the schema")

    def ask_errors(self):
        refused(self.errors.BadRequestError, lambda: self.respond(temperature=9), "temperature")
        refused(self.errors.BadRequestError, lambda: self.respond(LONG), "context_length_exceeded")
        refused(self.errors.BadRequestError, lambda: self.respond(previous_response_id="resp_0"), "previous_response")
        refused(self.errors.BadRequestError, lambda: self.respond(background=True), "background")

    def thinks(self):
        whole, events = self.respond(RIDDLE, max_output_tokens=300), self.streamed(RIDDLE, max_output_tokens=300)
        thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
        need([item.type for item in whole.output] == ["reasoning", "message"], whole.output)
        need(thought and thought == whole.output[0].content[0].text, thought)
        need("4" in whole.output_text or "four" in whole.output_text, whole.output_text)
        need("think>" not in whole.output_text and whole.usage.output_tokens_details.reasoning_tokens > 0, whole.usage)
        plain = self.respond(RIDDLE, max_output_tokens=300, reasoning={"effort": "none"})
        need(plain.output[-1].type == "message", plain.output)


class Anthropic:
    """anthropic"""

    def __init__(self, url: str, model: str, key: str):
        import anthropic

        # A claude-* name is one of the server's aliases: programs that insist on one are why.
        self.errors, self.model = anthropic, "claude-of-the-house"
        self.client = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, timeout=600)

    def asked(self, messages=QUESTION, **options):
        return {"model": self.model, "max_tokens": 60, "messages": messages, "extra_body": {"temperature": 0}} | options

    def message(self, messages=QUESTION, **options):
        return self.client.messages.create(**self.asked(messages, **options))

    def streamed(self, messages=QUESTION, **options):
        with self.client.messages.stream(**self.asked(messages, **options)) as stream:
            return list(stream), stream.get_final_message()

    def ask_whole_and_streamed(self):
        whole, (events, final) = self.message(), self.streamed()
        text = "".join(event.text for event in events if event.type == "text")
        need("Paris" in text and text == whole.content[0].text == final.content[0].text, text)
        need((whole.type, whole.role, whole.stop_reason) == ("message", "assistant", "end_turn"), whole)
        need(final.usage.output_tokens == whole.usage.output_tokens > 0, final.usage)

    def ask_system_stop_and_an_answer_begun(self):
        made = self.message(system="You answer in capital letters.", stop_sequences=["PARIS", "Paris"])
        need(made.stop_reason == "stop_sequence" and made.stop_sequence.upper() == "PARIS", made)
        begun = [*QUESTION, {"role": "assistant", "content": "The capital of France is"}]
        need("Paris" in self.message(begun).content[0].text, "not gone on with")

    def ask_tools_whole(self):
        made = self.message(ASKED, tools=[ANTHROPIC_TOOL])
        call = only([block for block in made.content if block.type == "tool_use"])
        need(made.stop_reason == "tool_use", made.stop_reason)
        in_paris(call.name, call.input)

    def ask_tools_streamed(self):
        events, final = self.streamed(ASKED, tools=[ANTHROPIC_TOOL])
        call = only([block for block in final.content if block.type == "tool_use"])
        need(any(event.type == "input_json" for event in events), "no event of its input")
        in_paris(call.name, call.input)

    def ask_a_tools_result(self):
        tools = {"tools": [ANTHROPIC_TOOL], "system": IN_WORDS}
        made = self.message(ASKED, **tools)
        result = {"type": "tool_result", "tool_use_id": made.content[-1].id, "content": RESULT}
        turns = [*ASKED, {"role": "assistant", "content": made.content}, {"role": "user", "content": [result]}]
        said(self.message(turns, **tools).content[0].text)

    def ask_a_schema(self):
        made = self.message(output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
        need(json.loads(made.content[0].text).keys() == {"city"}, made.content)

    def ask_count_and_models(self):
        counted = self.client.messages.count_tokens(model=self.model, messages=QUESTION).input_tokens
        usage = self.message().usage
        need(counted == usage.input_tokens + (usage.cache_read_input_tokens or 0), counted)
        need(next(iter(self.client.models.list())).id, "no model is listed")

    def ask_errors(self):
        refused(self.errors.BadRequestError, lambda: self.message(max_tokens=0), "max_tokens")
        refused(self.errors.BadRequestError, lambda: self.message(LONG), "prompt is too long")
        refused(self.errors.NotFoundError, lambda: self.message(model="other"), "not_found_error")
        wrong = self.client.with_options(api_key="wrong")
        refused(self.errors.AuthenticationError, lambda: wrong.messages.create(**self.asked()), "authentication_error")

    def thinks(self):
        options = {"max_tokens": 1500, "thinking": {"type": "enabled", "budget_tokens": 1024}}
        whole, (events, final) = self.message(RIDDLE, **options), self.streamed(RIDDLE, **options)
        need([block.type for block in whole.content] == ["thinking", "text"], whole.content)
        thought = "".join(event.thinking for event in events if event.type == "thinking")
        need(thought == whole.content[0].thinking == final.content[0].thinking != "", thought)
        text = whole.content[1].text
        need(("4" in text or "four" in text) and "think>" not in text, text)
        turns = [*RIDDLE, {"role": "assistant", "content": whole.content}, {"role": "user", "content": "Thank you."}]
        need(self.message(turns, **options).content, "nothing after a turn with thoughts")
        # Not asked for, none are begun.
        need("thinking" not in [block.type for block in self.message(RIDDLE).content][1:], "thoughts out of place")


class Ollama:
    """ollama"""

    def __init__(self, url: str, model: str, key: str):
        import ollama

        self.errors, self.model, self.url = ollama, model, url
        self.client = ollama.Client(host=url, headers={"Authorization": f"Bearer {key}"}, timeout=600)

    def chat(self, messages=QUESTION, **options):
        return self.client.chat(self.model, messages, **{"options": OLLAMA_OPTIONS} | options)

    def ask_whole_and_streamed(self):
        whole, parts = self.chat(), list(self.chat(stream=True))
        text = "".join(part.message.content for part in parts)
        need("Paris" in text and text == whole.message.content, text)
        need([part.done for part in parts] == [False] * (len(parts) - 1) + [True], "done")
        need(whole.done_reason == "stop" and whole.eval_count == parts[-1].eval_count > 0, whole)

    def ask_generate(self):
        whole = self.client.generate(self.model, QUESTION[0]["content"], options=OLLAMA_OPTIONS)
        parts = self.client.generate(self.model, QUESTION[0]["content"], options=OLLAMA_OPTIONS, stream=True)
        need("Paris" in whole.response and "".join(part.response for part in parts) == whole.response, whole.response)
        gap = {"suffix": "\n\nadd(1, 2)\n", "options": OLLAMA_OPTIONS | {"num_predict": 8}}
        filled = self.client.generate(self.model, "def add(a, b):\n", **gap).response
        need("a + b" in filled, filled)

    def ask_tools_whole(self):
        call = only(self.chat(ASKED, tools=[TOOL]).message.tool_calls)
        in_paris(call.function.name, call.function.arguments)

    def ask_tools_streamed(self):
        parts = self.chat(ASKED, tools=[TOOL], stream=True)
        call = only([call for part in parts for call in part.message.tool_calls or []])
        in_paris(call.function.name, call.function.arguments)

    def ask_a_python_function_as_tool(self):
        def get_weather(city: str) -> str:
            """Get the current weather of a city.

            Args:
                city: its name
            """

        call = only(self.chat(ASKED, tools=[get_weather]).message.tool_calls)
        in_paris(call.function.name, call.function.arguments)

    def ask_a_tools_result(self):
        message = self.chat(ASKED, tools=[TOOL]).message
        system, result = (
            {"role": "system", "content": IN_WORDS},
            {"role": "tool", "tool_name": "get_weather", "content": RESULT},
        )
        said(self.chat([system, *ASKED, message, result], tools=[TOOL]).message.content)

    def ask_a_schema(self):
        for form in (SCHEMA, "json"):
            text = self.chat([{"role": "user", "content": "The capital of France, as JSON."}], format=form)
            need(isinstance(json.loads(text.message.content), dict), text)

    def ask_what_is_there(self):
        need(self.client.list().models[0].model == self.model, "not listed")
        need(self.client.ps().models[0].context_length == 2048, "another context")
        shown = self.client.show(self.model)
        need("tools" in shown.capabilities and shown.details.family, shown.capabilities)

    def ask_embeddings(self):
        need(len(self.client.embed(self.model, ["a cat", "a dog"]).embeddings) == 2, "not two")

    def ask_errors(self):
        for what, word in (
            (lambda: self.chat(options={"temperature": 9}), "temperature"),
            (lambda: self.chat(LONG), "too long"),
            (lambda: self.client.chat("other", QUESTION), "other"),
            (lambda: self.client.pull("other"), ""),
            (lambda: self.errors.Client(host=self.url, headers={"Authorization": "Bearer wrong"}).list(), "key"),
        ):
            refused(self.errors.ResponseError, what, word)

    def thinks(self):
        whole = self.chat(RIDDLE, think=True, options={"temperature": 0, "num_predict": 300})
        parts = list(self.chat(RIDDLE, think=True, stream=True, options={"temperature": 0, "num_predict": 300}))
        text, thought = whole.message.content, whole.message.thinking
        need(thought and "".join(part.message.thinking or "" for part in parts) == thought, thought)
        need(("4" in text or "four" in text) and "think>" not in text, text)
        need("".join(part.message.content for part in parts) == text, text)
        need("thinking" in self.client.show(self.model).capabilities, "not shown")


class LiteLLM:
    """litellm as openai/"""

    prefix, base = "openai/", "/v1"

    def __init__(self, url: str, model: str, key: str):
        import litellm

        litellm.suppress_debug_info = True
        self.litellm = litellm
        self.address = {"model": self.prefix + model, "api_base": url + self.base, "api_key": key, "num_retries": 0}

    def chat(self, messages=QUESTION, **options):
        options = {"temperature": 0, "max_tokens": 60} | options
        return self.litellm.completion(messages=messages, **self.address, **options)

    def ask_whole_and_streamed(self):
        whole = self.chat()
        text = "".join(part.choices[0].delta.content or "" for part in self.chat(stream=True))
        need("Paris" in text and text == whole.choices[0].message.content, text)
        need(whole.choices[0].finish_reason == "stop" and whole.usage.completion_tokens > 0, whole)

    def ask_tools_whole(self):
        call = only(self.chat(ASKED, tools=[TOOL]).choices[0].message.tool_calls)
        in_paris(call.function.name, call.function.arguments)

    def ask_tools_streamed(self):
        parts = list(self.chat(ASKED, tools=[TOOL], stream=True))
        made = self.litellm.stream_chunk_builder(parts, messages=ASKED)
        call = only(made.choices[0].message.tool_calls)
        in_paris(call.function.name, call.function.arguments)

    def ask_a_tools_result(self):
        message = self.chat(ASKED, tools=[TOOL]).choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "name": "get_weather", "content": RESULT}
        system = {"role": "system", "content": IN_WORDS}
        said(self.chat([system, *ASKED, message.model_dump(), result], tools=[TOOL]).choices[0].message.content)

    def ask_errors(self):
        # One of its classes, whatever else it is: litellm maps by words.
        refused(self.litellm.BadRequestError, lambda: self.chat(LONG), "too long")
        self.address["api_key"], kept = "wrong", self.address["api_key"]
        try:
            refused(self.litellm.AuthenticationError, self.chat)
        finally:
            self.address["api_key"] = kept


class LiteLLMAnthropic(LiteLLM):
    """litellm as anthropic/"""

    prefix, base = "anthropic/", ""


class LiteLLMOllama(LiteLLM):
    """litellm as ollama_chat/"""

    prefix, base = "ollama_chat/", ""


CLIENTS = {"openai": [OpenAI, OpenAIResponses], "anthropic": [Anthropic], "ollama": [Ollama],
           "litellm": [LiteLLM, LiteLLMAnthropic, LiteLLMOllama]}  # fmt: skip


# --- the server, and the table ---


class Serving:
    """`pyllama serve` of a model, on a port of its own, with a key; a context manager that gives (url, name)."""

    def __init__(self, model: Path, folder: Path):
        (folder / "key").write_text(KEY)
        (folder / "key").chmod(0o600)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "pyllama", "serve", model, "--port", str(port), "--context", "2048", "--quiet",
                   "--embeddings", "--alias", "claude-*", "--api-key-file", folder / "key"]  # fmt: skip
        self.process = subprocess.Popen(list(map(str, command)))

    def __enter__(self) -> tuple[str, str]:
        request = urllib.request.Request(f"{self.url}/v1/models", headers={"Authorization": f"Bearer {KEY}"})
        for _ in range(1200):
            try:
                with urllib.request.urlopen(request) as answer:
                    return self.url, json.load(answer)["data"][0]["id"]
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit("the server did not start") from None
                time.sleep(0.5)
        raise SystemExit("the server does not answer")

    def __exit__(self, *exception: object) -> None:
        self.process.terminate()
        self.process.wait(60)


def thinking_copy(model: Path, folder: Path) -> Path:
    """MODEL with TEMPLATE in place of its chat template: as long, the rest of it a comment."""
    shown = [sys.executable, "-m", "pyllama", "show", "--template", model]
    template = subprocess.run(shown, check=True, stdout=subprocess.PIPE).stdout.removesuffix(b"\n")
    length = len(template)
    made = TEMPLATE + "{#" + " " * (length - len(TEMPLATE) - 4) + "#}"
    if len(made) != length:
        raise SystemExit(f"{model}: its chat template is too short for the one that thinks")
    copy = folder / f"thinking-{model.name}"
    shutil.copyfile(model, copy)
    with copy.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        at = content.find(template)
        content[at : at + length] = made.encode()
    return copy


def tried(client: type, url: str, model: str, prefix: str) -> int:
    """Run its methods that begin so, and print a line each; how many failed."""
    asked, failed = client(url, model, KEY), 0
    for name in [name for name in dir(client) if name.startswith(prefix) and getattr(client, name)]:
        begun = time.monotonic()
        try:
            getattr(asked, name)()
            came = "as promised"
        except Exception as error:
            failed += 1
            came = f"**{type(error).__name__}: {' '.join(str(error).split())[:300]}**"
        what = name.removeprefix("ask_").replace("_", " ")
        print(f"| {client.__doc__} | {what} | {came} | {time.monotonic() - begun:.0f} s |", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--thinks", type=Path, help="a model that thinks")
    parser.add_argument("--only", choices=sorted(CLIENTS), help="this client alone")
    args = parser.parse_args()
    found = [name for name in CLIENTS if args.only in (None, name) and importlib.util.find_spec(name)]
    missing = [name for name in CLIENTS if args.only in (None, name) and name not in found]
    failed = len(missing)
    print("| client | asked | came | |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        with Serving(args.model, folder) as (url, model):
            failed += sum(tried(client, url, model, "ask_") for name in found for client in CLIENTS[name])
        with Serving(args.thinks or thinking_copy(args.model, folder), folder) as (url, model):
            failed += sum(tried(client, url, model, "thinks") for name in found for client in CLIENTS[name])
    for name in missing:
        print(f"| {name} | | **not installed** | |")
    print(f"{failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
