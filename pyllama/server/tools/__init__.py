"""Tool calls: OpenAI's fields to what a chat template takes, and what the model writes back to OpenAI's fields.

forms says how a family writes calls, reading understands them, scan tells early what cannot be one, parser takes an
answer apart as it comes, choice and forced are what a request asks for, conversation the messages before it.
"""

from pyllama.server.tools.channels import ChannelParser
from pyllama.server.tools.choice import ToolChoice, tool_choice
from pyllama.server.tools.conversation import messages_for_template
from pyllama.server.tools.forced import calls_grammar, channels_grammar
from pyllama.server.tools.forms import (
    GEMMA,
    GRANITE,
    HARMONY,
    HERMES,
    LFM2,
    LLAMA,
    MISTRAL,
    PHI,
    ToolCall,
    ToolFormat,
    format_of,
)
from pyllama.server.tools.parser import ToolParser

__all__ = [
    "GEMMA",
    "GRANITE",
    "HARMONY",
    "HERMES",
    "LFM2",
    "LLAMA",
    "MISTRAL",
    "PHI",
    "ChannelParser",
    "ToolCall",
    "ToolChoice",
    "ToolFormat",
    "ToolParser",
    "calls_grammar",
    "channels_grammar",
    "format_of",
    "messages_for_template",
    "tool_choice",
]
