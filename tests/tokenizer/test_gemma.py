"""Gemma's tokenizers, of 262,144 pieces: three forms of file, one set of ids, and what they take of memory.

The real file is found through PYLLAMA_GEMMA3 (a GGUF of Gemma 3); its ids are those of llama.cpp and of tokenizers.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pyllama.errors import TokenizerError
from pyllama.tokenizer import folder, gguf
from pyllama.tokenizer.tokenizer import Tokenizer

MARK = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
WORDS = ["the", "them", f"{MARK}the", f"{MARK}{MARK}", "\n\n", f"{MARK}them", "\n\n\n", f"{MARK}{MARK}{MARK}"]


def pieces() -> tuple[list[str], list[int]]:
    """Tokens and types: special ones, a tag of HTML, bytes, characters, what merges make."""
    tokens = [*SPECIAL, "</b>", *(f"<0x{byte:02X}>" for byte in range(256)), MARK, "\n", *"themab"]
    kinds = [CONTROL] * 3 + [UNKNOWN] + [CONTROL] * 2 + [USER_DEFINED] + [BYTE] * 256
    tokens = list(dict.fromkeys([*tokens, "th", "em", f"{MARK}th", *WORDS]))
    return tokens, kinds + [NORMAL] * (len(tokens) - len(kinds))


def merges_of(tokens: list[str], kinds: list[int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the first piece first: as transformers' converter makes them."""
    known = set(tokens)
    return [
        (token[:cut], token[cut:])
        for token, kind in zip(tokens, kinds, strict=True)
        if kind == NORMAL
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]


def as_gguf(model: str, tokens: list[str], kinds: list[int], scores: np.ndarray) -> dict:
    found = {
        "tokenizer.ggml.model": model, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": np.array(kinds), "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_space_prefix": False,
    }  # fmt: skip
    if model == "gemma4":
        found["tokenizer.ggml.merges"] = [" ".join(pair) for pair in merges_of(tokens, kinds)]
    return found


def write_folder(path: Path, tokens: list[str], kinds: list[int]) -> None:
    added = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind != USER_DEFINED}
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]  # fmt: skip
    described = {
        "version": "1.0", "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": MARK},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                          "invert": False},
        "post_processor": {
            "type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
                  "vocab": {token: i for i, token in enumerate(tokens)},
                  "merges": [list(pair) for pair in merges_of(tokens, kinds)]},
    }  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    settings = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> dict[str, Tokenizer]:
    tokens, kinds = pieces()
    scores = -np.arange(len(tokens), dtype=np.float32)
    path = tmp_path_factory.mktemp("gemma")
    write_folder(path, tokens, kinds)
    config = SimpleNamespace(vocab_size=None, eos_token_ids=(1,), bos_token_id=2, model_type="gemma3_text")
    made = {model: gguf.read(as_gguf(model, tokens, kinds, scores), "a.gguf") for model in ("llama", "gemma4")}
    return {name: Tokenizer(parts) for name, parts in made.items()} | {
        "folder": Tokenizer(folder.read_huggingface(path, config))
    }


TEXTS = [
    "the them the", "  the   them", "\n\n\n\nthe\n", "caf\u00e9 \U0001f642", "<bos>the</b>them<eos>", "tthheemm", "",
    " ", "a b", f"{MARK}the", "<start_of_turn>the<end_of_turn>\n", "\x00", "th em", "\u2028",
]  # fmt: skip


@pytest.mark.parametrize("special", [True, False])
def test_the_three_forms_give_the_same_ids(forms, special):
    for text in TEXTS:
        ids = {name: tokenizer.encode(text, parse_special=special) for name, tokenizer in forms.items()}
        assert ids["llama"] == ids["gemma4"] == ids["folder"], text
        assert ids["llama"][0] == 2
        if MARK not in text and "<" not in text:
            assert {tokenizer.decode(ids["llama"][1:]) for tokenizer in forms.values()} == {text}


def test_merges_go_by_rank_and_bytes_stand_for_what_has_no_piece(forms):
    tokenizer = forms["gemma4"]
    ids = tokenizer.encode("them the \u00e9", add_special_tokens=False)
    assert [tokenizer.token_bytes(i).decode("latin-1") for i in ids][-2:] == ["\xc3", "\xa9"]
    assert [tokenizer.token_bytes(i) for i in ids[:1]] == [b"them"]
    assert tokenizer.kind == "sentencepiece" and tokenizer.decode(ids) == "them the \u00e9"


def test_merges_that_are_missing_or_of_nothing_are_refused():
    tokens, kinds = pieces()
    described = as_gguf("gemma4", tokens, kinds, np.zeros(len(tokens), np.float32))
    with pytest.raises(TokenizerError, match=r"ggml\.merges: missing"):
        gguf.read({k: v for k, v in described.items() if k != "tokenizer.ggml.merges"}, "a.gguf")
    with pytest.raises(TokenizerError, match="not in the vocabulary"):
        gguf.read(described | {"tokenizer.ggml.merges": ["q q"]}, "a.gguf")


_MEASURE = """
import gc, random, sys
import numpy as np
import test_gemma as t
from pathlib import Path
from types import SimpleNamespace
from pyllama.tokenizer import folder, gguf
from pyllama.tokenizer.tokenizer import Tokenizer
import sentencepiece

def resident():
    lines = open("/proc/self/smaps_rollup").read().split("\\n")
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))

kind, path = sys.argv[1], Path(sys.argv[2])
if kind == "folder":
    before = resident()
    config = SimpleNamespace(vocab_size=None, eos_token_ids=(1,), bos_token_id=2, model_type="gemma3_text")
    parts = folder.read_huggingface(path, config)
else:
    tokens, kinds = t.large()
    described = t.as_gguf(kind, tokens, kinds, -np.arange(len(tokens), dtype=np.float32))
    del tokens
    gc.collect()
    before = resident()
    parts = gguf.read(described, "a.gguf")
tokenizer = Tokenizer(parts)
del parts
gc.collect()
tokenizer.encode("the them " * 50)
print(resident() - before)
"""


def large() -> tuple[list[str], list[int]]:
    """As many pieces as Gemma has, of as many bytes, made of others as its own are."""
    tokens, kinds = pieces()
    draw = random.Random(1)
    letters = [chr(code) for code in (*range(0x61, 0x7B), *range(0x4E00, 0x4E00 + 5000))]
    known = dict.fromkeys([*tokens, *letters])
    while len(known) < 262144:
        word = draw.choice(letters[:26])
        for _ in range(draw.randrange(2, 9)):
            word += draw.choice(letters[: 26 if draw.random() < 0.9 else None])
            known.setdefault(word)
            if len(known) == 262144:
                break
    return list(known), kinds + [NORMAL] * (262144 - len(kinds))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["llama", "gemma4", "folder"])
def test_a_vocabulary_of_262144_takes_under_60_mb(kind, tmp_path):
    if kind == "folder":
        write_folder(tmp_path, *large())
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support"), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, kind, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60e6
