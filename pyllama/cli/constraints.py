"""`--json-schema`, `--grammar` and `--tools` of `pyllama run`: files to what makes or parts an answer.

What they mean is what the same fields mean to the server, which does the work; its parts are imported when asked for.
"""

import argparse
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from pyllama.cli.prompt import read_file
from pyllama.errors import RequestError

if TYPE_CHECKING:
    from pyllama.generation import Guide
    from pyllama.model import Model
    from pyllama.server.tools import ChannelParser, ToolParser


def add_constraints(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the form of the answer")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--json-schema", metavar="FILE", help="JSON that fits this JSON Schema, and nothing else")
    which.add_argument(
        "--grammar", metavar="FILE", help="text of this grammar: llama.cpp's GBNF, or llguidance's dialect of Lark"
    )
    group.add_argument(
        "--tools",
        metavar="FILE",
        help="functions that the model may call, as OpenAI's tools; a call is printed as a line of JSON",
    )


class Constraints(NamedTuple):
    """guide   restricts the tokens, or None
    tools   for the chat template, or None
    parser  takes calls out of the text, or None
    """

    guide: "Guide | None" = None
    tools: list[dict[str, Any]] | None = None
    parser: "ToolParser | ChannelParser | None" = None


def read_constraints(args: argparse.Namespace) -> dict[str, Any]:
    """What the files hold, before minutes are spent on loading. Raises RequestError."""
    asked = {name: getattr(args, name) for name in ("json_schema", "grammar", "tools")}
    return {
        name: read_file(path) if name == "grammar" else _json(path, list if name == "tools" else dict)
        for name, path in asked.items()
        if path is not None
    }


def constrain(model: "Model", given: dict[str, Any]) -> Constraints:
    """For one answer of this model. Raises RequestError."""
    if not given:
        return Constraints()
    try:
        from pyllama.server import tools as calls
        from pyllama.server.errors import ApiError
        from pyllama.server.grammar import Grammars
        from pyllama.server.schemas import CHAT
        from pyllama.server.validate import check
    except ImportError as error:
        from pyllama.extras import how_to_install

        option = f"--{next(iter(given)).replace('_', '-')}"
        raise RequestError(f"{option}: {error.name} is not installed; {how_to_install('server')}") from None
    guide, offered = None, None
    parser: ToolParser | ChannelParser | None = None
    try:
        if "json_schema" in given:
            guide = Grammars(model).json(given["json_schema"], "--json-schema")
        if "grammar" in given:
            guide = Grammars(model).lark(_as_lark(given["grammar"]), "--grammar")
        if "tools" in given:
            body = {"messages": [{"role": "user", "content": ""}], "tools": given["tools"]}
            check(body, CHAT)
            form = calls.format_of(model.tokenizer.chat_template, lambda text: model.tokenizer.id_of(text) is not None)
            choice = calls.tool_choice(body, form)
            assert form is not None  # or tool_choice() would have refused
            offered = choice.tools
            if form is calls.HARMONY:
                from pyllama.generation.harmony import ROLE, START

                parser = calls.ChannelParser(choice.offered, f"{START}{ROLE}")
            else:
                parser = calls.ToolParser(form, choice.offered)
    except ApiError as error:
        raise RequestError(error.message) from None
    return Constraints(guide, offered, parser)


def _as_lark(grammar: str) -> str:
    """A grammar that may be llama.cpp's GBNF, whose rules have ::= after their names."""
    from llguidance import gbnf_to_lark

    if not re.search(r"^\s*[A-Za-z][\w-]*\s*::=", grammar, re.MULTILINE):
        return grammar
    try:
        return gbnf_to_lark.gbnf_to_lark(grammar)
    except Exception as error:  # noqa: BLE001 - of a rule that is missing, or named twice, it is no other
        raise RequestError(f"--grammar: {' '.join(str(error).split()) or 'nested too deeply'}") from None


def _json(path: str, kind: type) -> Any:
    import json

    try:
        value = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: {error}") from None
    if not isinstance(value, kind):
        raise RequestError(f"{path}: expected a JSON {'array of tools' if kind is list else 'object'}")
    return value
