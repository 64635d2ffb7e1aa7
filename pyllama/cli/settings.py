"""Options from PYLLAMA_* variables and from config.toml: defaults for what the command line does not say.

Which there are follows from the parsers. The nearer word counts: the command line, PYLLAMA_COMMAND_OPTION,
PYLLAMA_OPTION, the file's [command], the file's top.
"""

import argparse
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyllama.cli.folders import config_folder
from pyllama.cli.hints import commands_of, options_of
from pyllama.errors import RequestError, reason_of
from pyllama.synonyms import meant, plain

PREFIX = "PYLLAMA_"
CONFIG = f"{PREFIX}CONFIG"
# What one call is about, or would do harm in another.
_NEVER = {"prompt", "file", "replace", "draft_copy"}
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def settable(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The options of a command that may be set elsewhere, by their names: "context", "max_tokens"."""
    names = options_of(parser)
    return {
        plain(names[action.dest]): action
        for action in parser._actions
        if action.dest in names and action.dest not in _NEVER
    }


def apply(command_line: argparse.ArgumentParser, name: str) -> None:
    """Make what is set elsewhere the defaults of the command of that name. Raises RequestError for nonsense."""
    commands = commands_of(command_line)
    parser = commands[name]
    options = settable(parser)
    found = itertools.chain(_of_file(commands, name, options), of_environment(os.environ, name, options))
    for option, value, where in found:
        action = options[option]
        parser.set_defaults(**{action.dest: _value(action, value, where)})
        action.required = False


def of_environment(
    environment: Mapping[str, str], name: str, options: Mapping[str, argparse.Action]
) -> Iterator[tuple[str, str, str]]:
    """(option, value, variable) of a command's options that variables set, the nearer last."""
    for prefix in (PREFIX, f"{PREFIX}{name.upper()}_"):
        for option in options:
            variable = prefix + option.upper()
            if variable in environment:
                yield option, environment[variable], variable


def config_path() -> Path:
    return Path(os.environ.get(CONFIG) or config_folder() / "config.toml")


def has_file() -> bool:
    """Whether there is a file to look at, or ought to be."""
    return CONFIG in os.environ or os.path.lexists(config_path())


def _of_file(
    commands: Mapping[str, argparse.ArgumentParser], name: str, options: Mapping[str, argparse.Action]
) -> Iterator[tuple[str, Any, str]]:
    """The same of the file, all of which is checked whatever the command."""
    path = config_path()
    try:
        with open(path, "rb") as file:
            raw = file.read(1 << 20)
    except (FileNotFoundError, NotADirectoryError):
        if CONFIG in os.environ:
            raise RequestError(f"{CONFIG}: {path}: no such file") from None
        return
    except OSError as error:
        raise RequestError(f"{path}: {reason_of(error)}") from None
    if not raw.strip():
        return
    import tomllib  # whoever has no file does not pay for it

    try:
        said = tomllib.loads(raw.decode("utf-8-sig"))
    except ValueError as error:
        raise RequestError(f"{path}: {error}") from None
    everything = {option: action for parser in commands.values() for option, action in settable(parser).items()}
    tables = {plain(key): table for key, table in said.items() if isinstance(table, dict)}
    for table in tables:
        if table not in commands:
            raise RequestError(f"{path}: [{table}]: no such command, expected one of {', '.join(commands)}")
    top = {key: value for key, value in said.items() if not isinstance(value, dict)}
    yield from _of_table(top, everything, options, str(path))
    for table, values in tables.items():
        known = settable(commands[table])
        found = list(_of_table(values, known, options, f"{path}: [{table}]"))
        if table == name:
            yield from found


def _of_table(
    values: Mapping[str, Any], known: Mapping[str, argparse.Action], options: Mapping[str, argparse.Action], where: str
) -> Iterator[tuple[str, Any, str]]:
    for key, value in values.items():
        option = plain(key)
        if option not in known:
            near = meant(key, [*known, *(action.dest for action in known.values())])
            near = next((option for option, action in known.items() if near in (option, action.dest)), None)
            raise RequestError(f"{where}: {key}: no such option{f', did you mean {near}?' if near else ''}")
        if option in options:
            yield option, value, f"{where}: {key}"


def _value(action: argparse.Action, given: Any, where: str) -> Any:
    """What argparse would make of an option with this value."""
    if action.nargs == 0:
        if isinstance(given, bool):
            return given
        if str(given).lower() not in (*_YES, *_NO):
            raise RequestError(f"{where}: got {given!r}, expected true or false")
        return str(given).lower() in _YES
    if isinstance(action, argparse._AppendAction):
        return [_one(action, each, where) for each in (given if isinstance(given, list) else [given])]
    return _one(action, given, where)


def _one(action: argparse.Action, given: Any, where: str) -> Any:
    if isinstance(given, (bool, list, dict)):
        raise RequestError(f"{where}: got {given!r}, expected {action.metavar or 'one value'}")
    kind: Any = action.type or str
    try:
        value = kind(str(given))
    except ValueError:
        raise RequestError(f"{where}: got {given!r}, expected {action.metavar}") from None
    if action.choices is not None and value not in action.choices:
        raise RequestError(f"{where}: got {given!r}, expected {' or '.join(map(str, action.choices))}")
    return value
