"""Calls, and what is thought, of an answer in harmony: the channels' part of what parser.py does for other forms."""

import json

from pyllama.generation.harmony import Harmony, Piece
from pyllama.server.tools.forms import HARMONY, ToolCall
from pyllama.server.tools.reading import Offered, loaded


class ChannelParser:
    """Text in pieces in; what is said, and calls, out.

    offered     the functions that may be called, by name
    parallel    whether an answer may have several calls; if not, those after the first are left out
    prompt_end  the end of the prompt's text
    thought     what the last piece brought of what the model thinks
    """

    def __init__(self, offered: Offered, prompt_end: str, *, parallel: bool = True):
        self._offered = offered
        self._parallel = parallel
        self._harmony = Harmony(prompt_end)
        self.calls = 0
        self.thought = ""

    @property
    def thinking(self) -> bool:
        """Whether the last of the text is what the model thinks."""
        return self._harmony.thinking

    def take(self, piece: str, finish_reason: str | None) -> tuple[str, list[ToolCall]]:
        """(content, calls) that have become certain; finish_reason where the answer ends with this piece."""
        pieces = self._harmony.push(piece)
        if finish_reason:
            pieces += self._harmony.finish()
        self.thought = "".join(one.text for one in pieces if one.kind == "thinking")
        content, calls = "", []
        for one in pieces:
            if one.kind == "text":
                content += one.text
            elif one.kind == "call":
                call = self._call(one)
                content += "" if call else one.text  # no call: content, complete
                if call and (self._parallel or not self.calls):
                    calls.append(call)
                    self.calls += 1
        return content, calls

    def _call(self, piece: Piece) -> ToolCall | None:
        if piece.name not in self._offered:
            return None
        arguments = loaded(piece.text.strip() or "{}")
        if not isinstance(arguments, dict):
            return None
        return ToolCall(HARMONY.new_id(), piece.name, json.dumps(arguments, ensure_ascii=False))
