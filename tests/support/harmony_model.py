"""A tiny model that writes harmony: its markers as tokens, a template of the published one's shape, and answers that a
test tells."""

import json
from contextlib import contextmanager
from pathlib import Path

import tiny
from conftest import BEGIN, MERGES, SPECIAL, write_byte_tokenizer

from pyllama.generation.harmony import MARKS
from pyllama.generation.sampler import Sample, Sampler

FIRST = 256 + len(SPECIAL) + len(MERGES)
TEMPLATE = (
    "{{ '<|start|>system<|message|>Reasoning: ' ~ (reasoning_effort or 'medium') ~ '\n\n# Valid channels: analysis, "
    "commentary, final.' ~ '<|end|>' }}"
    "{% set ns = namespace(name='') %}"
    "{% if tools %}<|start|>developer<|message|>{{ tools | tojson }}<|end|>{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'assistant' and m.tool_calls %}"
    "{% if m.content and m.thinking %}{{ raise_exception('not both content and thinking beside a call') }}{% endif %}"
    "{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "{% if m.content %}<|start|>assistant<|channel|>commentary<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% set call = m.tool_calls[0].function or m.tool_calls[0] %}{% set ns.name = call.name %}"
    "<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary json<|message|>"
    "{{ call.arguments | tojson }}<|call|>"
    "{% elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
    "{% elif m.role == 'tool' %}{% if not ns.name %}{{ raise_exception('a result without a call') }}{% endif %}"
    "<|start|>functions.{{ ns.name }} to=assistant<|channel|>commentary<|message|>{{ m.content | tojson }}<|end|>"
    "{% else %}<|start|>{{ 'developer' if m.role == 'system' else m.role }}<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


def write_harmony_model(folder: Path) -> Path:
    ids = {mark: FIRST + i for i, mark in enumerate(MARKS)}
    config = tiny.tiny_config(
        vocab_size=FIRST + len(MARKS) + 3,
        bos_token_id=BEGIN,
        eos_token_id=ids["<|return|>"],
        max_position_embeddings=8192,
    )
    tiny.write_huggingface(folder, config, tiny.random_tensors(config, seed=1))
    write_byte_tokenizer(folder, TEMPLATE)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"] += [{"id": number, "content": mark, **flags} for mark, number in ids.items()]
    path.write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|return|>"}))
    return folder


@contextmanager
def answering(monkeypatch, tokenizer, text):
    """Every answer is this text, token by token, whatever the model computes."""
    ids = tokenizer.encode(text, add_special_tokens=False, parse_special=True)

    def told(self, logits, prompt_ids, token_ids, allowed=None):
        token_id = ids[min(len(token_ids), len(ids) - 1)]
        assert allowed is None or token_id in allowed, tokenizer.decode([token_id], skip_special_tokens=False)
        return Sample(token_id)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "__call__", told)
        yield
