"""Tiny models on disk for several test files: random weights, a byte-level tokenizer, a chat template."""

import json
import os
import signal
from pathlib import Path

import pytest
import tiny

# Interpreters started by tests take pyllama from where this one does, not from the folder they are started in.
os.environ["PYTHONSAFEPATH"] = "1"
# Nobody's own settings.
os.environ["PYLLAMA_CONFIG"] = os.devnull
# A shell starts what it puts into the background with Ctrl-C ignored, and the processes of tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

BEGIN, TURN, END = 256, 257, 258
SPECIAL = {"<|begin|>": BEGIN, "<|im_start|>": TURN, "<|im_end|>": END}
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("a", "n"), ("an", "d")]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def write_byte_tokenizer(folder: Path, template: str | None) -> None:
    """tokenizer.json whose token i is byte i, with a few merges and ChatML's special tokens."""
    vocab = {character: byte for byte, character in enumerate(byte_characters())}
    vocab |= SPECIAL
    first_merge = 256 + len(SPECIAL)
    vocab |= {a + b: first_merge + i for i, (a, b) in enumerate(MERGES)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token_id, "content": text, **flags} for text, token_id in SPECIAL.items()],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in MERGES],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|im_end|>",
        "model_max_length": 512,
    }
    if template:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_model(folder: Path, template: str | None = TEMPLATE, **config) -> Path:
    defaults = {
        "vocab_size": 256 + len(SPECIAL) + len(MERGES) + 4,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "max_position_embeddings": 8192,
    }
    config = tiny.tiny_config(**(defaults | config))
    tiny.write_huggingface(folder, config, tiny.random_tensors(config, seed=1))
    write_byte_tokenizer(folder, template)
    return folder


@pytest.fixture
def shadowed(tmp_path, monkeypatch) -> Path:
    """Where the user stands: a folder whose names are those of modules, none of which is to be imported."""
    folder = tmp_path / "shadowed"
    for name in ("pyllama", "pip", "json"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise ImportError('of the folder where the user stands')\n")
    monkeypatch.delenv("PYTHONSAFEPATH")  # a user's shell has no such setting
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory) -> Path:
    """A Hugging Face folder of a tiny model with a chat template."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny-chat")


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """The same model without a chat template."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny-base", template=None)
