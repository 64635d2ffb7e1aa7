"""Calls as the text a model writes them in, for templates that show none of an assistant's calls.

A template that drops calls leaves it to whoever renders to put them into the content, as its model wrote them: its own
control tokens around JSON, or around a list in Python. Which these are is told by what the template says of tools, or
by the control tokens there are. Anything else gets the form that most models have seen. Knows no templates' language.

What stands around calls is a control token, and those are never made of what messages say (marks.py). So characters
that stand nowhere else take their places until the text is rendered.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from pyllama.tokenizer.marks import with_texts

HERMES, GRANITE, PHI, LFM2 = "hermes", "granite", "phi", "lfm2"
#: form: what stands before and after its calls
AROUND = {
    GRANITE: ("<|tool_call|>", ""),
    PHI: ("<|tool_call|>", "<|/tool_call|>"),
    LFM2: ("<|tool_call_start|>", "<|tool_call_end|>"),
}
#: Characters for private use that stand in for what is before and after; messages lose them, should they have some.
PLACES = ("\U0010fff0", "\U0010fff1")
_NOTHING = dict.fromkeys(map(ord, PLACES))


def form_of(source: str, spellings: Collection[str]) -> str:
    """The form in which the model of a template writes calls, should the template know none.

    spellings  its control tokens as text
    """
    if "<|/tool|>" in source:
        return PHI
    if AROUND[GRANITE][0] in source:
        return GRANITE
    if AROUND[LFM2][0] in source or AROUND[LFM2][0] in spellings:
        return LFM2
    return HERMES


def text_of_calls(form: str, calls: list[Any]) -> str:
    """The calls of one message, PLACES around them where a control token stands."""
    functions = [call.get("function", call) if isinstance(call, dict) else {} for call in calls]
    shown = [{"name": one.get("name"), "arguments": one.get("arguments", {})} for one in functions]
    if form == HERMES:
        return "\n".join(f"<tool_call>\n{json.dumps(one, ensure_ascii=False)}\n</tool_call>" for one in shown)
    if form == LFM2 and all(_is_python(one) for one in shown):
        listed = f"[{', '.join(map(_python, shown))}]"
    else:
        listed = json.dumps(shown, ensure_ascii=False)
    return PLACES[0] + without_places(listed) + PLACES[1]


def without_places(value: Any) -> Any:
    """A copy of a value of JSON's types, whose texts have none of PLACES."""
    return with_texts(value, lambda text: text if text.isascii() else text.translate(_NOTHING))


def _is_python(call: dict[str, Any]) -> bool:
    given = call["arguments"]
    return isinstance(given, dict) and all(isinstance(key, str) and key.isidentifier() for key in given)


def _python(call: dict[str, Any]) -> str:
    given = (f"{key}={_literal(value)}" for key, value in call["arguments"].items())
    return f"{call['name']}({', '.join(given)})"


def _literal(value: Any) -> str:
    """A value as Python writes it; texts in the quotes of JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
