"""An answer on a terminal as it comes: lines end between words, and what the model thinks is dim, or folded away."""

import shutil
import sys
import time

from pyllama.cli.pass_line import PassLine
from pyllama.cli.streams import TerminalText
from pyllama.generation import Generation
from pyllama.generation.harmony import PROMPT_END, HarmonySplit, is_harmony
from pyllama.generation.thinking import ThinkingSplit, marks_of, split_after
from pyllama.printable import visible
from pyllama.terminal.style import dim, is_dumb, is_plain
from pyllama.terminal.word_wrap import WordWrap
from pyllama.tokenizer import Tokenizer

_DIM, _NOT_DIM = "\x1b[2m", "\x1b[22m"
_THINKING = "thinking ..."


class AnswerView:
    """For one answer.

    terminal  where to show it
    signs     the status line to clear first
    split     takes the answer apart into what is thought and what is said
    fold      show of the thinking only how long it took
    wrap      lines end between words
    """

    def __init__(
        self, terminal: TerminalText, signs: PassLine, *, split: ThinkingSplit | HarmonySplit, fold: bool, wrap: bool
    ):
        self._terminal, self._signs = terminal, signs
        self._split = split
        self._fold = fold
        self._wrap = WordWrap(lambda: shutil.get_terminal_size().columns) if wrap and not is_dumb() else None
        self._thinking: bool | None = None
        self._since = 0.0
        self._at_left = True
        self.thought = ""

    def show(self, generation: Generation) -> None:
        """All of it, or as far as it comes."""
        try:
            for step in generation:
                self._signs.clear()
                parts = self._split.push(step.text)
                for thinking, text in parts + (self._split.finish() if step.finish_reason else []):
                    self._show(thinking, text)
                self._terminal.flush()
        finally:
            self._signs.clear()
            self._enter(None)
            self._terminal.flush()

    def _show(self, thinking: bool, text: str) -> None:
        if thinking != self._thinking:
            self._enter(thinking)
        if thinking:
            self.thought += text
            if self._fold:
                return
        self._write(text)

    def _enter(self, thinking: bool | None) -> None:
        """Go over to thinking, to the answer, or to the end of both."""
        if self._thinking:
            if self._fold:
                took = dim(f"[thought for {time.monotonic() - self._since:.0f} s; /think shows it]")
                self._terminal.obeyed(f"\n{took}" if is_dumb() else f"\r\x1b[K{took}")
                self._at_left = False
            elif not is_plain():
                self._terminal.obeyed(_NOT_DIM)
            if thinking is False:
                self._write("\n\n")
        if thinking:
            self._since = time.monotonic()
            if self._fold:
                self._terminal.obeyed(dim(_THINKING))
            elif not is_plain():
                self._terminal.obeyed(_DIM)
        if thinking is None and not self._at_left:
            self._write("\n")
        self._thinking = thinking

    def _write(self, text: str) -> None:
        text = visible(text)
        self._terminal.obeyed(self._wrap.push(text) if self._wrap else text)
        self._at_left = text.endswith("\n") if text else self._at_left


def split_of(tokenizer: Tokenizer, prompt_ids: list[int]) -> ThinkingSplit | HarmonySplit:
    """What takes an answer to this prompt apart."""
    if is_harmony(tokenizer.chat_template):
        return HarmonySplit(tokenizer.decode(prompt_ids[-PROMPT_END:], skip_special_tokens=False))
    return split_after(tokenizer, prompt_ids, marks_of(tokenizer.chat_template))


def view_of(
    generation: Generation, tokenizer: Tokenizer, signs: PassLine, *, fold: bool, wrap: bool
) -> AnswerView | None:
    """For an answer to messages, if standard output is a terminal."""
    if not isinstance(sys.stdout, TerminalText):
        return None
    split = split_of(tokenizer, generation.prompt_ids)
    return AnswerView(sys.stdout, signs, split=split, fold=fold, wrap=wrap)


def show_plain(generation: Generation, signs: PassLine, split: ThinkingSplit | HarmonySplit | None = None) -> None:
    """The answer as it is, or of a model that writes harmony what is said, as it comes, and a newline."""
    shown = ""
    try:
        for step in generation:
            text = step.text
            if isinstance(split, HarmonySplit):
                parts = split.push(text) + (split.finish() if step.finish_reason else [])
                text = "".join(part for thinking, part in parts if not thinking)
            signs.clear()
            sys.stdout.write(text)
            sys.stdout.flush()
            shown = text or shown
    finally:
        signs.clear()
    if not shown.endswith("\n"):
        print(flush=True)
