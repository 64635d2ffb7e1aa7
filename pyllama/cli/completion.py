"""`pyllama completion`: what bash, zsh and fish need to complete commands, options and models, made from the parsers.

The wheel installs the same, where shells look for it (setup.py).
"""

import argparse
import re
from collections.abc import Callable, Iterator

from pyllama.cli.hints import commands_of
from pyllama.cli.known_words import PRE_TOKENIZERS, TYPES
from pyllama.drafting import WORDS

#: Where shells look, below the prefix of what is installed.
PLACES = {
    "bash": "share/bash-completion/completions/pyllama",
    "zsh": "share/zsh/site-functions/_pyllama",
    "fish": "share/fish/vendor_completions.d/pyllama.fish",
}
# What stands for a file or folder in a usage line.
_PATHS = ("PATH", "FILE", "DIR", "DST", "SRC")
_MODELS = ("MODEL", "NAME", "SRC", "PATH")

HELP = "print what a shell needs to complete commands"
DESCRIPTION = (
    "Print what bash, zsh or fish needs to complete commands, options and the names of models. The "
    "wheel installs it below share/, where shells look; elsewhere put the output into the shell's start-up file."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=tuple(SHELLS), help="bash, zsh or fish")


def run(args: argparse.Namespace) -> int:
    print(script(args.command_line, args.shell), end="")
    return 0


def script(command_line: argparse.ArgumentParser, shell: str) -> str:
    """All of what that shell needs."""
    return "\n".join(SHELLS[shell](command_line)) + "\n"


def _options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings]


def _takes_model(parser: argparse.ArgumentParser) -> bool:
    return any(not action.option_strings and action.metavar in _MODELS for action in parser._actions)


def _choices(action: argparse.Action) -> list[str]:
    """What may follow an option, or stand in a place, as far as it is known: some take other spellings besides."""
    if action.dest == "draft" and action.nargs != 0:
        return list(WORDS)
    if action.dest == "type":
        return list(TYPES)
    if action.dest == "pre_tokenizer":
        return list(PRE_TOKENIZERS)
    return [str(choice) for choice in action.choices or ()]


def _names_model(action: argparse.Action) -> bool:
    """Whether an option's value may be a model."""
    return bool(action.option_strings) and action.nargs != 0 and action.dest in ("draft", "against")


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """What may stand after the command besides options: the actions of a service, the shells."""
    return [word for action in parser._actions if not action.option_strings for word in _choices(action)]


def _takes_path(action: argparse.Action) -> bool:
    return action.metavar in _PATHS


def _summary(text: str | None) -> str:
    """The first clause, in characters that no shell minds."""
    return re.sub(r"[^\w ,./()+-]", "", re.split(r";|, such as", (text or "").replace("`", ""))[0]).strip()


def _first_sentence(parser: argparse.ArgumentParser) -> str:
    return re.split(r"[.:] ", parser.description or "")[0].rstrip(".")


def _bash(command_line: argparse.ArgumentParser) -> Iterator[str]:
    commands = commands_of(command_line)
    yield "# bash completion for pyllama, made by `pyllama completion bash`"
    yield "_pyllama() {"
    yield "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]}"
    yield '    local words="" models='
    yield "    COMPREPLY=()"
    yield '    if [ "$COMP_CWORD" -eq 1 ]; then'
    yield f'        COMPREPLY=($(compgen -W "{" ".join(commands)} --help --version" -- "$cur"))'
    yield "        return"
    yield "    fi"
    yield '    case "$command $prev" in'
    for name, parser in commands.items():
        for action in _options(parser):
            if action.nargs == 0:
                continue
            where = "|".join(f'"{name} {option}"' for option in action.option_strings)
            known = _choices(action)
            words = f'-W "{" ".join(known)}"' if known else "-f" if _takes_path(action) else ""
            if _names_model(action):
                words = f'-f -W "{" ".join([*known, "$(pyllama list -q 2>/dev/null)"])}"'
            what = f'COMPREPLY=($(compgen {words} -- "$cur"))' if words else ":"
            yield f"        {where}) {what}; return ;;"
    yield "    esac"
    yield '    case "$command" in'
    for name, parser in commands.items():
        options = " ".join(option for action in _options(parser) for option in action.option_strings)
        others = " ".join(_words(parser))
        models = "; models=yes" if _takes_model(parser) else ""
        yield f'        {name}) words="{others}"{models}; case "$cur" in -*) words="{options}" ;; esac ;;'
    yield "    esac"
    yield '    case "$cur" in -*) models= ;; esac'
    yield '    [ "$models" ] && words="$words $(pyllama list -q 2>/dev/null)"'
    yield '    COMPREPLY=($(compgen -W "$words" -- "$cur"))'
    yield '    case "$cur" in -*) ;; *) COMPREPLY+=($(compgen -f -- "$cur")) ;; esac'
    yield "}"
    # Names like org/name:Q4_K_M are one word.
    yield "COMP_WORDBREAKS=${COMP_WORDBREAKS//:/}"
    yield "complete -o filenames -F _pyllama pyllama"


def _zsh(command_line: argparse.ArgumentParser) -> Iterator[str]:
    commands = commands_of(command_line)
    yield "#compdef pyllama"
    yield "# zsh completion for pyllama, made by `pyllama completion zsh`"
    yield '_pyllama_models() { compadd -- ${(f)"$(pyllama list -q 2>/dev/null)"}; _files }'
    yield f"_pyllama_drafters() {{ compadd -- {' '.join(WORDS)}; _pyllama_models }}"
    yield "_pyllama() {"
    yield "    if (( CURRENT == 2 )); then"
    yield "        local -a commands=("
    for name, parser in commands.items():
        yield f"            '{name}:{_summary(_first_sentence(parser))}'"
    yield "        )"
    yield "        _describe command commands"
    yield "        return"
    yield "    fi"
    yield "    local command=$words[2]"
    yield "    shift words; (( CURRENT-- ))"
    yield "    case $command in"
    for name, parser in commands.items():
        yield f"        {name}) _arguments -s \\"
        for action in _options(parser):
            known = _choices(action)
            values = f"({' '.join(known)})" if known else "_files" if _takes_path(action) else ""
            if _names_model(action):
                values = "_pyllama_drafters" if known else "_pyllama_models"
            value = "" if action.nargs == 0 else f":{action.metavar or 'value'}:{values}"
            several = "*" if isinstance(action, argparse._AppendAction) else ""
            for option in action.option_strings:
                yield f"            '{several}{option}[{_summary(action.help)}]{value}' \\"
        if _words(parser):
            yield f"            ':which:({' '.join(_words(parser))})' \\"
        yield f"            '*:: :{'_pyllama_models' if _takes_model(parser) else '_files'}' ;;"
    yield "    esac"
    yield "}"
    # As a file of its own, or read by a start-up file.
    yield 'if [ "$funcstack[1]" = "_pyllama" ]; then _pyllama "$@"; else compdef _pyllama pyllama; fi'


def _fish(command_line: argparse.ArgumentParser) -> Iterator[str]:
    commands = commands_of(command_line)
    yield "# fish completion for pyllama, made by `pyllama completion fish`"
    for name, parser in commands.items():
        yield f"complete -c pyllama -n __fish_use_subcommand -x -a {name} -d '{_summary(_first_sentence(parser))}'"
        here = f"complete -c pyllama -n '__fish_seen_subcommand_from {name}'"
        if _takes_model(parser):
            yield f"{here} -a '(pyllama list -q 2>/dev/null)'"
        if _words(parser):
            yield f"{here} -x -a '{' '.join(_words(parser))}'"
        for action in _options(parser):
            names = [f"-{'sl'[option.startswith('--')]} {option.lstrip('-')}" for option in action.option_strings]
            values = "-r" if _takes_path(action) else f"-x -a '{' '.join(_choices(action))}'"
            if _names_model(action):
                values = f"-r -a '{' '.join([*_choices(action), '(pyllama list -q 2>/dev/null)'])}'"
            value = "" if action.nargs == 0 else f" {values}"
            yield f"{here} {' '.join(names)}{value} -d '{_summary(action.help)}'"


SHELLS: dict[str, Callable[[argparse.ArgumentParser], Iterator[str]]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
