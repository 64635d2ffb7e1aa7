"""An answer in harmony, the form gpt-oss writes -> what the model thinks, what it says, and calls, as they come.

    <|channel|>analysis<|message|>I add.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>

A message has a header (who speaks, on which channel, to whom), then its body. `analysis` is thought; `final`, and
`commentary` to nobody, are said; what goes to `functions.NAME` is a call. Knows texts, and no tokens.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pyllama.generation.answer import overlap

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, RETURN, CALL = "<|end|>", "<|return|>", "<|call|>"
MARKS = (START, CHANNEL, MESSAGE, CONSTRAIN, END, RETURN, CALL)
ROLE = "assistant"
_ENDS = (END, RETURN, CALL, START, CHANNEL)  # of a body: the last two where the model forgot one
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_FUNCTIONS = "functions."
MAX_HEADER = 400  # characters: what is longer is none
PROMPT_END = 64  # tokens of a prompt in which the header that it ends in, or with, stands


class Piece(NamedTuple):
    """kind is "thinking", "text" or "call"; a call has a name, and its arguments, whole, as its text."""

    kind: str
    text: str
    name: str = ""


def is_harmony(template: str | None) -> bool:
    """Whether a chat template's model writes harmony."""
    return bool(template) and all(mark in str(template) for mark in (START, CHANNEL, MESSAGE))


class Harmony:
    """Takes one answer apart.

    prompt_end  the end of the prompt's text, markers and all: the answer goes on where it stops
    thinking    whether the last of the text is what the model thinks
    """

    def __init__(self, prompt_end: str = f"{START}{ROLE}"):
        self._held = ""
        self._body: str | None = None  # the kind of the body we are in, or None: in a header
        self._name = ""
        self._said = False  # whether a message was said before
        _, begun, after = prompt_end.rpartition(START)
        if begun:
            self.push(after)
            self._said = False
        else:
            self._body = "text"  # in the midst of a long message

    @property
    def thinking(self) -> bool:
        return self._body == "thinking"

    def push(self, piece: str) -> list[Piece]:
        """What has become certain, now that `piece` has come."""
        self._held += piece
        found: list[Piece] = []
        while self._header(found) if self._body is None else self._in_body(found):
            pass
        return [one for one in found if one.text]

    def finish(self) -> list[Piece]:
        """What was held back, when no more comes."""
        held, self._held = self._held, ""
        if self._body is None:
            text = held.removeprefix(ROLE)
            known = (CHANNEL, MESSAGE, START, END, " to=")
            return [] if not text.strip() or any(mark in held for mark in known) else [Piece("text", text)]
        body, self._body = self._body, None
        return [Piece(body, held, self._name)] if held or body == "call" else []

    def _header(self, found: list[Piece]) -> bool:
        """Whether a body begins with what is held; a text that can be no header is one."""
        header, mark, rest = self._held.partition(MESSAGE)
        if mark:
            self._held = rest
            channel = header.rpartition(CHANNEL)[2].split()
            recipient = _RECIPIENT.search(header)
            to = recipient[1] if recipient else ""
            self._name = to.removeprefix(_FUNCTIONS) if to.startswith(_FUNCTIONS) else ""
            if self._name:
                self._body = "call"
            else:
                self._body = "thinking" if channel[:1] == ["analysis"] or to not in ("", "user") else "text"
            if self._body == "text" and self._said:
                self._held = "\n\n" + rest
            self._said = self._said or self._body == "text"
            return True
        role = self._held.lstrip().removeprefix(START)
        text = role.removeprefix(ROLE)
        begins = (CHANNEL, MESSAGE, START, END, RETURN, CALL, " to=")
        may_be = ROLE.startswith(role) or any(text.startswith(mark) or mark.startswith(text) for mark in begins)
        if may_be and len(self._held) <= MAX_HEADER:
            return False
        self._body = "text"
        text = self._held.removeprefix(START).removeprefix(ROLE)
        # As far as it can be no end of a body: one of those that begin a header would be taken for a header again.
        shown = next((mark for mark in (START, CHANNEL) if text.startswith(mark)), "")
        found.append(Piece("text", shown))
        self._held = text[len(shown) :]
        return True

    def _in_body(self, found: list[Piece]) -> bool:
        """Whether the body has ended within what is held."""
        body = self._body or "text"
        at, mark = min(((self._held.find(mark), mark) for mark in _ENDS if mark in self._held), default=(-1, ""))
        if at >= 0:
            found.append(Piece(body, self._held[:at], self._name))
            self._held = self._held[at + len(mark) :] if mark not in (START, CHANNEL) else self._held[at:]
            self._body = None
            return True
        if body != "call":
            keep = max(overlap(self._held, mark) for mark in _ENDS)
            found.append(Piece(body, self._held[: len(self._held) - keep]))
            self._held = self._held[len(self._held) - keep :]
        return False


class HarmonySplit(Harmony):
    """The same in the terms of ThinkingSplit: (whether it is thought, text); a call is its text."""

    def push(self, piece: str) -> list[tuple[bool, str]]:  # type: ignore[override]
        return [(one.kind == "thinking", _shown(one)) for one in super().push(piece)]

    def finish(self) -> list[tuple[bool, str]]:  # type: ignore[override]
        return [(one.kind == "thinking", _shown(one)) for one in super().finish()]


def _shown(piece: Piece) -> str:
    return f"{piece.name}({piece.text})" if piece.kind == "call" else piece.text


def said(text: str, prompt_end: str = f"{START}{ROLE}") -> tuple[str, str]:
    """(what was thought, what was said) of a whole answer."""
    split = HarmonySplit(prompt_end)
    parts = split.push(text) + split.finish()
    thought, spoken = ("".join(part for thinking, part in parts if thinking is kind) for kind in (True, False))
    return thought, spoken
