"""An answer's text to what the model thinks and what it says: `<think>...</think>` at the beginning, or text alone.

The tag may have been written by the template already, as the last of the prompt.
"""

from pyllama.generation import overlap

OPENING, CLOSING = "<think>", "</think>"


def is_begun(prompt_end: str) -> bool:
    """Whether a prompt that ends like this has begun the thinking."""
    return prompt_end.rstrip().endswith(OPENING)


class Thinking:
    """Text in pieces in; (thinking, text) that have become certain out, without tags and the space around them."""

    def __init__(self, begun: bool):
        self._where = "inside" if begun else "before"
        self._held = ""
        self._fresh = True  # whether nothing of this part was shown yet

    @property
    def inside(self) -> bool:
        """Whether the last of the text is what the model thinks."""
        return self._where == "inside"

    def push(self, piece: str) -> tuple[str, str]:
        self._held += piece
        if self._where == "before":
            start = self._held.lstrip()
            if OPENING.startswith(start) and start != OPENING:
                return "", ""
            if start.startswith(OPENING):
                self._where, self._held = "inside", start.removeprefix(OPENING)
            else:
                self._where, self._fresh = "after", False
        thought = ""
        if self._where == "inside":
            thinking, closing, rest = self._held.partition(CLOSING)
            if not closing:
                keep = overlap(thinking, CLOSING)
                # White space may be the last of it.
                certain = thinking[: len(thinking) - keep].rstrip()
                self._held = thinking[len(certain) :]
                return self._shown(certain), ""
            thought = self._shown(thinking.rstrip())
            self._where, self._held, self._fresh = "after", rest, True
        text, self._held = self._held, ""
        return thought, self._shown(text)

    def finish(self) -> tuple[str, str]:
        """What was held back, when no more comes."""
        held, self._held = self._held, ""
        return (self._shown(held.rstrip()), "") if self._where == "inside" else ("", held)

    def _shown(self, text: str) -> str:
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        return text
