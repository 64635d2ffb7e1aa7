"""A real model's tool calls, through a server of its own and the official `openai` client: a table of what came.

    python tools/try_tools.py qwen2.5-coder-1.5b.gguf [--runs 3] [--url http://127.0.0.1:8000/v1]

The first run of each row is greedy, the others have a temperature of 0.7 and seeds 1, 2, ... Every second run is
streamed. A run counts as right if the calls are exactly those that the row expects (names, arguments and number), no
other content came with them, ids differ and finish_reason is tool_calls; or where an answer in words or JSON is
expected, if that came and no call. Needs pyllama[server,grammar] and openai.
"""

import argparse
import json
import socket
import subprocess
import sys
import time

from openai import OpenAI


def function(name, description, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TEXT, NUMBER = {"type": "string"}, {"type": "integer"}
WEATHER = function("get_weather", "Get the current weather of a city", city=TEXT)
TIME = function("get_time", "Get the local time in a city", city=TEXT)
ADD = function("add", "Add two whole numbers", a=NUMBER, b=NUMBER)
NAMED = {"type": "function", "function": {"name": "get_time"}}
ANSWER = {"type": "object", "properties": {"city": TEXT, "population": NUMBER}, "required": ["city", "population"],
          "additionalProperties": False}  # fmt: skip
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": ANSWER}}
ASKED = "What is the weather in Paris?"
MADE = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
RESULT = [
    {"role": "system", "content": "Answer in one sentence."},
    {"role": "user", "content": ASKED},
    {"role": "assistant", "content": None, "tool_calls": [MADE]},
    {"role": "tool", "tool_call_id": "call_1", "content": '{"temperature_c": 31, "sky": "cloudless"}'},
]


def weather(*cities):
    return [("get_weather", {"city": city}) for city in cities]


# what: (messages, options, the calls expected; or a word of the answer; or a function of it)
ROWS = {
    "auto, one tool": (ASKED, {"tools": [WEATHER]}, weather("Paris")),
    "auto, two tools": ("What time is it in Tokyo?", {"tools": [WEATHER, TIME]}, [("get_time", {"city": "Tokyo"})]),
    "auto, numbers": ("Add 17 and 25 with the tool.", {"tools": [ADD, WEATHER]}, [("add", {"a": 17, "b": 25})]),
    "auto, two calls": ("Weather in Rome and in Bern?", {"tools": [WEATHER]}, weather("Rome", "Bern")),
    "auto, parallel_tool_calls false": (
        "Weather in Rome and in Bern?",
        {"tools": [WEATHER], "parallel_tool_calls": False},
        weather("Rome"),
    ),
    "auto, a result": (RESULT, {"tools": [WEATHER]}, lambda text: "31" in text and text[:1] not in "{`"),
    "required": (ASKED, {"tools": [TIME, WEATHER], "tool_choice": "required"}, weather("Paris")),
    "required, two calls": (
        "Weather in Rome and in Bern?",
        {"tools": [WEATHER], "tool_choice": "required"},
        weather("Rome", "Bern"),
    ),
    "a named function": (ASKED, {"tools": [WEATHER, TIME], "tool_choice": NAMED}, [("get_time", {"city": "Paris"})]),
    "none": ("Say hello in one word.", {"tools": [WEATHER], "tool_choice": "none"}, "ello"),
    "auto and a format, a call": (ASKED, {"tools": [WEATHER], "response_format": FORMAT}, weather("Paris")),
    "auto and a format, an answer": (
        "How many people live in Paris? Answer in JSON.",
        {"tools": [ADD], "response_format": FORMAT},
        lambda text: set(json.loads(text)) == {"city", "population"},
    ),
}


def ask(client, model, messages, stream, **options):
    """(content, [(id, name, arguments)], finish_reason), streamed or not."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    made = client.chat.completions.create(model=model, messages=messages, max_tokens=90, stream=stream, **options)
    if not stream:
        choice = made.choices[0]
        calls = [(c.id, c.function.name, c.function.arguments) for c in choice.message.tool_calls or []]
        return choice.message.content or "", calls, choice.finish_reason
    content, calls, reason = "", {}, None
    for chunk in made:
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reason = choice.finish_reason or reason
            for call in choice.delta.tool_calls or []:
                known = calls.setdefault(call.index, ["", "", ""])
                known[0] += call.id or ""
                known[1] += call.function.name or ""
                known[2] += call.function.arguments or ""
    assert list(calls) == list(range(len(calls)))
    return content, [tuple(call) for call in calls.values()], reason


def judged(expected, content, calls, reason):
    """Whether it is what was expected, and what it is in a word."""
    try:
        found = [(name, json.loads(arguments)) for _, name, arguments in calls]
    except ValueError:
        return False, "broken calls"
    kind = f"{len(found)} call{'s' * (len(found) != 1)}" if found else "text"
    if isinstance(expected, list):
        alone = not content and reason == "tool_calls" and len({call[0] for call in calls}) == len(calls)
        return found == expected and alone, kind
    try:
        fits = expected(content) if callable(expected) else expected in content
    except ValueError:
        fits = False
    return not found and fits, kind


def serve(model):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "pyllama", "serve", model, "--port", str(port), "--quiet", "--context", "2048"]
    return subprocess.Popen(command), f"http://127.0.0.1:{port}/v1"


def ready(client, process):
    for _ in range(600):
        try:
            return client.models.list().data[0].id
        except Exception:
            if process is not None and process.poll() is not None:
                raise SystemExit("the server did not start") from None
            time.sleep(0.5)
    raise SystemExit("the server does not answer")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="what pyllama serve takes; not needed with --url")
    parser.add_argument("--url", help="of a server that runs")
    parser.add_argument("--runs", type=int, default=3, help="of each row; default 3")
    parser.add_argument("--only", default="", help="rows with this in their name")
    args = parser.parse_args()
    process, url = (None, args.url) if args.url else serve(args.model)
    try:
        client = OpenAI(base_url=url, api_key="none", timeout=600, max_retries=0)
        model = ready(client, process)
        print("| asked | runs | right | what came |\n|---|---|---|---|", flush=True)
        for what, (messages, options, expected) in ROWS.items():
            if args.only not in what:
                continue
            right, kinds = 0, {}
            for run in range(args.runs):
                how = {"temperature": 0.0} if run == 0 else {"temperature": 0.7, "seed": run}
                got = ask(client, model, messages, run % 2 == 1, **how, **options)
                good, kind = judged(expected, *got)
                right += good
                kinds[kind] = kinds.get(kind, 0) + 1
                print(json.dumps([what, run, good, *got], ensure_ascii=False), file=sys.stderr, flush=True)
            shown = ", ".join(f"{kind} {count}" if len(kinds) > 1 else kind for kind, count in kinds.items())
            print(f"| {what} | {args.runs} | {right} | {shown} |", flush=True)
    finally:
        if process is not None:
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    main()
