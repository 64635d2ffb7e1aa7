"""An answer as lines for a program or a curious person: calls of tools, and log-probabilities of tokens."""

import json
import sys
from typing import TYPE_CHECKING, Any

from pyllama.cli.pass_line import PassLine
from pyllama.generation import Generation, Step
from pyllama.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pyllama.server.tools import ChannelParser, ToolCall, ToolParser


def show_calls(generation: Generation, parser: "ToolParser | ChannelParser", signs: PassLine) -> None:
    """Text as it comes; at its end each call as {"name": ..., "arguments": {...}}, a line each."""
    made: list[ToolCall] = []
    shown = ""
    for step in generation:
        content, calls = parser.take(step.text, step.finish_reason)
        signs.clear()
        sys.stdout.write(content)
        sys.stdout.flush()
        shown += content
        made += calls
    if shown and not shown.endswith("\n"):
        print()
    for call in made:
        said = {"name": call.name, "arguments": json.loads(call.arguments)}
        print(json.dumps(said, ensure_ascii=False), flush=True)


def show_logprobs(generation: Generation, tokenizer: Tokenizer, signs: PassLine) -> None:
    """A line a token: its log-probability and text, then those of the most probable ones."""
    for step in generation:
        signs.clear()
        said = logprobs_of(step, tokenizer)
        top = "  ".join(f"{one['logprob']:7.3f} {one['token']!r}" for one in said["top"])
        print(f"{said['logprob']:8.4f} {said['token']!r:20} {top}", flush=True)


def logprobs_of(step: Step, tokenizer: Tokenizer) -> dict[str, Any]:
    """What --json says of a token."""

    def token(token_id: int, logprob: float | None) -> dict[str, Any]:
        text = tokenizer.token_bytes(token_id).decode("utf-8", "replace")
        return {"token_id": token_id, "token": text, "logprob": logprob}

    return {**token(step.token_id, step.logprob), "top": [token(*one) for one in step.top_logprobs]}
