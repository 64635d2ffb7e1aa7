"""An answer as it comes to content and calls.

A call in the family's own markers is one wherever it stands. In any other form it is one only if the whole answer
(what follows a reasoning block counts as whole) is nothing else. Either way it must name a function that is offered;
all that is no call is content, complete, and shown as soon as it can no longer become a call.
"""

import json

from pyllama.generation import overlap
from pyllama.server.json_object import JsonObject
from pyllama.server.tools.forms import GEMMA, MISTRAL, ToolCall, ToolFormat
from pyllama.server.tools.gemma import GemmaScan, read_gemma
from pyllama.server.tools.reading import Call, Offered, read
from pyllama.server.tools.scan import Scan

_REASONED = {True: "<channel|>", False: "</think>"}  # by whether it is Gemma's
_HEAD = 200  # characters in which an answer's first marker stands, if it begins with one


class ToolParser:
    """Text in pieces in; text that is no call, and calls, out. What might become a call is held back.

    form      how the family writes calls
    offered   the functions that may be called, by name
    parallel  whether an answer may have several calls; if not, those after the first are left out
    """

    def __init__(self, form: ToolFormat, offered: Offered, *, parallel: bool = True):
        self._form = form
        self._offered = offered
        self._parallel = parallel
        self._mistral, self._gemma = form is MISTRAL, form is GEMMA
        self._reasoned = _REASONED[self._gemma]
        self._held = ""
        self._quiet = True  # whether nothing but white space has come since the beginning, or the last call
        self._space = ""  # that white space
        self.calls = 0
        self._whole: Scan | None = Scan(offered)  # of an answer that may be nothing but calls
        self._call: Scan | GemmaScan | None = None  # of what follows an opening marker
        self._fed = 0  # characters of a call that its scan has seen

    def push(self, piece: str) -> tuple[str, list[ToolCall]]:
        """(content, calls) that have become certain."""
        self._held += piece
        content: list[str] = []
        calls: list[ToolCall] = []
        if self._may_be_whole(piece):
            return "", []
        while self._go_on_with_call(content, calls) if self._call else self._look_for_call(content):
            if self._may_be_whole(self._held):  # an answer after its reasoning begins with all that is held
                break
        return "".join(content), calls

    def take(self, piece: str, finish_reason: str | None) -> tuple[str, list[ToolCall]]:
        """push(), and finish() where the answer ends with this piece, for that reason."""
        content, calls = self.push(piece)
        if finish_reason:
            more, last = self.finish(cut=finish_reason == "length")
            content, calls = content + more, calls + last
        return content, calls

    def finish(self, *, cut: bool = False) -> tuple[str, list[ToolCall]]:
        """What was held back, when no more comes. cut: the answer was not ended by the model."""
        if self._whole:
            calls = None if cut and self._whole.open else read(self._held, self._offered)
            self._whole = None
            if calls:
                self._held = ""
                return "", self._made(calls)
            content, made = self.push("")
            more, last = self.finish(cut=cut)
            return content + more, made + last
        text, self._held = self._held, ""
        if self._call:
            self._call = None
            calls = self._read_call(text)
            if calls:
                return "", self._made(calls)
            text = (self._form.opening or "") + text
        text = self._show(text)
        return text if self.calls else text + self._space, []

    def _may_be_whole(self, fed: str) -> bool:
        """Whether the answer may still be nothing but calls, in another form than the family's."""
        if self._whole is None:
            return False
        opening = self._form.opening
        if self._whole.feed(fed) and not (opening and self._held[:_HEAD].lstrip().startswith(opening)):
            return True
        self._whole = None
        return False

    def _look_for_call(self, content: list[str]) -> bool:
        """Shows the text before a call or the end of reasoning; whether either was found."""
        marks = [mark for mark in (self._form.opening, None if self.calls else self._reasoned) if mark]
        found = [(at, mark) for mark in marks if (at := self._held.find(mark)) >= 0]
        if not found:
            keep = max((overlap(self._held, mark) for mark in marks), default=0)
            content.append(self._show(self._held[: len(self._held) - keep]))
            self._held = self._held[len(self._held) - keep :]
            return False
        at, mark = min(found)
        shown = at + len(mark) if mark == self._reasoned else at
        content.append(self._show(self._held[:shown]))
        self._held = self._held[at + len(mark) :]
        if mark == self._reasoned:
            self._whole = Scan(self._offered)
        else:
            self._call = self._scan_of_call()
            self._fed = 0
        return True

    def _go_on_with_call(self, content: list[str], calls: list[ToolCall]) -> bool:
        """Ends the call at its closing marker, or turns it into text; whether either happened."""
        scan, closing = self._call, self._form.closing
        assert scan is not None
        while True:
            # A marker may have come in two pieces; one in a string is none, as the scan knows.
            start = max(0, self._fed - len(closing or "") + 1)
            end = self._held.find(closing, start) if closing else -1
            stop = end + len(closing or "") if end >= 0 else len(self._held)
            alive = scan.feed(self._held[self._fed : stop])
            self._fed = stop
            if not alive or (end >= 0 and scan.between):
                break
            if end < 0:
                return False
        found = self._read_call(self._held[:end]) if alive else None
        self._call = None
        if found:
            calls += self._made(found)
            self._held = self._held[stop:]
        else:
            content.append(self._show(self._form.opening or ""))
        return True

    def _scan_of_call(self) -> Scan | GemmaScan:
        if self._gemma:
            return GemmaScan(self._offered)
        return Scan(self._offered, mistral=self._mistral, closing=self._form.closing)

    def _read_call(self, text: str) -> list[Call] | None:
        """The calls between two markers."""
        if self._gemma:
            return read_gemma(text, self._offered)
        return read(text, self._offered, mistral=self._mistral)

    def _show(self, text: str) -> str:
        """Content; white space around calls is part of their form."""
        if self._quiet:
            self._space += text
            if not self._space.strip():
                return ""
            text = self._space.lstrip() if self.calls else self._space
            self._quiet, self._space = False, ""
        return text

    def _made(self, found: list[Call]) -> list[ToolCall]:
        if not self._parallel:
            found = found[: 1 - min(self.calls, 1)]
        self.calls += len(found)
        self._quiet, self._space = True, ""
        return [ToolCall(self._form.new_id(), name, _json(arguments)) for name, arguments in found]


def _json(arguments: JsonObject) -> str:
    text = json.dumps(arguments, ensure_ascii=False)
    # Half of a surrogate pair, as an escape may spell, is no text that could be sent.
    return text if text.isascii() or text.encode("utf-8", "ignore").decode() == text else json.dumps(arguments)
