"""What is typed in `pyllama chat` -> turns of a Chat, and what its /commands do; other programs' names hold."""

import argparse
import json
import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllama.cli import streams
from pyllama.cli.answer_view import show_plain, split_of, view_of
from pyllama.cli.drafting import drafted, who_drafts
from pyllama.cli.folders import state_folder
from pyllama.cli.options import SAMPLING, sampling_text
from pyllama.cli.pass_line import PassLine
from pyllama.cli.timings import timings
from pyllama.closing import Closing
from pyllama.errors import RequestError, reason_of
from pyllama.generation.defaults import sampling_defaults
from pyllama.generation.sampler import SamplingParams
from pyllama.printable import one_line
from pyllama.synonyms import meant
from pyllama.terminal.style import dim

if TYPE_CHECKING:
    from pyllama.generation import Generation
    from pyllama.model import Model

COMMANDS = {
    "/help": "this help",
    "/clear": "forget the conversation, but not the system message",
    "/regenerate": "another answer to the last message",
    "/undo": "forget the last message and its answer",
    "/edit": "change the last message and send it again",
    "/system": "show the system message; with TEXT, set it; with - have none",
    "/set": "show how tokens are chosen; with NAME VALUE, change it: /set temperature 0.7",
    "/save": "NAME or FILE.json: write the conversation there",
    "/load": "NAME or FILE.json: go on with the conversation there",
    "/copy": "put the last answer into the terminal's clipboard",
    "/think": "show what the model last thought; on and off: ask it to; show and fold: how it is shown",
    "/stats": "what the last answer took, and how full the context is",
    "/exit": "leave, as Ctrl-D does",
}
HELP = """\
Ctrl-C       stop the answer
\"\"\"          begins and ends a message of several lines; pasted lines are one message"""
_ALIASES = {
    "/?": "/help", "/bye": "/exit", "/quit": "/exit", "/q": "/exit", "/reset": "/clear", "/new": "/clear",
    "/retry": "/regenerate", "/regen": "/regenerate", "/show": "/set", "/read": "/load",
}  # fmt: skip
# ollama's words after /set that are no options, and what does the same.
_SWITCHES = {"verbose": "verbose", "quiet": "verbose", "wordwrap": "wrap", "nowordwrap": "wrap"}


class Conversation(Closing):
    """unsent  what the next line begins with, for whoever types it
    chat    the turns so far
    """

    def __init__(self, model: "Model", args: argparse.Namespace, options: dict[str, Any], signs: PassLine):
        self._model, self._signs = model, signs
        self._defaults = sampling_defaults(model.checkpoint)
        self.chat = model.chat(args.system, **{**self._defaults, **options})
        if args.no_think:
            self.chat.variables["enable_thinking"] = False
        self.unsent = ""
        self._fold = bool(vars(args).get("fold_thinking"))
        self._verbose, self._wrap = args.verbose, True
        self._thought = ""
        self._last: Generation | None = None
        if self._verbose:
            streams.note(self._sampling())
            streams.note(who_drafts(model, args))

    def close(self) -> None:
        self.chat.close()

    def turn(self, message: str) -> bool:
        """Answers a message, or does what a /command says; whether to go on. Raises PyllamaError."""
        message = streams.utf8(message)
        editing, self.unsent = bool(self.unsent), ""
        word, _, rest = message.strip().partition(" ")
        command = _ALIASES.get(word, word)
        if command in COMMANDS:
            return self._do(command, rest.strip())
        if message.startswith("/") and "/" not in word[1:] and "\n" not in message:
            near = meant(word[1:], [name[1:] for name in COMMANDS])
            hint = f", did you mean /{near}?" if near else ", /help lists them"
            streams.note(f"{word}: no such command{hint} (with a space in front it is a message)")
        elif message.strip():
            if editing:
                self.chat.undo()
            self._answer(message)
        return True

    def complete(self, typed: str) -> list[str]:
        """What a command that was begun may go on to."""
        command, space, rest = typed.partition(" ")
        if not space:
            return [f"{name} " for name in COMMANDS if typed.startswith("/") and name.startswith(typed)]
        words = {
            "/set": [name.replace("_", "-") for name in SAMPLING] + list(_SWITCHES),
            "/think": ["on", "off", "show", "fold"],
            "/load": [path.stem for path in sorted(_conversations().glob("*.json"))],
        }.get(command, [])
        return [f"{command} {word}" for word in words if word.startswith(rest)]

    # --- answers ---

    def _answer(self, message: str) -> None:
        """Shows the answer as it comes. An interrupted one counts as far as it was shown."""
        with self.chat.send(message) as generation:
            self._last = generation
            view = view_of(generation, self._model.tokenizer, self._signs, fold=self._fold, wrap=self._wrap)
            if view is None:
                show_plain(generation, self._signs, split_of(self._model.tokenizer, generation.prompt_ids))
            else:
                try:
                    view.show(generation)
                finally:
                    self._thought = view.thought
        if generation.finish_reason == "length":
            streams.note("[cut: --max-tokens reached, or the context is full]")
        if self._verbose:
            streams.note(timings(generation))
            if (line := drafted(self._model, generation)) is not None:
                streams.note(line)

    # --- commands ---

    def _do(self, command: str, rest: str) -> bool:
        if command == "/exit":
            return False
        getattr(self, f"_{command[1:]}")(rest)
        return True

    def _help(self, rest: str) -> None:
        for name, what in COMMANDS.items():
            print(f"{name:12} {what}")
        print(HELP, flush=True)

    def _clear(self, rest: str) -> None:
        count = sum(message["role"] != "system" for message in self.chat.messages)
        self.chat.reset()
        streams.note(f"forgotten: {count} messages" if count else "nothing to forget")

    def _regenerate(self, rest: str) -> None:
        before = self.chat.messages
        message = self.chat.undo()
        if message is None:
            raise RequestError("/regenerate: there is no message yet")
        params = self.chat.params
        if not params.temperature:
            streams.note("the temperature is 0, so it will be the same: /set temperature 0.7")
        self.chat.params = replace(params, seed=None)
        try:
            self._answer(message)
        finally:
            self.chat.params = params
            if len(self.chat.messages) < len(before):  # interrupted before there was any text
                self.chat.restore(before)

    def _undo(self, rest: str) -> None:
        message = self.chat.undo()
        streams.note("nothing to forget" if message is None else f"forgotten: {one_line(message, 60)}")

    def _edit(self, rest: str) -> None:
        users = [message["content"] for message in self.chat.messages if message["role"] == "user"]
        if not users:
            raise RequestError("/edit: there is no message yet")
        self.unsent = users[-1]

    def _system(self, rest: str) -> None:
        if rest:
            self.chat.system = None if rest == "-" else rest
            streams.note("no system message from now on" if rest == "-" else "the system message from now on")
        else:
            print(self.chat.system or "(no system message)", flush=True)

    def _set(self, rest: str) -> None:
        name, _, value = rest.removeprefix("parameter ").strip().partition(" ")
        value = value.strip()
        if name in ("", "parameters", "parameter"):
            print(self._sampling(), flush=True)
        elif name == "system":
            self._system(value)
        elif name == "template":
            print(self._model.tokenizer.chat_template, flush=True)
        elif name == "info":
            print(f"{self._model.checkpoint.path}, context {self._model.context_length}", flush=True)
        elif name in ("think", "nothink"):
            self._think("off" if name == "nothink" else value or "on")
        elif name in _SWITCHES:
            on = name in ("verbose", "wordwrap")
            setattr(self, f"_{_SWITCHES[name]}", on)
            streams.note(f"{_SWITCHES[name]}: {'on' if on else 'off'}")
        else:
            self._set_option(name, value)

    def _set_option(self, name: str, text: str) -> None:
        known = [field.name for field in fields(SamplingParams)]
        option = meant(name, known)
        if option is None:
            raise RequestError(f"/set {name}: no such option, expected one of {', '.join(SAMPLING)}")
        value: Any = text
        if text == "default" or not text:
            value = self._defaults.get(option, SamplingParams.__dataclass_fields__[option].default)
        elif option != "stop":
            try:
                value = json.loads(text)
            except ValueError:
                raise RequestError(f"/set {name}: got {text!r}, expected a number") from None
        self.chat.params = replace(self.chat.params, **{option: value})
        streams.note(self._sampling())

    def _sampling(self) -> str:
        params = self.chat.params
        changed = {
            field.name: getattr(params, field.name)
            for field in fields(SamplingParams)
            if field.name in ("temperature", "top_k", "top_p", "min_p") or getattr(params, field.name) != field.default
        }
        return f"sampling: {sampling_text(changed)}"

    def _save(self, rest: str) -> None:
        from pyllama.hub.cache import write_atomically

        path = _path_of("/save", rest)
        about = {"model": str(self._model.checkpoint.path), "messages": self.chat.messages}
        try:
            write_atomically(path, json.dumps(about, ensure_ascii=False, indent=1) + "\n")
        except OSError as error:
            raise RequestError(f"/save: {path}: {reason_of(error)}") from None
        streams.note(f"saved to {path}")

    def _load(self, rest: str) -> None:
        path = _path_of("/load", rest)
        try:
            with open(path, "rb") as file:
                about = json.loads(streams.read_text(file, str(path)))
        except (OSError, ValueError, RecursionError) as error:
            raise RequestError(f"/load: {path}: {reason_of(error)}") from None
        messages = about.get("messages") if isinstance(about, dict) else about
        if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
            raise RequestError(f"/load: {path}: expected messages, each with a role and a content of text")
        self.chat.restore([{"role": m["role"], "content": m["content"]} for m in messages])
        streams.note(f"{sum(m['role'] == 'user' for m in messages)} messages of yours, and the answers to them")

    def _copy(self, rest: str) -> None:
        from base64 import b64encode

        if not isinstance(sys.stdout, streams.TerminalText):
            raise RequestError("/copy: needs a terminal, whose clipboard it is")
        if not self.chat.messages or self.chat.messages[-1]["role"] != "assistant":
            raise RequestError("/copy: there is no answer yet")
        # OSC 52: the terminal's own clipboard, also over ssh; terminals that do not know it do nothing.
        data = b64encode(self.chat.messages[-1]["content"].encode()).decode()
        sys.stdout.obeyed(f"\x1b]52;c;{data}\x07")
        sys.stdout.flush()
        streams.note("copied, if this terminal lets programs do that")

    def _think(self, rest: str) -> None:
        if rest in ("on", "off"):
            self.chat.variables["enable_thinking"] = rest == "on"
            asks = "enable_thinking" in (self._model.tokenizer.chat_template or "")
            streams.note(f"thinking: {rest}" if asks else "this model's chat template cannot ask for that")
        elif rest in ("show", "fold"):
            self._fold = rest == "fold"
            streams.note(f"thoughts: {'folded' if self._fold else 'shown'}")
        elif rest:
            raise RequestError(f"/think: got {rest!r}, expected on, off, show or fold")
        elif isinstance(sys.stdout, streams.TerminalText) and self._thought:
            for line in self._thought.splitlines():
                sys.stdout.obeyed(dim(one_line(line)) + "\n")
            sys.stdout.flush()
        else:
            streams.note("nothing was thought")

    def _stats(self, rest: str) -> None:
        if self._last is None:
            raise RequestError("/stats: there is no answer yet")
        used = self._last.prompt_tokens + self._last.completion_tokens
        print(timings(self._last))
        print(drafted(self._model, self._last) or "draft: nobody")
        print(f"{self._last.cached_tokens} tokens of the prompt were in the cache; seed {self._last.seed}")
        print(f"context: {used} of {self._model.context_length} tokens")
        print(self._sampling(), flush=True)


def _conversations() -> Path:
    return state_folder() / "conversations"


def _path_of(command: str, name: str) -> Path:
    if not name:
        raise RequestError(f"{command}: expected a name, or a file's path")
    is_path = "/" in name or name.endswith(".json")
    return Path(os.path.expanduser(name)) if is_path else _conversations() / f"{name}.json"


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
