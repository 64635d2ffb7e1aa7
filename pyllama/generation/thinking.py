"""An answer's text in pieces -> what the model thinks, between <think> and </think> or a family's own marks, and what
it says.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pyllama.generation.answer import overlap

_PROMPT_END = 8  # tokens that the opening mark and what stands around it take at most

Passage = tuple[bool, str]  # whether it is thought, and the text


class Marks(NamedTuple):
    """What stands around what a model thinks.

    control  whether they are control tokens, which an answer does not show unless it is asked to
    """

    opening: str
    closing: str
    control: bool = False


THINK = Marks("<think>", "</think>")
CHANNEL = Marks("<|channel>thought", "<channel|>", control=True)  # Gemma 4


def marks_of(template: str | None) -> Marks:
    """The marks that the model of a chat template thinks between."""
    return CHANNEL if template and CHANNEL.opening in template else THINK


class ThinkingSplit:
    """Splits one answer. Thinking is at its beginning or nowhere; the marks and white space around them are left out.

    begun     the prompt has ended with the opening mark already
    marks     of the model
    thinking  whether the last of the text is what the model thinks
    """

    def __init__(self, *, begun: bool = False, marks: Marks = THINK):
        self._opening, self._closing, _ = marks
        self._held = ""
        self.thinking = begun
        self._decided = begun
        self._after_mark = begun

    def push(self, piece: str) -> list[Passage]:
        """What is known to be one or the other, now that `piece` has come."""
        text = self._held + piece
        self._held = ""
        if not self._decided:
            start = text.lstrip()
            if len(start) < len(self._opening) and self._opening.startswith(start):
                self._held = text
                return []
            self._decided = True
            self.thinking = start.startswith(self._opening)
            if self.thinking:
                self._after_mark = True
                text = start[len(self._opening) :]
        if not self.thinking:
            return self._part(text)
        thought, closing, said = text.partition(self._closing)
        if closing:
            parts = self._part(thought.rstrip())
            self.thinking, self._after_mark = False, True
            return parts + self._part(said)
        # What may still become the closing mark, and white space that may stand before it.
        thought = text[: len(text) - overlap(text, self._closing)].rstrip()
        self._held = text[len(thought) :]
        return self._part(thought)

    def finish(self) -> list[Passage]:
        """What was held back, when no more comes."""
        held, self._held = self._held, ""
        return self._part(held.rstrip() if self.thinking else held)

    def _part(self, text: str) -> list[Passage]:
        if self._after_mark:
            text = text.lstrip()
            self._after_mark = not text
        return [(self.thinking, text)] if text else []


def begins_in_thought(prompt_end: str, marks: Marks = THINK) -> bool:
    """Whether a prompt that ends so leaves the model in the midst of thinking."""
    return prompt_end.rstrip().endswith(marks.opening)


def split_after(tokenizer: Any, prompt_ids: Sequence[int], marks: Marks) -> ThinkingSplit:
    """What takes an answer to this prompt apart."""
    end = tokenizer.decode(prompt_ids[-_PROMPT_END:], skip_special_tokens=False)
    return ThinkingSplit(begun=begins_in_thought(end, marks), marks=marks)
