"""Words and paths as systemd's unit files want them: quotes, %-specifiers and $-variables in them are text.

    'say "100%"'  ->  "say \\"100%%\\""

Rules: systemd.syntax(7) "Quoting", systemd.service(5) "Command lines", systemd.unit(5) "Specifiers".
"""

import re

from pyllama.errors import RequestError

_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")


class Specifiers(str):
    """Text whose %-specifiers are meant as such, "%S/pyllama"; nothing else in it needs quotes."""


def word(text: str, *, variables: bool = False) -> str:
    """One word of a list.

    variables  the setting replaces $NAME, as the arguments of ExecStart do; a program's path and Environment do not

    Raises RequestError for control characters: nobody means them.
    """
    if isinstance(text, Specifiers):
        return text
    text = rest_of_line(text)
    return _quoted(text.replace("$", "$$") if variables else text, '\\"')


def command(program: str, arguments: list[str]) -> str:
    """The value of ExecStart. program is an absolute path.

    Raises RequestError for a program that systemd would refuse to run, and for control characters.
    """
    if any(character in program for character in "\"'\\"):
        raise RequestError(f"{program}: systemd runs no program with quotes or backslashes in its path")
    return " ".join([word(program), *(word(argument, variables=True) for argument in arguments)])


def bind_path(path: str) -> str:
    """One path of BindReadOnlyPaths, where a colon would begin the place to show it at."""
    return _quoted(rest_of_line(path), '\\":')


def rest_of_line(text: str) -> str:
    """A value that reaches to the end of its line, where quotes are text."""
    if any(character < " " or character == "\x7f" for character in text):
        raise RequestError(f"{text!r}: control characters cannot stand in a unit file")
    return text.replace("%", "%%")


def _quoted(text: str, escaped: str) -> str:
    """escaped: the characters that get a backslash, itself the first of them."""
    for character in escaped:
        text = text.replace(character, "\\" + character)
    return text if _PLAIN.fullmatch(text) else f'"{text}"'
