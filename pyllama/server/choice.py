"""Tells text, thought and calls in the steps of one answer as they come, and its reason to end, in OpenAI's words."""

from pyllama.generation import Step
from pyllama.generation.harmony import PROMPT_END
from pyllama.generation.thinking import ThinkingSplit, split_after
from pyllama.server import tools
from pyllama.server.conversation import Asked
from pyllama.server.service import Service


class Choice:
    """content, reasoning, calls, finish_reason: as far as the answer has come.

    thought  what the last step brought of reasoning

    Models that have channels say on them what is thought; of any other it stands between marks at the answer's
    beginning. An answer that a grammar holds is not taken apart: nothing in it is thought.
    """

    def __init__(self, service: Service, asked: Asked, prompt_ids: list[int]):
        choice = asked.choice
        self._channels: tools.ChannelParser | None = None
        self._parser: tools.ToolParser | tools.ChannelParser | None = None
        self._split: ThinkingSplit | None = None
        if service.has_channels:
            end = service.tokenizer.decode(prompt_ids[-PROMPT_END:], skip_special_tokens=False)
            offered = choice.offered if choice.tools else {}
            self._channels = self._parser = tools.ChannelParser(offered, end, parallel=choice.parallel)
        else:
            if service.tool_format and choice.tools:
                self._parser = tools.ToolParser(service.tool_format, choice.offered, parallel=choice.parallel)
            if not asked.guided:
                self._split = _split(service, asked, prompt_ids)
        self.content = self.reasoning = self.thought = ""
        self.calls: list[tools.ToolCall] = []
        self.finish_reason: str | None = None

    @property
    def thinking(self) -> bool:
        """Whether the last of the answer is what the model thinks."""
        told = self._channels or self._split
        return told is not None and told.thinking

    def take(self, step: Step) -> tuple[str, list[tools.ToolCall]]:
        """(content, calls) that are new with this step."""
        content = step.text
        calls: list[tools.ToolCall] = []
        self.thought = ""
        if self._parser:
            content, calls = self._parser.take(step.text, step.finish_reason)
        if self._channels:
            self.thought = self._channels.thought
        elif self._split:
            parts = self._split.push(content)
            if calls or step.finish_reason:
                parts += self._split.finish()
            self.thought, content = (
                "".join(text for thinks, text in parts if thinks is kind) for kind in (True, False)
            )
        self.reasoning += self.thought
        self.content += content
        self.calls += calls
        self.finish_reason = step.finish_reason
        if self.calls and step.finish_reason == "stop":
            self.finish_reason = "tool_calls"
        return content, calls


def _split(service: Service, asked: Asked, prompt_ids: list[int]) -> ThinkingSplit:
    marks = service.thinking_marks
    _, begun, after = asked.goes_on.rpartition(marks.opening)
    if begun:
        return ThinkingSplit(begun=marks.closing not in after, marks=marks)
    return split_after(service.tokenizer, prompt_ids, marks)
