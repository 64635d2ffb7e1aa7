"""The golden tokenizers (tests/golden/tokenizer), in the forms that files have."""

import json
from pathlib import Path
from types import SimpleNamespace

from pyllama.tokenizer.sentencepiece_model import read_pieces

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
TEXTS = EXPECTED["texts"]
FILES = ("llama3.json", "qwen2.json", "smollm.json", "spm-old.json", "spm-new.json")
BYTE_LEVEL = FILES[:3]
PRE = {"llama3.json": "llama-bpe", "qwen2.json": "qwen2", "smollm.json": "smollm"}


def checkpoint(path, form="huggingface", metadata=None, vocab_size=None, model_type="llama"):
    config = SimpleNamespace(vocab_size=vocab_size, model_type=model_type, bos_token_id=None, eos_token_ids=())
    return SimpleNamespace(path=path, format=form, metadata=metadata or {}, config=config)


def write(folder, name, settings=None, **changes):
    """A folder with one of the golden files as its tokenizer.json."""
    content = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
    for key, value in changes.items():
        content[key] = value
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def gguf_metadata(name):
    """The golden byte-level file as GGUF would hold it."""
    content = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    tokens = [""] * (max([*vocabulary.values(), *(token["id"] for token in content["added_tokens"])]) + 1)
    types = [1] * len(tokens)
    for token, token_id in vocabulary.items():
        tokens[token_id] = token
    for token in content["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = 3 if token["special"] else 4
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": PRE[name],
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in content["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": vocabulary.get("<|begin|>", len(tokens) - 4),
    }


def pieces_metadata():
    """pieces.model as GGUF would hold it."""
    pieces = read_pieces(GOLDEN / "pieces.model")
    size = pieces.vocabulary.size
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [pieces.vocabulary.bytes_of(i).decode() for i in range(size)],
        "tokenizer.ggml.scores": pieces.scores,
        "tokenizer.ggml.token_type": pieces.types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
