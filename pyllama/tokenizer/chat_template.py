"""Chat messages to the text a model was trained to see, through the template its files carry.

Turns a list of messages into one string. Knows nothing of token ids; sandbox.py holds what a template may do.
Models without a template fall back to the format of their family, written here as templates too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyllama.errors import RequestError, TokenizerError
from pyllama.tokenizer.tool_turns import PROBE_TOOL, ToolTurns

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

_REASONING = ("reasoning_content", "thinking", "reasoning")
_MAX_DEPTH = 64


class ChatTemplate:
    """One template, compiled at its first use.

    source     the template's text
    variables  what it sees besides the messages: bos_token, eos_token, ...
    where      the file it came from, for errors
    """

    def __init__(self, source: str, variables: Mapping[str, str], where: str) -> None:
        self.source = source
        self._variables = dict(variables)
        self._where = where
        self._compiled: Any = None
        self._tool_turns = ToolTurns()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The text of a chat. RequestError: the template refuses the messages; TokenizerError: it is bad itself."""
        given = {**variables, "tools": tools, "add_generation_prompt": add_generation_prompt}
        return self._text(_plain_messages(messages), given)

    def render_adapted(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """The same, with earlier tool calls put the way this template wants them (tool_turns.py).

        variables  "tools", "add_generation_prompt" and whatever else the template looks at
        """
        return self._tool_turns.render(
            _plain_messages(messages),
            lambda chat: self._text(chat, variables),
            lambda chat: self._text(chat, {"tools": [PROBE_TOOL], "add_generation_prompt": False}),
        )

    def _text(self, chat: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
        """The text of messages that are plain."""
        import jinja2  # 30 ms: only a chat pays for it

        from pyllama.tokenizer import sandbox

        given = _plain({**self._variables, **variables})
        given.update(messages=chat)
        given.setdefault("documents", None)
        try:
            if self._compiled is None:
                self._compiled = _compile(self.source, self._where)
            environment, template = self._compiled
            return "".join(sandbox.pieces(environment, template, given))
        except sandbox.RaisedByTemplate as error:
            raise RequestError(f"messages: the chat template refuses them: {error}") from None
        except TokenizerError:
            raise
        except jinja2.TemplateSyntaxError as error:
            raise TokenizerError(
                f"{self._where}: chat template, line {error.lineno}: {error.message}"
            ) from None
        except (RecursionError, MemoryError):
            raise TokenizerError(f"{self._where}: chat template: nested too deeply") from None
        except Exception as error:  # a template is a program: it can fail in any way a program can
            raise TokenizerError(f"{self._where}: chat template: {type(error).__name__}: {error}") from None


def _compile(source: str, where: str) -> Any:
    from pyllama.tokenizer import sandbox

    if len(source) > sandbox.MAX_TEMPLATE:
        raise TokenizerError(
            f"{where}: chat template of {len(source)} characters, expected at most {sandbox.MAX_TEMPLATE}"
        )
    environment = sandbox.BoundedEnvironment()
    environment.start()
    return environment, environment.from_string(source)


def _plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as dicts of plain values. As in transformers, None values go, and reasoning has two names."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise RequestError(f"messages: {type(messages).__name__}, expected a list of messages")
    if not messages:
        raise RequestError("messages: none, expected at least one")
    chat = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise RequestError(
                f"messages[{index}]: {type(message).__name__}, expected an object with role and content"
            )
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
        raise RequestError(f"messages: nested more than {_MAX_DEPTH} deep")
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
    raise RequestError(f"messages: a {type(value).__name__}, expected text, numbers, lists and objects")
