"""One answer as it comes: its steps to text, calls, and a reason to end in OpenAI's words."""

from pyllama.generation import Step
from pyllama.server import tools


class Choice:
    """content, calls, finish_reason: as far as the answer has come."""

    def __init__(self, form: tools.ToolFormat | None, choice: tools.ToolChoice):
        self._parser = None
        if form and choice.tools:
            self._parser = tools.ToolParser(form, choice.offered, parallel=choice.parallel)
        self.content = ""
        self.calls: list[tools.ToolCall] = []
        self.finish_reason: str | None = None

    def take(self, step: Step) -> tuple[str, list[tools.ToolCall]]:
        """(content, calls) that are new with this step."""
        content = step.text
        calls: list[tools.ToolCall] = []
        if self._parser:
            content, calls = self._parser.take(step.text, step.finish_reason)
        self.content += content
        self.calls += calls
        self.finish_reason = step.finish_reason
        if self.calls and step.finish_reason == "stop":
            self.finish_reason = "tool_calls"
        return content, calls
