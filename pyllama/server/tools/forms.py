"""How a family writes calls.

Which form a model was trained on is told by its template, for the template shows the model its own earlier calls so.
What models write besides is in reading.py.
"""

import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass

from pyllama.generation.harmony import is_harmony
from pyllama.server.json_object import JsonObject


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a family writes calls.

    name        for humans
    opening     what stands before a call; None: a call is all there is
    closing     what stands after it; None: it goes on to the end
    arguments   the key of the arguments beside "name"
    is_list     whether forced calls are written as a list
    between     what stands between forced calls
    id_length   characters of a call's id; Mistral's templates insist on 9
    before_name what stands before the name of a call whose arguments follow at once, as in call:name{...}; "": a call
                is an object with both
    """

    name: str
    opening: str | None
    closing: str | None
    arguments: str = "arguments"
    is_list: bool = False
    between: str = ""
    id_length: int = 24
    before_name: str = ""

    def new_id(self) -> str:
        letters = string.ascii_letters + string.digits
        text = "".join(secrets.choice(letters) for _ in range(self.id_length))
        return text if self.id_length < 24 else "call_" + text


_HERMES, _MISTRAL, _GEMMA, _GRANITE = "<tool_call>", "[TOOL_CALLS]", "<|tool_call>", "<|tool_call|>"
_LFM2 = "<|tool_call_start|>"
HERMES = ToolFormat("hermes", _HERMES, "</tool_call>", between="\n")
MISTRAL = ToolFormat("mistral", _MISTRAL, None, is_list=True, between=", ", id_length=9)
GEMMA = ToolFormat("gemma", _GEMMA, "<tool_call|>", before_name="call:")
GRANITE = ToolFormat("granite", _GRANITE, None, is_list=True, between=", ")
PHI = ToolFormat("phi", _GRANITE, "<|/tool_call|>")
#: Calls as a list in Python, [name(key=value)], between markers.
LFM2 = ToolFormat("lfm2", _LFM2, "<|tool_call_end|>", is_list=True, between=", ")
LLAMA = ToolFormat("llama", None, None, arguments="parameters", between="; ")
HARMONY = ToolFormat("harmony", None, None)  # taken apart by channels.py


def format_of(template: str | None, has_token: Callable[[str], bool] = lambda text: False) -> ToolFormat | None:
    """The form that a template's model writes calls in; None if the template takes no tools.

    has_token  whether the model's tokenizer has a token for a marker: templates of LFM2 do not all show it
    """
    if not template or "tools" not in template:
        return None
    if is_harmony(template):
        return HARMONY
    if _MISTRAL in template:
        return MISTRAL
    if _HERMES in template:
        return HERMES
    if _GEMMA in template:
        return GEMMA
    if "<|/tool|>" in template:  # Phi-4-mini's shows no call, only where the tools are
        return PHI
    if _GRANITE in template:
        return GRANITE
    if _LFM2 in template or has_token(_LFM2):
        return LFM2
    return LLAMA


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model made. arguments is JSON text."""

    id: str
    name: str
    arguments: str

    def as_openai(self, index: int | None = None) -> JsonObject:
        call: JsonObject = {} if index is None else {"index": index}
        return call | {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}
