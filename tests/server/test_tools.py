"""Calls as models write them, and texts that are none: the same however the answer is cut, and shown in time."""

import json
import random

import pytest

pytest.importorskip("starlette")

from pyllama.server import tools
from pyllama.server.errors import ApiError


def function(name, required=(), **properties):
    return {"name": name, "parameters": {"type": "object", "properties": properties, "required": list(required)}}


WEATHER = function("get_weather", ["city"], city={"type": "string"}, days={"type": "integer"})
NOW = function("now")
WRITE = function("write", ["text"], text={"type": "string"}, lines={"type": "array"})
OFFERED = {f["name"]: f for f in (WEATHER, NOW, WRITE)}
PARIS = ("get_weather", {"city": "Paris"})
OSLO = ("get_weather", {"city": "Oslo", "days": 2})
ONE = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
TWO = '{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}'
SPREAD = '{\n  "name": "get_weather",\n  "arguments": {\n    "city": "Paris"\n  }\n}'


def taken_apart(text, size, form=tools.HERMES, cut=False, **options):
    """(content, [(name, arguments)]) of a text that comes in pieces."""
    parser, content, calls = tools.ToolParser(form, OFFERED, **options), "", []
    for at in range(0, len(text), size):
        part, new = parser.push(text[at : at + size])
        content, calls = content + part, calls + new
    part, new = parser.finish(cut=cut)
    calls += new
    assert len({call.id for call in calls}) == len(calls) == parser.calls
    return content + part, [(call.name, json.loads(call.arguments)) for call in calls]


CALLS = {  # in any family, when they are the whole answer
    "a block": (f"```json\n{ONE}\n```", [PARIS]),
    "a block over lines": (f"```json\n{SPREAD}\n```\n", [PARIS]),
    "a block without a language": (f"```\n{ONE}\n```", [PARIS]),
    "a block of another language": (f"```tool_call\n{ONE}\n```", [PARIS]),
    "a block of a language in capitals": (f"```JSON\n{ONE}\n```", [PARIS]),
    "a block that is not closed": (f"```json\n{ONE}", [PARIS]),
    "a block on one line": (f"```json {ONE}```", [PARIS]),
    "bare": (ONE, [PARIS]),
    "white space around": (f"\n\n  {SPREAD}\n ", [PARIS]),
    "two in a block": (f"```json\n{ONE}\n{TWO}\n```", [PARIS, OSLO]),
    "two blocks": (f"```json\n{ONE}\n```\n\n```json\n{TWO}\n```", [PARIS, OSLO]),
    "a list": (f"[{ONE}, {TWO}]", [PARIS, OSLO]),
    "a list in a block": (f"```json\n[\n{ONE},\n{TWO}\n]\n```", [PARIS, OSLO]),
    "two with a semicolon": (f"{ONE}; {TWO}", [PARIS, OSLO]),
    "two lines": (f"{ONE}\n{TWO}", [PARIS, OSLO]),
    "doubled braces": ("{" + ONE + "}", [PARIS]),
    "doubled braces, closed once": ("{" + ONE, [PARIS]),
    "all braces doubled": (ONE.replace("{", "{{").replace("}", "}}"), [PARIS]),
    "doubled braces in a block": ("```json\n{" + ONE + "}\n```", [PARIS]),
    "two with doubled braces": ("{" + ONE + "}\n{" + TWO + "}", [PARIS, OSLO]),
    "a list with doubled braces": ("[{" + ONE + "}, {" + TWO + "}]", [PARIS, OSLO]),
    "doubled braces, nested": (
        '{{"name": "write", "arguments": {{"text": "{{a}}", "lines": [{{"n": 1}}, {{"n": 2}}]}}}}',
        [("write", {"text": "{{a}}", "lines": [{"n": 1}, {"n": 2}]})],
    ),
    "tools": (f"<tools>\n{ONE}\n</tools>", [PARIS]),
    "tools, a list": (f"<tools>\n[{ONE},\n{TWO}]\n</tools>", [PARIS, OSLO]),
    "tool_calls": (f"<tool_calls>{ONE}</tool_calls>", [PARIS]),
    "function_call in a block": (f"```xml\n<function_call>{ONE}</function_call>\n```", [PARIS]),
    "parameters": ('{"name": "get_weather", "parameters": {"city": "Paris"}}', [PARIS]),
    "arguments as text": (
        json.dumps({"name": "get_weather", "arguments": json.dumps(PARIS[1])}),
        [PARIS],
    ),
    "arguments first": ('{"arguments": {"city": "Paris"}, "name": "get_weather"}', [PARIS]),
    "as OpenAI writes it": (
        '[{"id": "x", "type": "function", "function": {"name": "now", "arguments": "{}"}}]',
        [("now", {})],
    ),
    "no arguments": ('{"name": "now", "arguments": {}}', [("now", {})]),
    "null for arguments": ('{"name": "now", "arguments": null}', [("now", {})]),
    "only a name, where nothing is required": ('{"name": "now"}', [("now", {})]),
    "python's list": ('[get_weather(city="Paris"), now()]', [PARIS, ("now", {})]),
    "python's list in a block": ("```\n[get_weather(city='Oslo', days=2)]\n```", [OSLO]),
    "python tag and JSON": (f"<|python_tag|>{ONE}", [PARIS]),
    "python tag and call": ('<|python_tag|>get_weather.call(city="Paris")', [PARIS]),
    "function tag and JSON": ('<function=get_weather>{"city": "Paris"}</function>', [PARIS]),
    "function tag and parameters": (
        "<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>",
        [OSLO],
    ),
    "the text of a parameter is kept": (
        "<function=write>\n<parameter=text>\n  a </function> {\n\n\n</parameter>\n"
        "<parameter=lines>\n[1, 2]\n</parameter>\n</function>",
        [("write", {"text": "  a </function> {\n\n", "lines": [1, 2]})],
    ),
    "text that looks like a number stays text": (
        "<function=write>\n<parameter=text>\n12\n</parameter>\n</function>",
        [("write", {"text": "12"})],
    ),
    "markers in strings": (
        json.dumps({"name": "write", "arguments": {"text": "```json\n</tool_call> \"{{\" <tools>\\"}}),
        [("write", {"text": "```json\n</tool_call> \"{{\" <tools>\\"})],
    ),
    "half a surrogate pair": (
        r'{"name": "write", "arguments": {"text": "\ud800 é"}}',
        [("write", {"text": "\ud800 é"})],
    ),
}  # fmt: skip

HERMES_CALLS = {
    "as trained": (f"<tool_call>\n{ONE}\n</tool_call>", "", [PARIS]),
    "two": (f"<tool_call>\n{ONE}\n</tool_call>\n<tool_call>\n{TWO}\n</tool_call>", "", [PARIS, OSLO]),
    "after prose": (f"Let me look.\n<tool_call>\n{ONE}\n</tool_call>", "Let me look.\n", [PARIS]),
    "before prose": (f"<tool_call>{ONE}</tool_call>\nI have asked for it.", "I have asked for it.", [PARIS]),
    "doubled braces": ("<tool_call>\n{" + ONE + "}\n</tool_call>", "", [PARIS]),
    "a block inside": (f"<tool_call>\n```json\n{ONE}\n```\n</tool_call>", "", [PARIS]),
    "not closed": (f"<tool_call>\n{ONE}", "", [PARIS]),
    "Qwen3-Coder's": (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        "",
        [PARIS],
    ),
    "its closing in a string": (
        '<tool_call>\n{"name": "write", "arguments": {"text": "a </tool_call> b"}}\n</tool_call> c',
        "c",
        [("write", {"text": "a </tool_call> b"})],
    ),
    "one that is not offered, and one that is": (
        f'<tool_call>{{"name": "other", "arguments": {{}}}}</tool_call>\n<tool_call>{ONE}</tool_call>',
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>\n',
        [PARIS],
    ),
    "after reasoning, without markers": (f"<think>\nHm.\n</think>\n\n{ONE}", "<think>\nHm.\n</think>", [PARIS]),
    "after reasoning that the prompt began": (f"Hm {{.\n</think>\n```json\n{ONE}\n```", "Hm {.\n</think>", [PARIS]),
}

#: A text that is no call: how much of it must be there until some of it is shown.
TEXTS = {
    "prose": ("The weather is fine.", "T"),
    "white space and prose": ("\n Fine.", "\n F"),
    "a block in prose": (f"For example:\n```json\n{ONE}\n```\nCall it so.", "F"),
    "prose after a block": (f"```json\n{ONE}\n```\nCall it so.", f"```json\n{ONE}\n```\nC"),
    "prose after a bare call": (f"{ONE} is how.", f"{ONE} i"),
    "code": ("```python\nprint(1)\n```", "```py"),
    "a page": ("<html>\n<b>x</b></html>", "<h"),
    "JSON that is no call": ('{"city": "Paris", "degrees": 7}', '{"c'),
    "JSON with a name": ('{"name": "Ada", "age": 36}', '{"name": "A'),
    "a tool that is not offered": ('{"name": "get_time", "arguments": {}}', '{"name": "get_t'),
    "another that is not, in a block": ('```json\n{"name": "other", "arguments": {}}\n```', '```json\n{"name": "o'),
    "a key calls do not have": ('{"name": "now", "arguments": {}, "why": 1}', '{"name": "now", "arguments": {}, "w'),
    "arguments that are no object": ('{"name": "now", "arguments": [1, 2]}', '{"name": "now", "arguments": ['),
    "a number for arguments": ('{"name": "now", "arguments": 17}', '{"name": "now", "arguments": 1'),
    "text for arguments that is no JSON": ('{"name": "now", "arguments": "x"}', None),
    "only a name, where more is required": ('{"name": "get_weather"}', None),
    "a schema of a tool": ('{"type": "function", "function": {"name": "now", "description": "x"}}',
                           '{"type": "function", "function": {"name": "now", "d'),
    "one offered, one not": (f'{ONE}\n{{"name": "other", "arguments": {{}}}}', f'{ONE}\n{{"name": "o'),
    "a list of numbers": ("[1, 2, 3]", "[1"),
    "an empty list": ("[]", "[]"),
    "an empty object": ("{}", "{}"),
    "a cut call": ('{"name": "get_weather", "arguments": {"city": "Par', None),
    "a template": ("{{ name }}", "{{ n"),
    "a link": ("[now](x)", None),
    "another link": ("[here](x)", "[h"),
    "a python call with values alone": ('[get_weather("Paris")]', None),
    "a python call of another": ("[print(x=1)]", "[p"),
    "not a number": ('{"name": "write", "arguments": {"text": NaN}}', '{"name": "write", "arguments": {"text": N'),
    "a function tag of another": ("<function=other>{}</function>", "<function=o"),
    "prose in a function tag": ("<function=now> is a tag</function>", "<function=now> i"),
    "markers that are no call": ("a <b> </tool_call> <tool_", "a"),
    "prose in markers": ("<tool_call>no call</tool_call> x", "<tool_call>n"),
    "a lone opening": ("<tool_call>", None),
    "nothing but white space": (" \n", None),
}  # fmt: skip

FORMS = [tools.HERMES, tools.MISTRAL, tools.LLAMA, tools.LFM2]
SIZES = (1, 2, 3, 7, 1000)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("name", CALLS)
def test_an_answer_that_is_nothing_but_calls(name, form):
    text, calls = CALLS[name]
    for size in SIZES:
        assert taken_apart(text, size, form) == ("", calls)


@pytest.mark.parametrize("name", HERMES_CALLS)
def test_calls_in_the_familys_own_markers(name):
    text, content, calls = HERMES_CALLS[name]
    for size in SIZES:
        assert taken_apart(text, size) == (content, calls)


@pytest.mark.parametrize(
    "text, content, calls",
    [
        ('[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "abcdefghi"}]', "", [PARIS]),
        ('Well. [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', "Well. ", [PARIS]),
        (
            '[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{}[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
            "",
            [("now", {}), PARIS],
        ),
        ('[TOOL_CALLS]now{}', "", [("now", {})]),
        ('[TOOL_CALLS]other[ARGS]{"a": 1}', '[TOOL_CALLS]other[ARGS]{"a": 1}', []),
        ("[TOOL_CALLS] is a marker", "[TOOL_CALLS] is a marker", []),
    ],
)  # fmt: skip
def test_mistrals_calls(text, content, calls):
    for size in SIZES:
        assert taken_apart(text, size, tools.MISTRAL) == (content, calls)


@pytest.mark.parametrize(
    "text, content, calls",
    [
        ('<|tool_call_start|>[get_weather(city="Paris")]<|tool_call_end|>', "", [PARIS]),
        (
            "<|tool_call_start|>[get_weather(city='Paris'), now(), get_weather(city='Oslo', days=2)]<|tool_call_end|>",
            "",
            [PARIS, ("now", {}), OSLO],
        ),
        (
            'I look.<|tool_call_start|>[get_weather(city="Paris")]<|tool_call_end|>It will come.',
            "I look.It will come.",
            [PARIS],
        ),
        (f"<|tool_call_start|>[{ONE}]<|tool_call_end|>", "", [PARIS]),
        ('<|tool_call_start|>[get_weather(city="Paris")]', "", [PARIS]),
        ('<|tool_call_start|>[other(a=1)]<|tool_call_end|>', "<|tool_call_start|>[other(a=1)]<|tool_call_end|>", []),
    ],
)  # fmt: skip
def test_lfm2s_calls(text, content, calls):
    for size in SIZES:
        assert taken_apart(text, size, tools.LFM2) == (content, calls)


Q = '<|"|>'
GEMMA_CALLS = {
    "one": (f"<|tool_call>call:get_weather{{city:{Q}Paris{Q}}}<tool_call|>", "", [PARIS]),
    "two": (
        f"<|tool_call>call:get_weather{{city:{Q}Paris{Q}}}<tool_call|>"
        f"<|tool_call>call:get_weather{{city:{Q}Oslo{Q},days:2}}<tool_call|>",
        "",
        [PARIS, OSLO],
    ),
    "text before": ("Let me see.\n<|tool_call>call:now{}<tool_call|>", "Let me see.\n", [("now", {})]),
    "marks within a string": (
        f'<|tool_call>call:write{{text:{Q}a}}<tool_call|>{{,:"b{Q}}}<tool_call|>',
        "",
        [("write", {"text": 'a}<tool_call|>{,:"b'})],
    ),
    "nested": (
        f"<|tool_call>call:write{{lines:[{Q}a{Q},1,-2.5,true,null,{{x:{Q}{Q},y:[]}}],text:{Q}{Q}}}<tool_call|>",
        "",
        [("write", {"lines": ["a", 1, -2.5, True, None, {"x": "", "y": []}], "text": ""})],
    ),
    "keys in quotes": (f"<|tool_call>call:write{{{Q}text{Q}:{Q}x{Q}}}<tool_call|>", "", [("write", {"text": "x"})]),
    "JSON, as a forced call is": ('<|tool_call>call:get_weather{"city": "Paris"}<tool_call|>', "", [PARIS]),
    "not closed": (f"<|tool_call>call:get_weather{{city:{Q}Paris{Q}}}", "", [PARIS]),
    "after thinking": (
        "<|channel>thought\nhm<channel|><|tool_call>call:now{}<tool_call|>",
        "<|channel>thought\nhm<channel|>",
        [("now", {})],
    ),
}
GEMMA_TEXTS = [
    "<|tool_call>call:nobody{}<tool_call|>", "<|tool_call>call:now{a}<tool_call|>", "<|tool_call>now{}<tool_call|>",
    "<|tool_call>call:now{a:1}x<tool_call|>", "<|tool_call>call:now{a:<tool_call|>",
    "<|tool_call>call:now{a:[1 2]}<tool_call|>", "<|tool_call>call:now{a:NaN}<tool_call|>", "<|tool_call>",
    "<|tool_call>call:now" + "{a:" * 200 + "1" + "}" * 200 + "<tool_call|>",
]  # fmt: skip


@pytest.mark.parametrize("name", GEMMA_CALLS)
def test_gemmas_calls(name):
    text, content, calls = GEMMA_CALLS[name]
    for size in (1, 2, 3, 7, 1000):
        assert taken_apart(text, size, tools.GEMMA) == (content, calls), size


@pytest.mark.parametrize("text", GEMMA_TEXTS)
def test_what_is_no_call_of_gemmas_is_text(text):
    for size in (1, 5, 1000):
        assert taken_apart(text, size, tools.GEMMA) == (text, [])


@pytest.mark.parametrize(
    ("form", "text", "calls"),
    [
        (tools.GRANITE, f"<|tool_call|>[{ONE}]", [PARIS]),
        (tools.GRANITE, f"<|tool_call|>[{ONE}, {TWO}]", [PARIS, OSLO]),
        (tools.GRANITE, f"<|tool_call|>{ONE}", [PARIS]),
        (tools.GRANITE, f"<tool_call>[{ONE}]", [PARIS]),  # granite writes it so now and then, as a whole answer
        (tools.PHI, f"<|tool_call|>[{ONE}]<|/tool_call|>", [PARIS]),
        (tools.PHI, f"<|tool_call|>{ONE}<|/tool_call|><|tool_call|>{TWO}<|/tool_call|>", [PARIS, OSLO]),
        (tools.PHI, f"<|tool_call|>[{ONE}, {TWO}]<|/tool_call|>", [PARIS, OSLO]),
    ],
)
def test_calls_of_granite_and_phi(form, text, calls):
    for size in (1, 3, 1000):
        assert taken_apart(text, size, form) == ("", calls)


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{ tools }}<|tool_call>call:", tools.GEMMA),
        ("{{ tools }}<|tool_call|>", tools.GRANITE),
        ("{{ message['tools'] }}<|tool|><|/tool|>", tools.PHI),
        ("{{ tools }}<tool_call><|tool_call|>", tools.HERMES),
        ("{{ xml_tools }}<tool_call>", tools.HERMES),
        ("<|tool_call>", None),
    ],
)
def test_a_template_tells_the_form(template, form):
    assert tools.format_of(template) is form


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("name", TEXTS)
def test_all_else_is_text_and_complete(name, form):
    for size in SIZES:
        assert taken_apart(TEXTS[name][0], size, form) == (TEXTS[name][0], [])


@pytest.mark.parametrize("name", [name for name, (_, until) in TEXTS.items() if until])
def test_text_is_shown_as_soon_as_it_can_be_no_call(name):
    text, until = TEXTS[name]
    parser = tools.ToolParser(tools.HERMES, OFFERED)
    shown = ""
    for count, char in enumerate(text, 1):
        shown += parser.push(char)[0]
        assert bool(shown) == (count >= len(until)), (shown, text[:count])
    # From there on it flows: at most what could begin a marker is held back.
    assert len(shown) >= len(text) - len("<tool_call>")


def test_random_cuts_and_damage_lose_nothing():
    """Whatever becomes of a damaged call: it is a call or text, whole, and the same in any pieces."""
    draw = random.Random(1)
    originals = [text for text, *_ in [*CALLS.values(), *HERMES_CALLS.values(), *TEXTS.values()]]
    for _ in range(3000):
        text = list(draw.choice(originals))
        for _ in range(draw.randrange(3)):
            at = draw.randrange(len(text) + 1)
            damage = ["", '"', "{", "}", "]", ",", " x", "\n", "```", "</tool_call>", "</think>", "<function=now>", ONE]
            text[at : at + draw.randrange(3)] = draw.choice(damage)
        text = "".join(text)
        form = draw.choice(FORMS)
        whole = taken_apart(text, max(1, len(text)), form)
        assert taken_apart(text, draw.randrange(1, 9), form) == whole
        if not whole[1]:
            assert whole[0] == text


def test_an_answer_cut_in_a_call_is_text_and_a_complete_one_a_call():
    for text in (f"```json\n{ONE}", f"<tools>{ONE}", f"[{ONE}", ONE[:-1], f"<tool_call>{ONE[:-1]}"):
        assert taken_apart(text, 3, cut=True) == (text, [])
    for text in (ONE, f"```json\n{ONE}\n```", f"<tool_call>{ONE}"):
        assert taken_apart(text, 3, cut=True) == ("", [PARIS])


def test_without_parallel_calls_an_answer_has_one():
    for text in (f"[{ONE}, {TWO}]", f"<tool_call>{ONE}</tool_call><tool_call>{TWO}</tool_call>", f"{ONE}\n{TWO}"):
        assert taken_apart(text, 5, parallel=False) == ("", [PARIS])


def test_ids_have_the_length_that_templates_insist_on():
    for form, length in ((tools.MISTRAL, 9), (tools.HERMES, 29), (tools.LLAMA, 29)):
        parser = tools.ToolParser(form, OFFERED)
        (call,) = parser.push(f"{form.opening or ''}{ONE}")[1] + parser.finish()[1]
        assert len(call.id) == length


def test_long_arguments_cost_no_more_than_their_length():
    """A scan goes on where it was: 200,000 characters in pieces of 4 take seconds if it does not."""
    text = json.dumps({"name": "write", "arguments": {"text": "</tool_call> \\ {" * 12_000}})
    for whole in (text, f"<tool_call>{text}</tool_call>"):
        assert taken_apart(whole, 4)[1][0][0] == "write"


# --- what a request asks for ---


def asked(body, form=tools.HERMES):
    return tools.tool_choice({"tools": [{"type": "function", "function": f} for f in (WEATHER, NOW)]} | body, form)


def test_who_may_be_called():
    names = ["get_weather", "now"]
    choice = asked({})
    assert (choice.forced, sorted(choice.offered), choice.parallel) == ([], names, True)
    assert [f["name"] for f in asked({"tool_choice": "required"}).forced] == names
    named = asked({"tool_choice": {"type": "function", "function": {"name": "now"}}})
    assert [f["name"] for f in named.forced] == ["now"] and not named.parallel
    assert not asked({"parallel_tool_calls": False, "tool_choice": "required"}).parallel
    assert asked({"tool_choice": "none"}).tools is None
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}]}
    some = asked({"tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}})
    assert list(some.offered) == ["now"] and [f["name"] for f in some.forced] == ["now"] and len(some.tools) == 2


OTHERS = [
    {"type": "web_search"},
    {"type": "code_interpreter", "container": {"type": "auto"}},
    {"type": "custom", "custom": {"name": "sql", "format": {"type": "text"}}},
    {"type": "mcp", "server_label": "x", "server_url": "y"},
    {"type": "file_search", "vector_store_ids": []},
]


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other["type"])
def test_tools_that_are_no_functions_are_left_out(other):
    function = {"type": "function", "function": NOW}
    for given in ([other, function], [function, other]):
        choice = tools.tool_choice({"tools": given, "tool_choice": "required"}, tools.HERMES)
        assert choice.tools == [function] and list(choice.offered) == ["now"]
    with pytest.raises(ApiError, match=f"only of type {other['type']}"):
        tools.tool_choice({"tools": [other]}, tools.HERMES)
    with pytest.raises(ApiError, match=other["type"]):
        asked({"tool_choice": {"type": other["type"]}})


@pytest.mark.parametrize(
    "body, message",
    [
        ({"tools": [{"type": "function"}]}, r"tools\[0\].function: missing"),
        ({"tools": [], "tool_choice": "required"}, "without tools"),
        ({"tool_choice": {"type": "function"}}, r"tool_choice.function.name: missing"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "no tool is called 'x'"),
        ({"tool_choice": {"type": "allowed_tools"}}, "none of the tools"),
    ],
)
def test_what_cannot_be_called_is_refused(body, message):
    with pytest.raises(ApiError, match=message):
        asked(body)
