"""An answer's text in pieces -> what the model thinks, between <think> and </think>, and what it says."""

from pyllama.generation.answer import overlap

OPENING, CLOSING = "<think>", "</think>"
Part = tuple[bool, str]  # whether it is thought, and the text


class ThinkingSplit:
    """Splits one answer. Thinking is at its beginning or nowhere; the marks and white space around them are left out.

    begun     the prompt has ended with <think> already
    thinking  whether the last of the text is what the model thinks
    """

    def __init__(self, *, begun: bool = False):
        self._held = ""
        self.thinking = begun
        self._decided = begun
        self._after_mark = begun

    def push(self, piece: str) -> list[Part]:
        """What is known to be one or the other, now that `piece` has come."""
        text = self._held + piece
        self._held = ""
        if not self._decided:
            start = text.lstrip()
            if len(start) < len(OPENING) and OPENING.startswith(start):
                self._held = text
                return []
            self._decided = True
            self.thinking = start.startswith(OPENING)
            if self.thinking:
                self._after_mark = True
                text = start[len(OPENING) :]
        if not self.thinking:
            return self._part(text)
        thought, closing, said = text.partition(CLOSING)
        if closing:
            parts = self._part(thought.rstrip())
            self.thinking, self._after_mark = False, True
            return parts + self._part(said)
        # What may still become the closing mark, and white space that may stand before it.
        keep = len(text) - len(text[: len(text) - overlap(text, CLOSING)].rstrip())
        self._held = text[len(text) - keep :]
        return self._part(text[: len(text) - keep])

    def finish(self) -> list[Part]:
        """What was held back, when no more comes."""
        held, self._held = self._held, ""
        return self._part(held.rstrip() if self.thinking else held)

    def _part(self, text: str) -> list[Part]:
        if self._after_mark:
            text = text.lstrip()
            self._after_mark = not text
        return [(self.thinking, text)] if text else []


def begins_in_thought(prompt_end: str) -> bool:
    """Whether a prompt that ends so leaves the model in the midst of thinking."""
    return prompt_end.rstrip().endswith(OPENING)
