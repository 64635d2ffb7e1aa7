"""Chat templates: the text transformers renders, from every place a template comes from, and never without bounds."""

import json
import shutil
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyllama.errors import RequestError, TokenizerError
from pyllama.tokenizer import load_tokenizer, template_process
from pyllama.tokenizer.chat_template import LLAMA2, LLAMA3, ChatTemplate
from pyllama.tokenizer.sandbox import BAD, Renderer

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"
PROCESS = template_process.shared()  # one for all these tests
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Hi <b>&</b>"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "é漢\n\nBye"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<é>", "parameters": {"type": "object"}}}]

CHATML = (
    "{% for message in messages %}\n"
    "    {% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help<|im_end|>\n' }}{% endif %}\n"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{%- else %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{% if loop.last and system is defined %}{{ '[INST] ' + system + '\n\n' + m['content'] "
    "+ '[/INST]' }}{% else %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% endif %}{% else %}"
    "{{ ' ' + m['content']|trim + eos_token }}{% endif %}{% endfor %}"
)
QWEN = (
    "{%- if tools %}{{- '<|im_start|>system\n' }}{% for tool in tools %}{{- '\n' }}{{- tool | tojson }}{% endfor %}"
    "{{- '<|im_end|>\n' }}{% endif %}{% set ns = namespace(last=messages|length - 1) %}{% for m in messages[::-1] %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% break %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if not m.content %}{% continue %}{% endif %}"
    "{% generation %}{{- '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{% endgeneration %}{% endfor %}"
    "{{- ns.last }}{% if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
HEADERS = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MACRO = (
    "{% macro show(m, depth=0) %}{{ m.role|upper }}:{{ m.content|replace('\n', ' ')|indent(2) }};{% endmacro %}"
    "{% for m in messages if m.role != 'system' %}{{ show(m) }}{% endfor %}"
    "{{ messages|map(attribute='role')|join(',') }}"
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ [1, 2.5, none, true]|tojson(indent=2) }}"
    "{{ {'a': (1, 2)}|string }}{{ '%05d|%s' % (42, 'x') }}{{ '{:>4}'.format(7) }}{{ dict(a=1).items()|list }}"
)
TEMPLATES = {"chatml": CHATML, "mistral": MISTRAL, "qwen": QWEN, "headers": HEADERS, "macro": MACRO}


def load(folder, form="huggingface", metadata=None, vocab_size=None, model_type="llama"):
    config = SimpleNamespace(vocab_size=vocab_size, model_type=model_type, bos_token_id=None, eos_token_ids=())
    return load_tokenizer(SimpleNamespace(path=folder, format=form, metadata=metadata or {}, config=config))


def render(source, messages=None, **options):
    return ChatTemplate(source, VARIABLES, "test").render(messages or CHAT, **options)


def test_chatml():
    assert render(CHATML, CHAT[1:2]) == (
        "<|im_start|>system\nYou help<|im_end|>\n<|im_start|>user\nHi <b>&</b><|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(CHATML, CHAT[:1], add_generation_prompt=False) == "<|im_start|>system\n Be brief. <|im_end|>\n"


def test_tools_and_variables():
    text = render(QWEN, tools=TOOLS, enable_thinking=False)
    assert '"description": "<é>"' in text
    assert text.endswith("0<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_llama2_fallback():
    assert render(LLAMA2) == (
        "<s>[INST] <<SYS>>\n Be brief. \n<</SYS>>\n\nHi <b>&</b> [/INST] Hello </s><s>[INST] é漢\n\nBye [/INST]"
    )
    assert render(LLAMA2, CHAT[1:2]) == "<s>[INST] Hi <b>&</b> [/INST]"
    with pytest.raises(RequestError, match="alternate"):
        render(LLAMA2, CHAT[2:])


def test_llama3_fallback():
    assert render(LLAMA3, CHAT[:2]) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi <b>&</b><|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_where_templates_come_from(tmp_path):
    shutil.copy(GOLDEN / "llama3.json", tmp_path / "tokenizer.json")
    assert load(tmp_path).chat_template is None
    with pytest.raises(TokenizerError, match="no chat template"):
        load(tmp_path).apply_chat_template(CHAT)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": "one", "bos_token": "<|begin|>"}))
    assert load(tmp_path).apply_chat_template(CHAT) == "one"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ bos_token }}two"}]
    settings.write_text(json.dumps({"chat_template": named, "bos_token": "<|begin|>"}))
    tokenizer = load(tmp_path)
    assert tokenizer.apply_chat_template(CHAT) == "<|begin|>two"
    begin = tokenizer.id_of("<|begin|>")
    assert tokenizer.encode_chat(CHAT) == [begin, *tokenizer.encode("two", add_special_tokens=False)]
    (tmp_path / "chat_template.jinja").write_text("three")
    assert load(tmp_path).chat_template == "three"
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "<b>"],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.chat_template": "{{ bos_token }}four",
    }
    assert load("m.gguf", "gguf", metadata).apply_chat_template(CHAT) == "<b>four"


def test_fallback_is_for_the_family(tmp_path):
    shutil.copy(GOLDEN / "pieces.model", tmp_path / "tokenizer.model")
    assert load(tmp_path, vocab_size=32000).chat_template == LLAMA2
    assert load(tmp_path, vocab_size=32064).chat_template is None
    assert load(tmp_path, vocab_size=32000, model_type="mistral").chat_template is None
    assert load(tmp_path, "meta").chat_template == LLAMA2


def test_bad_messages_are_the_callers_error():
    for messages in (
        "text",
        [],
        ["text"],
        [{"content": "x"}],
        [{"role": 5}],
        [{"role": "user", "content": object()}],
    ):
        with pytest.raises(RequestError, match="messages"):
            ChatTemplate(CHATML, VARIABLES, "test").render(messages)
    deep = "x"
    for _ in range(100):
        deep = [deep]
    with pytest.raises(RequestError, match="deep"):
        render(CHATML, [{"role": "user", "content": deep}])
    with pytest.raises(RequestError, match="roles must alternate"):
        render(MISTRAL, CHAT[2:])


def test_none_values_are_dropped_and_reasoning_has_its_names():
    source = "{{ 'content' in messages[0] }}{{ messages[0].reasoning_content }}{{ messages[0].thinking }}"
    message = {"role": "assistant", "content": None, "reasoning": "why"}
    assert render(source, [message]) == "Falsewhywhy"


def test_bad_templates():
    for source in (
        "{% if %}",
        "{{ undefined.x.y }}",
        "{{ 1 / 0 }}",
        "{% include 'x' %}",
        "{{ 'a'|urlize }}",
        "{{ '" + "x" * 300000 + "' }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    ):
        with pytest.raises(TokenizerError) as caught:
            render(source)
        assert "\n" not in str(caught.value)


GROW = "{% set ns = namespace(v=START) %}{% for i in range(60) %}{% set ns.v = STEP %}{% endfor %}"
HOSTILE = {
    "a long range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a loop that filters": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "lists in a loop": "{% for i in range(99999) %}{{ range(99999)|list|length }}{% endfor %}",
    "searches in a loop": "{% for i in range(99999) %}{{ 'b' in 'a' * 1000000 }}{% endfor %}",
    "two calls each": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "endless loop recursion": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a long string": "{{ 'a' * 10**9 }}",
    "a long list": "{{ ([1] * 100000) * 100000 }}",
    "a high power": "{{ 9**9**9**9**9**9**9 }}",
    "a wide field": "{{ '%999999999d' % 1 }}",
    "a wide field by argument": "{{ '%*d' % (999999999, 1) }}",
    "a wide format": "{{ '{:999999999}'.format(1) }}",
    "a wide line": "{{ 'a'.ljust(999999999) }}",
    "a long join": "{{ (['a' * 1000000] * 100000)|join }}",
    "a long join by method": "{{ ''.join(['a' * 100000] * 10000) }}",
    "a growing replace": "{{ ('a' * 1000000)|replace('a', 'b' * 1000000) }}",
    "a growing replace by method": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "an indent": "{{ ('\n' * 1000000)|indent(99999) }}",
    "much output": "{{ 'a' * 8000000 }}{{ 'a' * 8000000 }}",
    "doubled by ~": GROW.replace("START", "'aaaa'").replace("STEP", "ns.v ~ ns.v"),
    "doubled by +": GROW.replace("START", "'aaaa'").replace("STEP", "ns.v + ns.v"),
    "doubled lists": GROW.replace("START", "[1]").replace("STEP", "ns.v + ns.v"),
    "doubled by nesting": GROW.replace("START", "[1]").replace("STEP", "[ns.v, ns.v]") + "{{ ns.v }}",
    "doubled objects": GROW.replace("START", "{}").replace("STEP", "{'a': ns.v, 'b': ns.v}") + "{{ ns.v|tojson }}",
    "doubled by dict": GROW.replace("START", "1").replace("STEP", "dict(a=ns.v, b=ns.v)") + "{{ ns.v ~ '' }}",
    "doubled by block": "{% set ns = namespace(v='aaaa') %}{% for i in range(60) %}{% set x %}{{ ns.v }}{{ ns.v }}"
    "{% endset %}{% set ns.v = x %}{% endfor %}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_template_works_without_bounds(source):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    with pytest.raises(TokenizerError):
        render(source)
    assert time.process_time() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''|attr('__class__') }}",
        "{{ messages.__class__.__base__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{% set ns = namespace(__class__=1) %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ self.__init__.__globals__ }}",
    ],
)
def test_no_way_out_of_the_sandbox(source):
    try:
        assert render(source) in ("", "[]")
    except TokenizerError:
        pass


def test_a_long_chat_is_no_hostile_template():
    long = [{"role": role, "content": "x" * 500} for _ in range(400) for role in ("user", "assistant")]
    for source in (CHATML, QWEN, HEADERS, MISTRAL):
        assert render(source, long).count("x" * 500) == 800


@pytest.mark.parametrize(
    "source",
    ["{{ deep | tojson(indent=4) }}", "{% for one in many %}{{ text }}{% endfor %}"],
    ids=["each value indented by its depth", "a text with each message"],
)
def test_what_is_shown_is_bounded_in_this_process_too(source):
    """As published templates may do with what a client sends; those run where no limit of the kernel holds."""
    deep: list = list(range(100_000))
    for _ in range(60):
        deep = [deep]
    values = {"deep": deep, "many": [0] * 10_000, "text": "x" * 10_000}
    tracemalloc.start()
    try:
        kind, why = Renderer().render(source, values)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
    assert (kind, why) == (BAD, "TemplateLimit: a text of more than 8388608 characters")


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_transformers_renders_the_same(source):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    tool_call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": [1, "é"]}}}
    for messages in (
        CHAT,
        CHAT[1:],
        CHAT[1:2],
        [*CHAT[1:2], {"role": "assistant", "content": "", "tool_calls": [tool_call]}],
    ):
        for tools in (None, TOOLS):
            for prompt in (True, False):
                rendered, _ = utils.render_jinja_template(
                    [messages], tools=tools, chat_template=source, add_generation_prompt=prompt, **VARIABLES
                )
                assert render(source, messages, tools=tools, add_generation_prompt=prompt) == rendered[0]
