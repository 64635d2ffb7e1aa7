"""Chat messages to the text a model was trained to see, through the template its files carry.

Turns a list of messages into one string. Knows nothing of token ids; sandbox.py holds what a template may do, and
template_process.py where.
Models without a template fall back to the format of their family, written here as templates too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pyllama.errors import RequestError, TokenizerError
from pyllama.tokenizer.call_texts import AROUND, PLACES, form_of, without_places
from pyllama.tokenizer.known_templates import is_known
from pyllama.tokenizer.marks import NO_MARKS, Marker, Marks, texts_of
from pyllama.tokenizer.tool_turns import PROBE_TOOL, ToolTurns, tools_elsewhere

# Llama 2 (llama_recipes/inference/chat_utils): [INST] <<SYS>> system <</SYS>> user [/INST] answer, a BOS each turn.
LLAMA2 = """\
{%- if messages[0].role == 'system' -%}
{%- set system = '<<SYS>>\\n' ~ messages[0].content ~ '\\n<</SYS>>\\n\\n' -%}
{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = '' -%}
{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
{%- if message.role != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
{{- raise_exception('roles must alternate user, assistant, user, ... after an optional system message') -}}
{%- endif -%}
{%- if message.role == 'user' -%}
{{- bos_token ~ '[INST] ' ~ ((system if loop.first else '') ~ message.content).strip() ~ ' [/INST]' -}}
{%- else -%}
{{- ' ' ~ message.content.strip() ~ ' ' ~ eos_token -}}
{%- endif -%}
{%- endfor -%}
"""

# Llama 3 (llama3/tokenizer.py, ChatFormat): a header with the role, a blank line, the text, <|eot_id|>.
LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' ~ message.content.strip() ~ '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

MAX_TEMPLATE = 256 << 10  # characters; the longest published ones have 20,000
MAX_SECONDS = 10.0  # for one chat
# Characters a chat may have beyond those it was made of: a template's own text, and what indents or escapes others'.
MAX_MORE, MAX_A_CHARACTER = 1 << 16, 8
_REASONING = ("reasoning_content", "thinking", "reasoning")
_MAX_DEPTH = 64


class Rendered(str):
    """The text of a chat, with stand-ins (marks.py) where characters came out of the messages.

    marks  what stands in for what; none where no mark was needed or asked for
    """

    marks: Marks = NO_MARKS

    def before(self, end: str, spaces: str) -> Rendered:
        """The text before the last `end`, and the spaces that stood after it in the message if they still do.

        RequestError where the template did not write the message out as it is.
        """
        text, found, after = self.rpartition(end)
        if not found:
            raise RequestError.about("continue_final_message", "the chat template changes or drops the last message")
        kept = after[: len(spaces)]
        begun = Rendered(text.replace(end, "") + (kept if self.marks.plain(kept) == spaces else ""))
        begun.marks = self.marks
        return begun

    def replaced(self, texts: Mapping[str, str]) -> Rendered:
        """The text with others in place of some characters, as if the template had said them."""
        text = Rendered(self.translate({ord(character): text for character, text in texts.items()}))
        text.marks = self.marks
        return text

    @property
    def plain(self) -> str:
        """The text itself."""
        return str(self.marks.plain(str(self)))


class ChatTemplate:
    """One template, compiled at its first use.

    source     the template's text
    variables  what it sees besides the messages: bos_token, eos_token, ...
    where      the file it came from, for errors

    A template that many models carry and that was looked at (known_templates.py) is rendered in this process, any
    other in one of its own with limits the kernel holds (template_process.py).
    """

    def __init__(self, source: str, variables: Mapping[str, str], where: str) -> None:
        self.source = source
        self._variables = dict(variables)
        self._where = where
        self._renderer: Any = None
        self._lock = threading.Lock()
        self._marker: Marker | None = None
        self._tool_turns: ToolTurns | None = None

    @property
    def process_nbytes(self) -> int:
        """Memory that rendering takes in a process of its own."""
        if is_known(self.source):
            return 0
        from pyllama.tokenizer.template_process import NBYTES

        return NBYTES

    def render(self, messages: Sequence[Mapping[str, Any]], /, **variables: Any) -> str:
        """The text of a chat. RequestError: the template refuses the messages; TokenizerError: it is bad itself."""
        given = {"add_generation_prompt": True, **variables}
        return str(self._text(_plain_messages(messages), given, (), time.monotonic() + MAX_SECONDS))

    def render_adapted(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        spellings: Collection[str] = (),
    ) -> Rendered:
        """The text of a chat in which it can be told what came out of the messages and variables. Earlier tool calls
        are put the way this template wants them (tool_turns.py).

        variables  "tools", "add_generation_prompt" and whatever else the template looks at
        spellings  what must not come out of them: the control tokens as text
        """
        deadline = time.monotonic() + MAX_SECONDS
        form = form_of(self.source, spellings)
        if self._tool_turns is None:
            self._tool_turns = ToolTurns(responses="tool_responses" in self.source, form=form)
        chat = _plain_messages(messages)
        if form in AROUND:
            chat, variables = without_places(chat), without_places(_plain(variables))
        text = self._tool_turns.render(
            chat,
            lambda chat: self._text(chat, variables, spellings, deadline),
            lambda chat: self._text(chat, {"tools": [PROBE_TOOL], "add_generation_prompt": False}, (), deadline),
        )
        return text.replaced(dict(zip(PLACES, AROUND[form], strict=True))) if form in AROUND else text

    def _text(
        self,
        chat: list[dict[str, Any]],
        variables: Mapping[str, Any],
        spellings: Collection[str],
        deadline: float,
    ) -> Rendered:
        """The text of messages that are plain."""
        given = {"tools": None, "documents": None, **_plain(variables), "messages": chat}
        given = tools_elsewhere(self.source, given)
        marks = NO_MARKS
        if spellings:
            if self._marker is None:
                self._marker = Marker(spellings, self.source)
            given, marks = self._marker.mark(given)
        given = {**self._variables, **given}
        seconds = max(0.1, deadline - time.monotonic())
        try:
            kind, text = self._rendered(given, marks, seconds)
        except TokenizerError as error:
            raise TokenizerError(f"{self._where}: {error}") from None
        if kind == "text":
            most = MAX_MORE + MAX_A_CHARACTER * sum(map(len, texts_of(given)))
            if len(text) > most:
                raise TokenizerError(
                    f"{self._where}: chat template: a text of {len(text)} characters, expected at most {most} "
                    "from these messages"
                )
            rendered = Rendered(text)
            rendered.marks = marks
            return rendered
        if kind == "refused":
            raise RequestError.about("messages", f"the chat template refuses them: {text}")
        raise TokenizerError(f"{self._where}: chat template: {text}")

    def _rendered(self, given: dict[str, Any], marks: Marks, seconds: float) -> tuple[str, str]:
        if len(self.source) > MAX_TEMPLATE:
            raise TokenizerError(f"chat template of {len(self.source)} characters, expected at most {MAX_TEMPLATE}")
        with self._lock:
            if self._renderer is None:
                if is_known(self.source):
                    from pyllama.tokenizer.sandbox import Renderer  # jinja2 is 30 ms: only a chat pays for it

                    self._renderer = Renderer()
                else:
                    from pyllama.tokenizer.template_process import shared  # subprocess: only a chat pays for it

                    self._renderer = shared()
            return self._renderer.render(self.source, given, marks, seconds)


def _plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as dicts of plain values. As in transformers, None values go, and reasoning has two names."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise RequestError.about("messages", f"{type(messages).__name__}, expected a list of messages")
    if not messages:
        raise RequestError.about("messages", "none, expected at least one")
    chat = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise RequestError(f"messages[{index}]: {type(message).__name__}, expected an object with role and content")
        plain = {key: value for key, value in _plain(message).items() if value is not None}
        if not isinstance(plain.get("role"), str):
            raise RequestError(f"messages[{index}]: no role, expected system, user, assistant or tool")
        reasoning = next((plain[key] for key in _REASONING if plain.get(key) is not None), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        chat.append(plain)
    return chat


def _plain(value: Any, depth: int = 0) -> Any:
    """A copy made of JSON's own types: a template must not meet an object with methods."""
    if depth > _MAX_DEPTH:
        raise RequestError.about("messages", f"nested more than {_MAX_DEPTH} deep")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    raise RequestError.about("messages", f"a {type(value).__name__}, expected text, numbers, lists and objects")
