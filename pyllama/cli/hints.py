"""What a person meant who typed an option or a command that is not there, for the end of the complaint."""

import argparse
from collections.abc import Mapping, Sequence

from pyllama.errors import RequestError
from pyllama.synonyms import meant, plain, why_not

# Commands of other programs, by what does it here.
_COMMANDS = {
    "run": "generate complete completion cli infer inference prompt",
    "chat": "conversation interactive talk repl",
    "serve": "server api start api-server openai",
    "pull": "download get fetch install add",
    "info": "inspect describe",
    "list": "models tags",
    "ps": "status servers running",
    "rm": "delete uninstall del",
    "bench": "benchmark speed perf llama-bench",
    "perplexity": "ppl score evaluate eval kl kld llama-perplexity",
    "pack": "convert quantize compress import create",
    "verify": "check checksum test",
}


def options_of(parser: argparse.ArgumentParser) -> dict[str, str]:
    """An option's name in Python -> as it is typed."""
    return {
        action.dest: max(action.option_strings, key=len)
        for action in parser._actions
        if action.option_strings and action.dest != "help"
    }


def unknown(
    parser: argparse.ArgumentParser, extras: Sequence[str], others: Mapping[str, argparse.ArgumentParser]
) -> str:
    """The complaint about arguments that `parser` does not know; others: the parsers of the other commands."""
    words = [word for word in extras if word.startswith("-") and len(word) > 1]
    if not words:
        return f"unrecognized arguments: {' '.join(extras)}"
    return f"unrecognized arguments: {' '.join(extras)}{_hint(parser, words[0].partition('=')[0], others)}"


def _hint(parser: argparse.ArgumentParser, word: str, others: Mapping[str, argparse.ArgumentParser]) -> str:
    known = options_of(parser)
    positional = [action.dest for action in parser._actions if not action.option_strings]
    # By what is typed too: --context is context_length in Python, and --temp is short for another.
    typed = {plain(option): action.dest for action in parser._actions for option in action.option_strings[::-1]}
    ours = meant(word, [*known, *typed, *positional])
    ours = typed.get(ours, ours) if ours else None
    if ours in known:
        return f"; did you mean {known[ours]}?"
    if ours in positional:
        return f"; {ours.upper()} is given without an option"
    why = why_not(word)
    if why:
        return f"; there is no such option: {why}"
    elsewhere = [name for name, other in others.items() if meant(word, options_of(other)) in options_of(other)]
    if not elsewhere:
        return ""
    return f"; an option of {' and '.join(f'pyllama {name}' for name in elsewhere[:2])}"


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands of a command line, each by its first name."""
    first: dict[argparse.ArgumentParser, str] = {}
    for name, other in _subparsers(parser).items():
        first.setdefault(other, name)
    return {name: other for other, name in first.items()}


def name_of(parser: argparse.ArgumentParser, word: str) -> str | None:
    """The first name of the command that a word stands for."""
    other = _subparsers(parser).get(word)
    return next((name for name, command in commands_of(parser).items() if command is other), None)


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next(dict(a.choices) for a in parser._actions if isinstance(a, argparse._SubParsersAction))


def check_command(argv: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Raise RequestError where the first word is no command, or is an option of one."""
    commands = list(commands_of(parser))
    if not argv or argv[0] in _subparsers(parser) or argv[0] in ("-h", "--help", "--version"):
        return
    word = argv[0]
    if word.startswith("-"):
        after = next((name for name in argv[1:] if name in commands), None)
        where = f"; options come after the command: pyllama {after} {word} ..." if after else ""
        raise RequestError(f"unrecognized arguments: {word}{where} (see pyllama --help)")
    ours = next((name for name, words in _COMMANDS.items() if word.lower() in words.split()), None)
    if word.endswith(".gguf") or "/" in word:
        hint = f"; to run a model: pyllama run {word}"
    else:
        near = ours or meant(word, commands)
        hint = f"; did you mean pyllama {near}?" if near else ""
    raise RequestError(f"{word}: no such command, expected one of {', '.join(commands)}{hint} (see pyllama --help)")
