"""One answer as it comes: its steps to text, thought, calls, and a reason to end in OpenAI's words."""

from pyllama.generation import Step
from pyllama.generation.harmony import PROMPT_END
from pyllama.server import tools
from pyllama.server.service import Service


def channels_of(service: Service, choice: tools.ToolChoice, prompt_ids: list[int]) -> tools.ChannelParser | None:
    """What takes the answers of a model apart that writes harmony; None for any other."""
    if not service.has_channels:
        return None
    end = service.tokenizer.decode(prompt_ids[-PROMPT_END:], skip_special_tokens=False)
    return tools.ChannelParser(choice.offered if choice.tools else {}, end, parallel=choice.parallel)


class Choice:
    """content, reasoning, calls, finish_reason: as far as the answer has come.

    reasoning  of a model that has channels; thought is what the last step brought of it
    channels   of channels_of()
    """

    def __init__(
        self,
        form: tools.ToolFormat | None,
        choice: tools.ToolChoice,
        channels: tools.ChannelParser | None = None,
    ):
        self.channels = channels
        self._parser: tools.ToolParser | tools.ChannelParser | None = channels
        if channels is None and form and choice.tools:
            self._parser = tools.ToolParser(form, choice.offered, parallel=choice.parallel)
        self.content = self.reasoning = self.thought = ""
        self.calls: list[tools.ToolCall] = []
        self.finish_reason: str | None = None

    def take(self, step: Step) -> tuple[str, list[tools.ToolCall]]:
        """(content, calls) that are new with this step."""
        content = step.text
        calls: list[tools.ToolCall] = []
        if self._parser:
            content, calls = self._parser.take(step.text, step.finish_reason)
        if self.channels:
            self.thought = self.channels.thought
            self.reasoning += self.thought
        self.content += content
        self.calls += calls
        self.finish_reason = step.finish_reason
        if self.calls and step.finish_reason == "stop":
            self.finish_reason = "tool_calls"
        return content, calls
