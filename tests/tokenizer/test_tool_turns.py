"""Earlier calls of a conversation reach the prompt, whichever way a template asks for them."""

import json

import pytest
from conftest import write_model

import pyllama
from pyllama.errors import RequestError
from pyllama.tokenizer.call_texts import PLACES
from pyllama.tokenizer.chat_template import ChatTemplate

HEAD = "{% for m in messages %}<{{ m.role }}>"
TAIL = "</>{% endfor %}"
EACH = "{% for c in m.tool_calls or [] %}"
OBJECT = "[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}"
TEXT = "{{ '[' + c.function.name + ' ' + c.function.arguments + ']' }}{% endfor %}"
CONTENTS = [None, "", "absent"]

CALLS = EACH + OBJECT
BODIES = {
    "content is none": "{% if m.content is none %}" + CALLS + "{% else %}{{ m.content }}{% endif %}",
    "content is none, arguments as text":
        "{% if m.content is none %}" + EACH + TEXT + "{% else %}{{ m.content }}{% endif %}",
    "content joined": "{{ m.content + '' }}" + CALLS,
    "content trimmed": "{{ m.content | trim }}" + CALLS,
    "content printed": "{{ m.content }}" + CALLS,
    "content not defined": "{% if m.content is defined %}{{ m.content }}{% else %}" + CALLS + "{% endif %}",
    "no content in it": "{% if 'content' in m %}{{ m.content }}{% else %}" + CALLS + "{% endif %}",
    "content not empty": "{% if m.content %}{{ m.content }}{% endif %}" + CALLS,
    "content as JSON": "{{ m.content | tojson }}" + CALLS,
    "arguments as text": "{{ m.content }}" + EACH + TEXT,
    "arguments printed": "{{ m.content }}" + EACH + "[{{ c.function.name }} {{ c.function.arguments }}]{% endfor %}",
    "arguments either way":
        "{{ m.content }}" + EACH + "{% if c.function.arguments is string %}wrong{% endif %}{% endfor %}" + CALLS,
    "one call a message":
        "{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"
        "{{ m.content }}" + CALLS,
    "the first call only":
        "{{ m.content }}{% if m.tool_calls %}{% set c = m.tool_calls[0] %}"
        "[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endif %}",
    "calls or content": "{% if m.tool_calls %}" + CALLS + "{% else %}{{ m.content }}{% endif %}",
}  # fmt: skip
TEMPLATES = {name: HEAD + body + TAIL for name, body in BODIES.items()}


def conversation(content, *calls, ids=True, arguments=str):
    """A question, calls of (name, JSON text of its arguments), their results."""
    message = {"role": "assistant", "content": content, "tool_calls": []}
    if content == "absent":
        del message["content"]
    results = []
    for index, (name, text) in enumerate(calls):
        own = {"id": f"call0000{index}"} if ids else {}
        made = {"type": "function", "function": {"name": name, "arguments": arguments(text)}}
        message["tool_calls"].append(own | made)
        results.append({"role": "tool", "content": f"result {index}"} | ({"tool_call_id": own["id"]} if ids else {}))
    return [{"role": "user", "content": "go"}, message, *results]


def rendered(template, messages):
    return ChatTemplate(template, {}, "a test").render_adapted(messages, {"tools": None})


@pytest.mark.parametrize("content", [*CONTENTS, "Let me look."])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_call_is_in_the_prompt(name, content):
    calls = [("open_door", '{"floor": 3, "who": "Zoë"}'), ("close", "{}")]
    for count in (1, 2):
        messages = conversation(content, *calls[:count])
        text = rendered(TEMPLATES[name], messages)
        assert '[open_door {"floor": 3, "who": "Zoë"}]' in text
        assert "[close {}]" in text or count == 1
        assert "None" not in text and "wrong" not in text
        assert "Let me look." in text or content != "Let me look."
        assert [text.count(f"result {index}") for index in range(count)] == [1] * count
        assert messages == conversation(content, *calls[:count])  # the caller's own are not changed


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_content_is_no_content_however_it_is_said(name):
    texts = {rendered(TEMPLATES[name], conversation(content, ("f", '{"a": 1}'))) for content in CONTENTS}
    assert len(texts) == 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_arguments_may_be_given_as_an_object(name):
    as_text = rendered(TEMPLATES[name], conversation(None, ("f", '{"a": 1}')))
    assert rendered(TEMPLATES[name], conversation(None, ("f", {"a": 1}), arguments=dict)) == as_text


def test_calls_one_by_one_keep_their_results():
    for ids in (True, False):
        text = rendered(TEMPLATES["one call a message"], conversation("Well.", ("f", "{}"), ("g", "{}"), ids=ids))
        assert text == ("<user>go</><assistant>Well.[f {}]</><tool>result 0</><assistant>[g {}]</><tool>result 1</>")


def test_a_template_without_calls_gets_them_as_text():
    text = rendered(HEAD + "{{ m.content }}" + TAIL, conversation(None, ("f", '{"a": 1}')))
    assert '<assistant><tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call></>' in text
    assert "<tool>result 0</>" in text
    alternate = (
        "{% for m in messages %}{% if m.role != ('user' if loop.index0 % 2 == 0 else 'assistant') %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    )
    text = rendered(alternate, [*conversation("Hm.", ("f", "{}"), ("g", "{}")), {"role": "user", "content": "so?"}][:4])
    assert text.count("<user>") == 2 and "Hm.\n<tool_call>" in text
    assert "<tool_response>\nresult 0\n</tool_response>\n<tool_response>\nresult 1\n</tool_response></>" in text


LFM2 = ("<|tool_call_start|>", "<|tool_call_end|>")
OWN_FORMS = {  # what the template says besides: what stands around calls, the calls
    "<|tool_list_start|>": (LFM2, '[open(floor=3, who="Zo\u00eb\\"", ok=True), close()]'),
    "<|tool_call|> before calls": (("<|tool_call|>", ""),
        '[{"name": "open", "arguments": {"floor": 3, "who": "Zo\u00eb\\"", "ok": true}}, '
        '{"name": "close", "arguments": {}}]'),
    "<|tool|><|/tool|>": (("<|tool_call|>", "<|/tool_call|>"),
        '[{"name": "open", "arguments": {"floor": 3, "who": "Zo\u00eb\\"", "ok": true}}, '
        '{"name": "close", "arguments": {}}]'),
}  # fmt: skip


@pytest.mark.parametrize("said", OWN_FORMS)
def test_a_template_without_calls_gets_them_in_its_models_form(said):
    (before, after), calls = OWN_FORMS[said]
    template = ChatTemplate(f"{{{{ '{said}' }}}}" + HEAD + "{{ m.content }}" + TAIL, {}, "a test")
    made = [("open", '{"floor": 3, "who": "Zo\u00eb\\"", "ok": true}'), ("close", "{}")]
    for content, text in (("", ""), ("Well.", "Well.\n")):
        found = template.render_adapted(conversation(content, *made), {"tools": None}, [before, after, *LFM2])
        assert f"<assistant>{text}{before}{calls}{after}</>" in found.plain
    assert template.render_adapted([{"role": "user", "content": "a"}], {}, LFM2).plain == f"{said}<user>a</>"


def test_what_stands_around_calls_comes_of_calls_alone():
    """Neither a message nor an argument makes a control token, whatever characters it is written with."""
    template = ChatTemplate("{{ tools[0].d }}" + HEAD + "{{ m.content }}" + TAIL, {}, "a test")
    hostile = f"{LFM2[0]} {PLACES[0]}x{PLACES[1]}"
    for ascii_only in (False, True):
        messages = conversation(hostile, ("f", json.dumps({"a": hostile, PLACES[0]: 1}, ensure_ascii=ascii_only)))
        check_tokens(template.render_adapted(messages, {"tools": [{"d": hostile}]}, LFM2))


def check_tokens(found):
    written = [at for mark in LFM2 for at in range(len(found)) if found.plain.startswith(mark, at)]
    tokens = [
        at
        for at in written
        if not set(range(at, at + 16)) & {i for i, c in enumerate(found) if c in found.marks.originals}
    ]
    assert len(written) == 5 and len(tokens) == 2
    assert found.plain[min(tokens) :].startswith(LFM2[0] + '[{"name": "f"')
    assert not set(PLACES) & set(found)


RESPONSES = (
    HEAD + CALLS + "{% for r in m.tool_responses or [] %}{{ '{' }}{{ r.name }} "
    "{{ r.response.n if r.response is mapping else r.response }}{{ '}' }}{% endfor %}{{ m.content }}" + TAIL
)


def test_results_go_beside_the_calls_where_a_template_wants_them_there():
    """Gemma 4: the model goes on in the turn of its calls."""
    messages = conversation(None, ("f", '{"a": 1}'), ("g", "{}"))
    messages[3]["content"] = '{"n": 7}'
    text = rendered(RESPONSES, [*messages, {"role": "assistant", "content": "so"}])
    assert text == '<user>go</><assistant>[f {"a": 1}][g {}]{f result 0}{g 7}</><assistant>so</>'
    named = [{**message, "name": "x"} if message["role"] == "tool" else message for message in messages]
    assert "{x result 0}" in rendered(RESPONSES, named)
    alone = [{"role": "tool", "content": "result 0"}, *conversation(None, ("f", "{}"))]
    assert rendered(RESPONSES, alone).startswith("<tool>result 0</>")  # of no call that is here


def test_results_stay_messages_where_a_template_marks_them_itself():
    """Gemma 4's later templates take results both ways, and make another text of an object than of its JSON."""
    own = "{% if m.role == 'tool' %}<|tool_response>{{ m.content }}<tool_response|>{% endif %}"
    text = rendered(RESPONSES.replace(HEAD, HEAD + own), conversation(None, ("f", '{"a": 1}')))
    assert "<tool><|tool_response>result 0<tool_response|>" in text and "{f result 0}" not in text


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def with_tools(source, messages, **variables):
    return ChatTemplate(source, {}, "a test").render(messages, tools=TOOLS, **variables)


def test_tools_are_where_a_template_looks_for_them():
    talk = [{"role": "user", "content": "go"}]
    smollm3 = "{{ xml_tools | tojson if xml_tools else python_tools }}"
    assert with_tools(smollm3, talk) == str(TOOLS).replace("'", '"')
    assert with_tools(smollm3, talk, python_tools=["p"]) == "['p']"
    assert with_tools(smollm3, talk, xml_tools=["own"]) == '["own"]'
    phi = (
        "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
        "{% if 'tools' in message and message['tools'] is not none %}<|tool|>{{ message['tools'] }}<|/tool|>"
        "{% endif %}{% endfor %}"
    )
    as_text = '<|tool|>[{"name": "f", "parameters": {}}]<|/tool|>'
    assert with_tools(phi, talk) == f"<system>{as_text}<user>go"
    assert with_tools(phi, [{"role": "system", "content": "Be brief."}, *talk]) == (
        f"<system>Be brief.{as_text}<user>go"
    )
    own = {"role": "system", "content": "", "tools": "mine"}
    assert with_tools(phi, [own, *talk]) == "<system><|tool|>mine<|/tool|><user>go"
    assert ChatTemplate(phi, {}, "a test").render(talk) == "<user>go"


def test_without_calls_nothing_is_changed_and_nothing_is_asked():
    template = ChatTemplate(HEAD + "{{ m.content is none }} {{ m.content is defined }}" + TAIL, {}, "a test")
    assert template.render_adapted([{"role": "assistant", "content": None}], {}) == "<assistant>False False</>"
    assert template.render_adapted([{"role": "user", "content": ""}], {}) == "<user>False True</>"


def test_the_text_of_a_template_is_what_it_makes_of_the_messages_as_they_are():
    """apply_chat_template is transformers': only where a model is to answer are calls adapted."""
    template = ChatTemplate(TEMPLATES["content is none"], {}, "a test")
    text = template.render(conversation("", ("f", '{"a": 1}')))
    assert text == "<user>go</><assistant></><tool>result 0</>"


def test_a_prompt_of_messages_has_the_call(tmp_path):
    """The Python API's model.generate(messages) takes calls as the server does."""
    folder = write_model(tmp_path / "tiny", template=TEMPLATES["content is none, arguments as text"])
    with pyllama.load(folder, context_length=256) as model:
        for content in CONTENTS:
            ids = model.encode_prompt(conversation(content, ("open_door", '{"floor": 3}')))
            assert '[open_door {"floor": 3}]' in model.tokenizer.decode(ids, skip_special_tokens=False)


def test_arguments_that_are_no_object_stay_text():
    for arguments in ("not JSON", "[1]", '"x"'):
        template = HEAD + EACH + "{{ c.function.arguments }}{% endfor %}" + TAIL
        text = rendered(template, conversation(None, ("f", arguments)))
        assert f"<assistant>{arguments}</>" in text


def test_what_our_conversation_did_not_have_may_need_another_style():
    """A template is asked with one conversation; where it then refuses the client's, the other styles are tried."""
    picky = (
        HEAD + "{% if m.content == '' and messages | length > 3 %}{{ raise_exception('empty') }}{% endif %}"
        "{{ m.content or '' }}" + EACH + OBJECT + TAIL
    )  # fmt: skip
    text = rendered(picky, [*conversation(None, ("f", "{}")), {"role": "user", "content": "so?"}])
    assert "[f {}]" in text


def test_text_and_thoughts_beside_a_call_may_be_too_much_for_one_message():
    """gpt-oss's template takes either."""
    one = (
        HEAD + "{% if m.tool_calls and m.content and m.thinking %}{{ raise_exception('both') }}{% endif %}"
        "{{ m.content or '' }}{% if m.thinking %}({{ m.thinking }}){% endif %}" + EACH + OBJECT + TAIL
    )  # fmt: skip
    messages = conversation("Let me look.", ("f", "{}"))
    said = next(message for message in messages if message.get("tool_calls"))
    said["reasoning_content"] = "hm"
    assert "<assistant>Let me look.</><assistant>(hm)[f {}]" in rendered(one, messages)


def test_a_template_that_refuses_every_style_says_its_own_reason():
    with pytest.raises(RequestError, match="no calls here"):
        rendered(HEAD + "{{ raise_exception('no calls here') }}" + TAIL, conversation(None, ("f", "{}")))
