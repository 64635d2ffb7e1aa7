"""Live comparison with tokenizers, sentencepiece, tiktoken and transformers, where they are installed."""

import base64
import json
import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

from pyllama.checkpoint import open_checkpoint
from pyllama.quantizing import quantize
from pyllama.tokenizer import load_tokenizer, pre_tokenizers, steps
from pyllama.tokenizer import pattern as patterns

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"


def load(folder, form="huggingface", model_type="llama"):
    config = SimpleNamespace(vocab_size=None, model_type=model_type, bos_token_id=None, eos_token_ids=())
    return load_tokenizer(SimpleNamespace(path=folder, format=form, metadata={}, config=config))


def random_texts(count):
    """Characters of all planes, spaces of all kinds, runs, and special tokens written out."""
    chooser = random.Random(21)
    parts = [
        "<|im_start|>",
        "<s>",
        "</s>",
        "'s",
        "'ll",
        " ",
        "  ",
        "\n",
        "\r\n",
        "e\u0301",
        "👩‍👧",
        "café",
        "word",
        "<left>",
    ]
    for _ in range(count):
        low = chooser.choice(
            [0x20, 0x20, 0xA0, 0x300, 0x400, 0x5D0, 0x900, 0x1100, 0x2000, 0x3040, 0x4E00, 0xAC00, 0x1F300]
        )
        letters = [chr(low + chooser.randrange(96)) for _ in range(6)]
        size = chooser.randint(1, 40)
        yield "".join(chooser.choice([*letters, chooser.choice(parts), chooser.choice(parts)]) for _ in range(size))


def every_character():
    """Every code point, each beside a letter, a digit, a space or another code point."""
    chooser = random.Random(22)
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(codes), 2003):
        yield "".join(
            chr(code) + chooser.choice(["", "", "a", "1", " ", "'s"]) for code in codes[start : start + 2003 : 7]
        )


@pytest.mark.parametrize("name", ["llama3.json", "qwen2.json", "smollm.json", "spm-old.json", "spm-new.json"])
def test_tokenizers(tmp_path, name):
    tokenizers = pytest.importorskip("tokenizers")
    shutil.copy(GOLDEN / name, tmp_path / "tokenizer.json")
    ours, theirs = load(tmp_path), tokenizers.Tokenizer.from_file(str(GOLDEN / name))
    for special in (True, False):
        theirs.encode_special_tokens = not special
        for text in [*random_texts(400), *(every_character() if special else ())]:
            ids = theirs.encode(text, add_special_tokens=False).ids
            assert ours.encode(text, add_special_tokens=False, parse_special=special) == ids, repr(text)
            # tokenizers takes the letters of an added token for bytes: its "café" comes back as "caf\ufffd".
            if ours.id_of("café") not in ids:
                assert ours.decode(ids) == theirs.decode(ids)
    assert ours.encode("a") == theirs.encode("a").ids


_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_START, _END = r"[^\r\n\p{L}\p{N}]?", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    f"{_START}[{_UPPER}]*[{_LOWER}]+{_END}|{_START}[{_UPPER}]+[{_LOWER}]*{_END}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.skipif("PYLLAMA_O200K" not in os.environ, reason="PYLLAMA_O200K names no file of tiktoken's o200k_base")
@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_o200k(tmp_path, form):
    """The vocabulary of gpt-oss and Phi-4-mini, gaps between special tokens: ids of tiktoken and tokenizers."""
    tiktoken = pytest.importorskip("tiktoken")
    converter = pytest.importorskip("transformers.convert_slow_tokenizer")
    lines = Path(os.environ["PYLLAMA_O200K"]).read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    special = {"<|endoftext|>": 199999, "<|endofprompt|>": 200018, "<|end|>": 200020, "<|tool_call|>": 200025}
    oracle = tiktoken.Encoding("o200k", pat_str=O200K, mergeable_ranks=ranks, special_tokens=special)
    made = converter.TikTokenConverter(vocab_file="", pattern=O200K)
    made.load_tiktoken_bpe = lambda path: ranks
    described = json.loads(made.converted().to_str())
    described["model"]["vocab"] |= special
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    described["added_tokens"] = [{"id": token_id, "content": text, **flags} for text, token_id in special.items()]
    config = tiny.tiny_config(model_type="phi3", vocab_size=200064, bos_token_id=199999, eos_token_id=199999)
    path = tiny.write_huggingface(tmp_path / "model", config, tiny.random_tensors(config, seed=1))
    (path / "tokenizer.json").write_text(json.dumps(described))
    (path / "tokenizer_config.json").write_text("{}")
    theirs = converter.Tokenizer.from_file(str(path / "tokenizer.json"))
    theirs.encode_special_tokens = True
    if form == "gguf":
        path = tmp_path / "model.gguf"
        quantize(tmp_path / "model", path, "q8_0", pre_tokenizer="gpt-4o")  # the name in published files
    ours = load_tokenizer(open_checkpoint(path))
    nasty = ["CamelCaseHTTPServer's WE'LL wE'Ll", "x" * 5000, " " * 3000 + "x", "1234567890" * 50, "//\n//\r\n/ /\n"]
    for text in [*random_texts(1000), *every_character(), *nasty, Path(__file__).read_text(encoding="utf-8")]:
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == oracle.encode(text, disallowed_special=()), repr(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, repr(text)
        assert ours.decode(ids) == text
    for text in special:
        assert ours.encode(text, add_special_tokens=False, parse_special=True) == [special[text]]


def test_sentencepiece(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    shutil.copy(GOLDEN / "pieces.model", tmp_path / "tokenizer.model")
    ours = load(tmp_path, "meta")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(GOLDEN / "pieces.model"))
    for text in [*random_texts(400), *every_character()]:
        ids = theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == ids, repr(text)
        assert ours.decode(ids) == theirs.decode(ids)
    space = theirs.piece_to_id("<0x20>")  # ours takes it for the dummy prefix, as tokenizers does
    chooser = random.Random(2)
    for _ in range(1000):
        ids = [chooser.randrange(theirs.get_piece_size()) for _ in range(8)]
        if ids[0] != space and not any(map(theirs.is_unknown, ids)):
            assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize(
    "pattern",
    [
        patterns.GPT2,
        patterns.LLAMA3,
        patterns.QWEN2,
        patterns.TEKKEN,
        r"\s?[!-/:-~]+|\s+$",
        r"(?i:ka|'S)\w?".replace(r"\w", "x"),
    ],
)
def test_patterns(pattern):
    tokenizers = pytest.importorskip("tokenizers")
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    compiled = patterns.compile_pattern(pattern, "test")
    for text in [*random_texts(400), *every_character(), "'\u017fx \u212aa\n$\n  \n"]:
        assert patterns.split_isolated(compiled, text) == [piece for piece, _ in split.pre_tokenize_str(text)]


@pytest.mark.parametrize("name", sorted(entry.names.split()[0] for entry in pre_tokenizers._ALL))
def test_pre_tokenizers_of_gguf(name):
    """The steps of each name as Hugging Face's tokenizers runs them."""
    tokenizers = pytest.importorskip("tokenizers")
    entry = pre_tokenizers.pre_tokenizer(name, "test")

    def theirs(step):
        if step is pre_tokenizers.digits:
            return tokenizers.pre_tokenizers.Digits(individual_digits=True)
        if step is steps.spaces_at_end_apart:
            step = r"\s+$"
        elif step is steps.thousands:
            step = "(?=([0-9]{3})+(?![0-9]))"
        return tokenizers.pre_tokenizers.Split(tokenizers.Regex(step), "isolated")

    sequence = tokenizers.pre_tokenizers.Sequence([theirs(step) for step in entry.patterns])
    _, split = entry.steps("test")
    for text in [*random_texts(60), *list(every_character())[::6], "x   5 \n \r\n1234567a\u0663\u0664\u0665\u06661234"]:
        assert split([text], True) == [piece for piece, _ in sequence.pre_tokenize_str(text)]


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_normal_forms(form):
    tokenizers = pytest.importorskip("tokenizers")
    theirs, ours = getattr(tokenizers.normalizers, form)(), steps.unicode_form(form)
    chooser = random.Random(5)
    marks = "\u0301\u0316\u0327\u0345\u1dfa\u0f71\u0f72\U00011935\U00011930\u1161\u11a8\u1100\u00c5\ufb2aae"
    soup = ["".join(chooser.choice(marks) for _ in range(50)) for _ in range(200)]
    for text in [*every_character(), *soup, "a" + "\u0301\u0316" * 60]:
        assert ours(text) == theirs.normalize_str(text), repr(text)


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize("split", [True, False])
def test_metaspace(scheme, split):
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    ours = steps.metaspace(scheme, split)
    for text in (*random_texts(50), "a  b ", "\u2581a", "a \u2581 b", "\n a"):
        assert ours([text], True) == [piece for piece, _ in theirs.pre_tokenize_str(text)]


@pytest.mark.parametrize("settings", [
    {"tokenizer_class": "PreTrainedTokenizerFast"},
    {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    {"tokenizer_class": "LlamaTokenizerFast", "legacy": True, "bos_token": "<s>", "add_bos_token": False},
    {},
])  # fmt: skip
@pytest.mark.parametrize("name", ["spm-old.json", "spm-new.json", "llama3.json", "smollm.json"])
@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_auto_tokenizer(tmp_path, settings, name, model_type):
    transformers = pytest.importorskip("transformers")
    if not name.startswith("spm"):
        settings = {key: value for key, value in settings.items() if not key.endswith("_token")}
    shutil.copy(GOLDEN / name, tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load(tmp_path, model_type=model_type)
    for text in ("", " ", " a", "a  b</s> c", "<s>x", "hello\n", *random_texts(60)):
        assert ours.encode(text, parse_special=True) == theirs.encode(text), repr(text)
        assert ours.encode(text) == theirs.encode(text, split_special_tokens=True), repr(text)
