#!/usr/bin/env python3
"""Chats as published templates render them here, beside transformers' own rendering; and answers read back.

usage: compare_templates.py FOLDER... [--only NAME] [--verbose]

Every *.jinja below the folders renders each chat of CHATS: as pyllama does it and as `apply_chat_template` of
transformers does, which has to be importable beside pyllama. A refusal of both is agreement too. Where the two differ,
the table says at which character; `adapted` are chats with tools or calls that transformers' rendering drops or fails
on and pyllama's shows, since it puts them the way the template wants them (tokenizer/tool_turns.py).

Then the other way round: what the template writes of an assistant's message with thoughts, text and calls is what its
model was trained to write. It is fed, a character at a time, to what takes answers apart, and the message must come
out again. `n/a` is a template that does not show that part of a message itself.

Run by hand: templates of others are not in the tree. The folders may be llama.cpp's models/templates.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from pyllama.errors import PyllamaError
from pyllama.generation.thinking import ThinkingSplit, begins_in_thought, marks_of
from pyllama.server import tools
from pyllama.tokenizer.chat_template import ChatTemplate

VARIABLES = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
SPELLINGS = ("<bos>", "<eos>", "<|im_end|>", "<|im_start|>", "<|end|>", "<end_of_turn>", "<turn|>", "[INST]", "<think>",
             "</think>", "<tool_call>", "<|tool_call>", "<|channel|>")  # fmt: skip

#: what a template's name says of its model's control tokens, where the template says nothing
MORE_SPELLINGS = {"LFM": ("<|tool_call_start|>", "<|tool_call_end|>")}


def spellings(name: str) -> tuple[str, ...]:
    return (*SPELLINGS, *(text for family, own in MORE_SPELLINGS.items() if family in name for text in own))


class Named(NamedTuple):
    """A template, and its model's control tokens as text."""

    own: ChatTemplate
    spellings: tuple[str, ...]


def function(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": {"name": name, "description": f'To "{name}".', "parameters": parameters}}


TOOLS = [
    function(
        "get_weather",
        city={"type": "string", "description": "where <it> is"},
        unit={"enum": ["C", "F"], "type": "string"},
    ),
    function("add", a={"type": "integer"}, b={"type": "number"}, names={"type": "array", "items": {"type": "string"}}),
]
SYSTEM = {"role": "system", "content": "Be brief.\n"}
USER = {"role": "user", "content": " What is <b>the</b> weather in Bern? é 東京 "}
ANSWER = {"role": "assistant", "content": "Sunny,\n31 °C."}
THOUGHT = {"role": "assistant", "content": "Sunny.", "reasoning_content": "Let me see.\nYes."}
AGAIN = {"role": "user", "content": "And in Rome?"}
ARGUMENTS = [{"city": "Zug", "unit": "C"}, {"a": 17, "b": -2.5, "names": ["x, y", 'q"{}']}]


def call(number: int) -> dict[str, Any]:
    made = {"name": TOOLS[number]["function"]["name"], "arguments": ARGUMENTS[number]}
    return {"id": f"call0000{number}", "type": "function", "function": made}


def result(number: int) -> dict[str, Any]:
    name = TOOLS[number]["function"]["name"]
    return {"role": "tool", "tool_call_id": f"call0000{number}", "name": name, "content": '{"degrees": 31}'}


ONE, OTHER = call(0), call(1)
MARK = {id(ONE): "Zug", id(OTHER): "x, y"}  # what tells that a call is there
CALLS = {"role": "assistant", "content": "", "tool_calls": [ONE]}
TWO = {"role": "assistant", "content": "", "tool_calls": [ONE, OTHER]}
THOUGHT_CALLS = {"role": "assistant", "content": "", "reasoning_content": "I must ask.", "tool_calls": [ONE]}

RESPONSE = "<|tool_response>"  # Gemma 4 ends a turn of calls with it, and begins their results

#: name: (messages, variables beside them)
CHATS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "one question": ([USER], {}),
    "system": ([SYSTEM, USER], {}),
    "turns": ([USER, ANSWER, AGAIN], {}),
    "system, turns": ([SYSTEM, USER, ANSWER, AGAIN, ANSWER, USER], {}),
    "no prompt for more": ([USER, ANSWER], {"add_generation_prompt": False}),
    "thinking on": ([USER], {"enable_thinking": True}),
    "thinking off": ([SYSTEM, USER], {"enable_thinking": False}),
    "effort": ([USER], {"reasoning_effort": "low"}),
    "a thought before": ([USER, THOUGHT, AGAIN], {}),
    "tools": ([USER], {"tools": TOOLS}),
    "tools, system": ([SYSTEM, USER, ANSWER, AGAIN], {"tools": TOOLS}),
    "tools, thinking on": ([USER], {"tools": TOOLS, "enable_thinking": True}),
    "tools, thinking off": ([USER], {"tools": TOOLS, "enable_thinking": False}),
    "a call": ([USER, CALLS, result(0)], {"tools": TOOLS}),
    "a call, an answer": ([SYSTEM, USER, CALLS, result(0), ANSWER, AGAIN], {"tools": TOOLS}),
    "two calls": ([USER, TWO, result(0), result(1)], {"tools": TOOLS}),
    "a thought and a call": ([USER, THOUGHT_CALLS, result(0)], {"tools": TOOLS}),
}


def theirs(source: str, messages: list[dict[str, Any]], given: dict[str, Any]) -> str | None:
    """What transformers makes of a chat; None if the template refuses it or fails."""
    options = {"add_generation_prompt": True, **given}
    try:
        texts, _ = render_jinja_template(
            conversations=[copy.deepcopy(messages)],
            chat_template=source,
            tools=options.pop("tools", None),
            add_generation_prompt=options.pop("add_generation_prompt"),
            **VARIABLES,
            **options,
        )
    except (jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError):
        return None
    return str(texts[0])


def ours(template: Named, messages: list[dict[str, Any]], given: dict[str, Any]) -> str | None:
    """The same of pyllama, as a server renders it: calls with arguments as text, control tokens marked."""
    messages = copy.deepcopy(messages)
    for one in [one for message in messages for one in message.get("tool_calls", ())]:
        one["function"]["arguments"] = json.dumps(one["function"]["arguments"], ensure_ascii=False)
    try:
        return template.own.render_adapted(messages, {"add_generation_prompt": True, **given}, template.spellings).plain
    except PyllamaError:
        return None


def judged(source: str, template: Named, chat: str) -> tuple[str, str]:
    """(verdict in a word, what differs)"""
    messages, given = CHATS[chat]
    a, b = theirs(source, messages, given), ours(template, messages, given)
    if a == b:
        return ("same" if a is not None else "refused"), ""
    marks = {one["function"]["name"] for one in given.get("tools", ())}
    marks |= {MARK[id(one)] for message in messages for one in message.get("tool_calls", ())}
    marks |= {RESPONSE} if "tool_responses" in source else set()
    theirs_shows, ours_shows = ({mark for mark in marks if text and mark in text} for text in (a, b))
    if theirs_shows < ours_shows:
        return "adapted", ""
    if a is None or b is None:
        return "DIFFERS", f"{'transformers' if a is None else 'pyllama'} refuses"
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return "DIFFERS", f"at {at}: {a[max(0, at - 30) : at + 50]!r}, here {b[max(0, at - 30) : at + 50]!r}"


# --- answers read back ---

OFFERED = {tool["function"]["name"]: tool["function"] for tool in TOOLS}
WRITTEN = {
    "text": {"role": "assistant", "content": "Sunny."},
    "thought": THOUGHT,
    "call": CALLS,
    "calls": TWO,
    "text, call": {**CALLS, "content": "I ask."},
    "thought, call": THOUGHT_CALLS,
}


def answer_of(template: Named, message: dict[str, Any]) -> tuple[str, str] | None:
    """(the prompt's end, what a model would have written after it), by what the template makes of the message."""
    variables: dict[str, Any] = {"tools": TOOLS, "enable_thinking": True}
    prompt = ours(template, [USER], variables)
    whole = ours(template, [USER, message], {**variables, "add_generation_prompt": False})
    if prompt is None or whole is None:
        return None
    plain = ours(template, [USER, WRITTEN["text"]], {**variables, "add_generation_prompt": False}) or ""
    end = plain.rpartition("Sunny.")[2]  # of a turn
    common = next((i for i, (x, y) in enumerate(zip(prompt, whole)) if x != y), min(len(prompt), len(whole)))
    if common < len(prompt):  # <think> in one and <tool_call> in the other begin alike
        common = max(prompt.rfind(mark, 0, common) + 1 for mark in "\n>]")
    return prompt[:common], whole[common:].rstrip().removesuffix(end.rstrip()).removesuffix(RESPONSE)


def read_back(source: str, template: Named, what: str) -> tuple[str, str]:
    """Whether a message that the template wrote comes out of what takes answers apart."""
    message = WRITTEN[what]
    form = tools.format_of(source, template.spellings.__contains__)
    calls = [(one["function"]["name"], one["function"]["arguments"]) for one in message.get("tool_calls", ())]
    if calls and form is None:
        return "n/a", "takes no tools"
    written = answer_of(template, message)
    if written is None:
        return "n/a", "refused"
    prompt, answer = written
    thought = message.get("reasoning_content", "")
    if thought and thought not in answer:
        return "n/a", "shows no thoughts"
    if not all(name in answer for name, _ in calls):
        return "n/a", "shows no calls"
    if VARIABLES["eos_token"] in answer:
        return "n/a", "makes two messages of it"
    if USER["content"].strip() in answer:
        return "n/a", "has another prompt before an answer"
    found = taken_apart(source, prompt, answer, form)
    wanted = (thought, message["content"], calls)
    if form is tools.HARMONY and calls:  # text beside calls is put on the channel of thoughts
        wanted = (thought or message["content"], "", calls)
    return ("same", "") if found == wanted else ("DIFFERS", f"{answer!r}: {found}")


def taken_apart(source: str, prompt: str, answer: str, form: tools.ToolFormat | None) -> tuple[str, str, list[Any]]:
    parser: Any = None
    if form is tools.HARMONY:
        parser = tools.ChannelParser(OFFERED, prompt[-400:])
    elif form:
        parser = tools.ToolParser(form, OFFERED)
    marks = marks_of(source)
    split = ThinkingSplit(begun=begins_in_thought(prompt, marks), marks=marks)
    parts, calls, thought = [], [], ""
    for at, char in enumerate(answer):
        content, made = parser.take(char, "stop" if at == len(answer) - 1 else None) if parser else (char, [])
        calls += made
        if form is tools.HARMONY:
            thought += parser.thought
            parts.append((False, content))
        else:
            parts += split.push(content)
    parts += split.finish()
    thought += "".join(text for thinking, text in parts if thinking)
    said = "".join(text for thinking, text in parts if not thinking)
    return thought.strip(), said.strip(), [(one.name, json.loads(one.arguments)) for one in calls]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--only", default="", help="templates whose name this regular expression finds")
    parser.add_argument("--verbose", action="store_true", help="say why a part is n/a, too")
    args = parser.parse_args()
    paths = sorted(
        path for folder in args.folders for path in folder.rglob("*.jinja") if re.search(args.only, path.name)
    )
    total: dict[str, int] = {}
    for path in paths:
        source = path.read_text(encoding="utf-8")
        template = Named(ChatTemplate(source, VARIABLES, path.name), spellings(path.name))
        counts: dict[str, int] = {}
        told = []
        for kind, names, judge in (("rendered", CHATS, judged), ("read", WRITTEN, read_back)):
            for name in names:
                verdict, why = judge(source, template, name)
                counts[f"{kind} {verdict}"] = counts.get(f"{kind} {verdict}", 0) + 1
                if verdict == "DIFFERS" or (args.verbose and why):
                    told.append(f"    {kind} {name}: {verdict} {why}")
        print(f"{path.name}: " + ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))
        print("\n".join(told), end="\n" if told else "", flush=True)
        for verdict, count in counts.items():
            total[verdict] = total.get(verdict, 0) + count
    print(f"{len(paths)} templates: " + ", ".join(f"{count} {verdict}" for verdict, count in sorted(total.items())))
    return any("DIFFERS" in verdict for verdict in total)


if __name__ == "__main__":
    sys.exit(main())
