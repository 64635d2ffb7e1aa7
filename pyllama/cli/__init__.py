"""The command line: words in, one command called, an exit code out.

0 done (also when whoever reads the output has had enough), 2 for a user's error, told in one line on standard
error, 130 for Ctrl-C. A traceback is a bug. Commands import what they need when they run, so that starting
costs only argparse.
"""

import argparse
import importlib
import itertools
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from pyllama.cli import settings, streams
from pyllama.cli.hints import check_command, commands_of, name_of, unknown
from pyllama.errors import PyllamaError, RequestError, reason_of
from pyllama.synonyms import is_of_others
from pyllama.version import __version__

#: Modules of this package, a command each, in the order of the help. Each has HELP, DESCRIPTION, add_options(parser)
#: and, unless its options are actions, run(args).
COMMANDS = (
    "run", "chat", "serve", "service", "ps", "list_models", "info", "pull", "rm", "plan", "doctor", "bench",
    "perplexity", "quantize", "pack", "unpack", "verify", "cluster", "completion",
)  # fmt: skip
_ABOUT_ALL = ("ps", "completion", "doctor")  # which are about the command line itself
# What a command is called where that is not its module's name alone.
_NAMES = {"list_models": ("list", "ls"), "info": ("info", "show"), "rm": ("rm", "remove")}
_OTHERWISE_CALLED = {name: command for command, names in _NAMES.items() for name in names}


class Parser(argparse.ArgumentParser):
    """An argparse parser whose complaints are one line, told where all others are."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    #: The commands beside this one, by name; whoever builds a whole command line puts them here.
    siblings: Mapping[str, argparse.ArgumentParser] = {}

    def parse_known_args(self, args=None, namespace=None):
        """What is not known is complained of by the command it was typed for, which knows what there is."""
        for word in itertools.takewhile(lambda word: word != "--", args or ()):
            # argparse would read -ngl as -n gl.
            if len(word) > 2 and word[0] == "-" != word[1] and is_of_others(word) and self._subparsers is None:
                self.error(unknown(self, [word], {}))
        namespace, extras = super().parse_known_args(args, namespace)
        if extras and hasattr(namespace, "words"):
            extras = _join(namespace, extras)
        if extras and self._subparsers is None:
            others = {name: other for name, other in self.siblings.items() if other is not self}
            self.error(unknown(self, extras, others))
        return namespace, extras

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message} (see {self.prog} --help)")


def _join(namespace: argparse.Namespace, extras: list[str]) -> list[str]:
    """Give PROMPT the words that argparse leaves over: of "MODEL -n 5 PROMPT" it takes none. The options among them."""
    before, after = extras, []
    if "--" in extras:
        at = extras.index("--")
        before, after = extras[:at], extras[at + 1 :]
    if any(len(word) > 1 and word[0] == "-" for word in before):
        return extras
    namespace.words = [*namespace.words, *map(streams.utf8, [*before, *after])]
    return []


def build_parser(commands: Sequence[str] = COMMANDS) -> Parser:
    """The whole command line, against which docs/cli.md is checked; or some commands of it."""
    parser = Parser(
        prog="pyllama",
        description="Run LLaMA-family models at the precision they were published in.",
        epilog="pyllama COMMAND --help tells more about a command.",
    )
    parser.add_argument("--version", action="version", version=f"pyllama {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND")
    parser.set_defaults(run=lambda args: print(parser.format_help(), end="") or 0)
    for command in commands:
        module = importlib.import_module(f"{__name__}.{command}")
        name, *aliases = _NAMES.get(command, (command,))
        added = subparsers.add_parser(name, aliases=aliases, help=module.HELP, description=module.DESCRIPTION)
        added.set_defaults(run=getattr(module, "run", None))  # but where there are actions, which have their own
        module.add_options(added)
    parser.siblings = commands_of(parser)
    for other in parser.siblings.values():
        other.siblings = parser.siblings  # type: ignore[attr-defined]
    for name in parser.siblings.keys() & _ABOUT_ALL:
        parser.siblings[name].set_defaults(command_line=parser)
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """What was typed, by the parser of that command alone if that will do: all of them take a quarter longer to start.

    Not where there is a file of settings, all of which is checked; nor for complaints, which know all there is.
    """
    if argv and argv[0] == "help":  # as git and ollama have it
        argv = [*argv[1:], "--help"]
    word = argv[0] if argv else ""
    command = _OTHERWISE_CALLED.get(word, word)
    if word == "--version" or (command in COMMANDS and command not in _ABOUT_ALL and not settings.has_file()):
        parser = build_parser([command] if command in COMMANDS else [])
        try:
            if name := name_of(parser, word):
                settings.apply(parser, name)
            return parser.parse_args(argv)
        except RequestError:
            pass
    parser = build_parser()
    check_command(argv, parser)
    if name := name_of(parser, word):
        settings.apply(parser, name)
    return parser.parse_args(argv)


def _tell_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    streams.tell(f"warning: {message}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command of argv (default: the process's own); the exit code."""
    streams.prepare()
    warnings.showwarning = _tell_warning
    try:
        try:
            args = _parse(sys.argv[1:] if argv is None else argv)
            code = args.run(args)
        finally:
            sys.stdout.flush()
        return code
    except PyllamaError as error:
        streams.tell(error)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        streams.drop(sys.stdout)
        return 0
    except OSError as error:
        if error.filename is None:
            streams.drop(sys.stdout)
        streams.tell(f"{error.filename or 'standard output'}: {reason_of(error)}")
        return 2
    except MemoryError:
        streams.tell("out of memory")
        return 2
    finally:
        streams.finish()
