"""Messages typed at a terminal: edited lines, pasted lines as one message, a history that is there next time, Tab.

All of it is readline's, where Python has it; without, plain lines. Knows nothing of what messages mean.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pyllama.terminal.style import bold, is_dumb

KEPT = 1000  # messages of the history
QUOTES = '"""'
MORE = "... "
# What readline itself writes is of no width only if marked so.
_UNSEEN, _SEEN = "\x01", "\x02"


class LineEditor:
    """prompt    shown before a message
    history   a file, or None; written after every message, for its owner alone. What fails there is nobody's concern
    complete  the words that what was typed may be continued to
    """

    def __init__(self, prompt: str, history: Path | None, complete: Callable[[str], list[str]]):
        self._prompt = prompt
        self._history = history
        self._complete = complete
        self._found: list[str] = []
        self._readline: Any = _readline()
        if self._readline:
            self._set_up(self._readline)

    def read(self, text: str = "") -> str:
        """The next message; text: what stands there already. Raises EOFError and KeyboardInterrupt."""
        message = self._line(self._styled(self._prompt), text)
        if message.lstrip().startswith(QUOTES):
            message = self._quoted(message.lstrip()[len(QUOTES) :])
        message = message.strip("\n")
        if message.strip():
            self._remember(message)
        return message

    def _quoted(self, first: str) -> str:
        """What stands between quotes, on however many lines."""
        text = first
        while QUOTES not in text:
            text += "\n" + self._line(MORE, "")
        return text.partition(QUOTES)[0]

    def _line(self, prompt: str, text: str) -> str:
        if self._readline and text:
            # What is there already is typed in once the prompt stands.
            self._readline.set_pre_input_hook(lambda: (self._readline.insert_text(text), self._readline.redisplay()))
        try:
            return input(prompt)
        finally:
            if self._readline and text:
                self._readline.set_pre_input_hook(None)

    def _styled(self, prompt: str) -> str:
        styled = bold(prompt)
        if not self._readline or styled == prompt:
            return prompt
        before, after = styled.split(prompt)
        return f"{_UNSEEN}{before}{_SEEN}{prompt}{_UNSEEN}{after}{_SEEN}"

    # --- what readline is told ---

    def _set_up(self, readline: Any) -> None:
        readline.set_auto_history(False)
        if not is_dumb():
            # Python turns it off, since a program must expect newlines in a line.
            readline.parse_and_bind("set enable-bracketed-paste on")
        readline.set_completer_delims("")
        readline.set_completer(self._completion)
        # libedit has another language for its keys.
        libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
        for message in self._remembered():
            readline.add_history(message)

    def _completion(self, typed: str, number: int) -> str | None:
        if number == 0:
            self._found = self._complete(typed)
        return self._found[number] if number < len(self._found) else None

    # --- the history ---

    def _remembered(self) -> list[str]:
        if self._history is None:
            return []
        try:
            lines = self._history.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        if len(lines) > 2 * KEPT:
            self._rewrite(lines[-KEPT:])
        return [message for message in map(_parsed, lines[-KEPT:]) if message]

    def _remember(self, message: str) -> None:
        if self._readline:
            self._readline.add_history(message)
        if self._history is None:
            return
        try:
            self._history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(self._history, "a", encoding="utf-8", opener=_private) as file:
                file.write(json.dumps(message) + "\n")
        except OSError:
            pass

    def _rewrite(self, lines: list[str]) -> None:
        assert self._history is not None
        try:
            fresh = self._history.with_name(f"{self._history.name}.{os.getpid()}")
            with open(fresh, "w", encoding="utf-8", opener=_private) as file:
                file.write("".join(f"{line}\n" for line in lines))
            os.replace(fresh, self._history)
        except OSError:
            pass


def _readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:
        return None
    return readline


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _parsed(line: str) -> str:
    """A message of the history: a line of JSON, so that newlines in it are none of the file's."""
    try:
        message = json.loads(line)
    except ValueError:
        return ""
    return message if isinstance(message, str) else ""
