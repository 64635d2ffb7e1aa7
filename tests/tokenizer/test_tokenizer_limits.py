"""Hostile text costs linear time; damaged files cost a TokenizerError."""

import itertools
import json
import random
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyllama.errors import TokenizerError
from pyllama.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"


def load(folder, form="huggingface", vocab_size=None):
    config = SimpleNamespace(vocab_size=vocab_size, model_type="llama", bos_token_id=None, eos_token_ids=())
    return load_tokenizer(SimpleNamespace(path=folder, format=form, metadata={}, config=config))


def copy(folder, source, target="tokenizer.json"):
    (folder / target).write_bytes((GOLDEN / source).read_bytes())
    return folder


RUNS = (
    "a",
    " ",
    "ab",
    "👩\u200d",
    "\n",
    " a",
    "1",
    "\u0301\u0316",
    "<|im_",
    "\u4e00",
    "\u2581",
    ".",
    "A",
    "'s",
    "\x00",
)


@pytest.mark.parametrize("source", ["llama3.json", "qwen2.json", "smollm.json", "spm-old.json"])
def test_long_runs_take_linear_time(tmp_path, source):
    """16 times the text in far less than the 256 times of a quadratic algorithm."""
    tokenizer = load(copy(tmp_path, source))
    for run in RUNS:
        times = []
        for count in (1500, 24000):
            text = run * count + "x"
            tokenizer.encode(text[:10])
            started = time.process_time()
            tokenizer.encode(text, parse_special=True)
            times.append(time.process_time() - started)
        assert times[1] < 80 * max(times[0], 0.002), f"{run!r}: {times}"


def test_words_merge_as_by_looking_for_the_lowest_rank_again_and_again(tmp_path):
    """The heap is only a faster way to the same ids."""
    tokenizer = load(copy(tmp_path, "llama3.json"))
    chooser = random.Random(3)
    table = tokenizer._model._merges
    for _ in range(400):
        symbols = [tokenizer.id_of(chr(chooser.choice(b"etainors thd"))) for _ in range(chooser.randint(1, 60))]
        expected = list(symbols)
        while found := [
            (table._ranks[entry], at, table._merged[entry])
            for at, pair in enumerate(itertools.pairwise(expected))
            if (entry := table._find(*pair)) >= 0
        ]:
            _, at, merged = min(found)
            expected[at : at + 2] = [merged]
        assert table.merge(symbols) == expected


def mutate(content, chooser):
    """One plausible kind of damage to a tokenizer.json."""
    model = content["model"]
    vocabulary = model["vocab"]
    token = chooser.choice(list(vocabulary))
    kind = chooser.randrange(22)
    if kind == 0:
        vocabulary[token] = chooser.choice([-1, 1 << 40, 1.5, "7", None, [], True, 1 << 20])
    elif kind == 1:
        vocabulary[token] = (vocabulary[token] + 1) % 500
    elif kind == 2:
        model["merges"].append(["no such token", "x"])
    elif kind == 3:
        model["merges"][3] = chooser.choice([["a"], ["a", "b", "c"], [], "a", "a b c", 5, None, {"a": 1}, ["a", 5]])
    elif kind == 4:
        model["type"] = chooser.choice(["Unigram", "WordPiece", "WordLevel", 5, None])
    elif kind == 5:
        content["normalizer"] = {"type": chooser.choice(["Lowercase", "Strip", "Precompiled", "Nmt", "BertNormalizer"])}
    elif kind == 6:
        content["pre_tokenizer"] = {"type": chooser.choice(["Whitespace", "Punctuation", "BertPreTokenizer", 7])}
    elif kind == 7:
        content["decoder"] = {"type": chooser.choice(["WordPiece", "CTC", "BPEDecoder"])}
    elif kind == 8:
        content["post_processor"] = {
            "type": chooser.choice(["BertProcessing", "RobertaProcessing"]),
            "sep": ["a", 1],
        }
    elif kind == 9:
        content["added_tokens"][0]["id"] += chooser.choice([1, 100, -400, 1 << 30])
    elif kind == 10:
        content["added_tokens"][0][chooser.choice(["content", "id", "special", "lstrip"])] = chooser.choice(
            [None, 7.5, []]
        )
    elif kind == 11:
        content["added_tokens"].append({**content["added_tokens"][0], "lstrip": True})
    elif kind == 12:
        content["model"] = chooser.choice([[], None, "BPE", 5])
    elif kind == 13:
        model["unk_token"] = chooser.choice(["nowhere", 5, []])
    elif kind == 14:
        model[chooser.choice(["dropout", "continuing_subword_prefix", "end_of_word_suffix", "invented"])] = "##"
    elif kind == 15:
        content["invented"] = {}
    elif kind == 16:
        del model["vocab"]
    elif kind == 17:
        content["added_tokens"] = {"a": 1}
    elif kind == 18:
        content["pre_tokenizer"] = {
            "type": "Split", "invert": False,
            "behavior": chooser.choice(["MergedWithNext", "Isolated"]),
            "pattern": {"Regex": chooser.choice(
                ["(?<=a)b", r"\p{Greek}", "(", "a{99999}", "(?P<x>a)", "[[:alpha:]]", r"\bx"]
            )},
        }  # fmt: skip
    elif kind == 19:
        content["post_processor"] = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}],
                                     "pair": [], "special_tokens": {}}  # fmt: skip
    elif kind == 20:
        nest = []
        for _ in range(900):
            nest = [nest]
        content["truncation"] = nest
        content["normalizer"] = {"type": "Sequence", "normalizers": [nest]}
    else:
        model["vocab"] = [[token, -1.0]]


def test_damaged_json_values(tmp_path):
    chooser = random.Random(8)
    source = (GOLDEN / "llama3.json").read_text(encoding="utf-8")
    for _ in range(150):
        content = json.loads(source)
        mutate(content, chooser)
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        started = time.process_time()
        with pytest.raises(TokenizerError) as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)
        assert time.process_time() - started < 5


def test_damaged_json_text(tmp_path):
    chooser = random.Random(9)
    source = (GOLDEN / "spm-new.json").read_bytes()
    sources = [source[: chooser.randrange(len(source))] for _ in range(60)]
    for _ in range(100):
        data = bytearray(source)
        for _ in range(chooser.randint(1, 4)):
            data[chooser.randrange(len(data))] = chooser.choice(b'{}[]",:\\\x00\xff9a')
        sources.append(bytes(data))
    deep = b'{"version": ' + b"[" * 100000 + b"]" * 100000 + b"}"
    sources += [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"{" * 5000,
        source + b"x",
        b'{"model":{"vocab":' + b"{" * 9999,
        deep,
    ]
    sources += [
        source.replace(b'"model"', b'"model":1,"model"'),
        b'{"model":{"type":"BPE","vocab":{"a":0,}}}',
        b'"' * 9999,
    ]
    refused = 0
    for data in sources:
        (tmp_path / "tokenizer.json").write_bytes(data)
        started = time.process_time()
        try:
            load(tmp_path)
        except TokenizerError as error:
            refused += 1
            assert "\n" not in str(error)
        assert time.process_time() - started < 5
    assert refused > len(sources) // 2  # a changed letter inside a token is still a sound file


def test_damaged_models(tmp_path):
    chooser = random.Random(10)
    source = (GOLDEN / "pieces.model").read_bytes()
    sources = [source[: chooser.randrange(len(source))] for _ in range(80)]
    for _ in range(150):
        data = bytearray(source)
        for _ in range(chooser.randint(1, 6)):
            data[chooser.randrange(len(data))] = chooser.randrange(256)
        sources.append(bytes(data))
    sources += [
        b"",
        b"\n",
        b"\xff" * 50,
        b"\n\xff\xff\xff\xff\x7f",
        b"IQ== 0\nIg== 5\n",
        b"IQ== 0\n!!!! 1\n",
        b"IQ== 0\nI 1\n",
    ]
    sources += [b"IQ== 0\nIQ== 1\n", b"IQ== 0\n", b"IQ== 0\nIg== 99999999999\n"]
    refused = 0
    for data in sources:
        (tmp_path / "tokenizer.model").write_bytes(data)
        started = time.process_time()
        try:
            load(tmp_path, "meta").encode("some text")
        except TokenizerError as error:
            refused += 1
            assert "\n" not in str(error)
        assert time.process_time() - started < 5
    assert refused >= 70


def test_models_of_words_and_damaged_tables_are_refused_by_name(tmp_path):
    def message(number, data):
        return bytes([number << 3 | 2, len(data)]) + data

    piece = message(1, message(1, b"a"))
    for number, name in ((3, "word"), (4, "char"), (9, "9")):
        (tmp_path / "tokenizer.model").write_bytes(piece + message(2, b"\x18%c" % number))
        with pytest.raises(TokenizerError, match=f"{name}' is not supported, expected 'bpe' or 'unigram'"):
            load(tmp_path, "meta")
    (tmp_path / "tokenizer.model").write_bytes(
        piece + message(2, b"\x18\x02") + message(3, message(1, b"nmt_nfkc") + message(2, b"xx"))
    )
    with pytest.raises(TokenizerError, match="precompiled_charsmap is no table"):
        load(tmp_path, "meta")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "bert"), ("model", 5), ("tokens", None), ("tokens", "abc"), ("tokens", ["a", "a"]), ("tokens", [5]),
        ("merges", None), ("merges", ["a"]), ("merges", ["a nothing"]), ("merges", 7), ("token_type", [1]),
        ("token_type", ["x"]), ("bos_token_id", "a"), ("eos_token_id", 1.5),
        ("add_bos_token", 7), ("pre", 5),
    ],
)  # fmt: skip
def test_damaged_gguf_metadata(key, value):
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.token_type": [1, 1, 1],
    }
    config = SimpleNamespace(vocab_size=None)

    def load_it():
        return load_tokenizer(SimpleNamespace(path="m.gguf", format="gguf", metadata=metadata, config=config))

    assert load_it().encode("ab") == [2]
    metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(TokenizerError) as caught:
        load_it()
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    for form in ("huggingface", "meta"):
        with pytest.raises(TokenizerError, match="no tokenizer, .*tokenizer.model"):
            load(tmp_path, form).encode("a")  # loading works: see test_no_tokenizer.py
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(TokenizerError):
        load(tmp_path).encode("a")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("data", [b"[", b"[]", b"\xff", b"[" * 100000])
def test_damaged_side_files(tmp_path, name, data):
    copy(tmp_path, "llama3.json")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TokenizerError, match=name):
        load(tmp_path)
