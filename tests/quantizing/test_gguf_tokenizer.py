"""Tokenizers of folders in a GGUF file: the same ids, the same ends, the same template; what has no name is refused."""

import json
import shutil

import numpy as np
import pytest
import tiny
from golden_tokenizers import EXPECTED, FILES, GOLDEN, PRE, TEXTS

from pyllama.checkpoint import open_checkpoint
from pyllama.errors import RequestError, TokenizerError
from pyllama.quantizing import quantize
from pyllama.quantizing.warning import QuantizeWarning
from pyllama.tokenizer import load_tokenizer, pre_tokenizers

ROWS = 1400
TEMPLATE = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def write(folder, tokenizer, settings=None, rows=ROWS, **config):
    """A tiny model with one of the golden tokenizers (or the text of a tokenizer.json)."""
    config = {"bos_token_id": None, "eos_token_id": None, "vocab_size": rows, "num_hidden_layers": 1} | config
    config = tiny.tiny_config(**config)
    tiny.write_huggingface(folder, config, tiny.random_tensors(config))
    if isinstance(tokenizer, dict):
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    else:
        shutil.copy(
            GOLDEN / tokenizer, folder / ("tokenizer.model" if tokenizer.endswith("model") else "tokenizer.json")
        )
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def golden(name):
    """A golden file's content, without the flags of added tokens that GGUF does not have."""
    content = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
    for token in content["added_tokens"]:
        token |= {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    return content


def both(folder, pre_tokenizer=None):
    """The tokenizers of the folder, and of the GGUF file that is made of it, and the file's key/values."""
    path = quantize(folder, folder.with_name(folder.name + ".gguf"), "f32", pre_tokenizer=pre_tokenizer)
    with open_checkpoint(folder) as source, open_checkpoint(path) as made:
        return load_tokenizer(source), load_tokenizer(made), made.metadata


@pytest.mark.parametrize("name", [*(name for name in FILES if name != "spm-new.json"), "pieces.model"])
def test_ids_are_the_same_on_nasty_texts(tmp_path, name):
    tokenizer = name if name.endswith("model") else golden(name)
    own, written, metadata = both(write(tmp_path / "model", tokenizer))
    for text in TEXTS:
        for special in (False, True):
            assert written.encode(text, add_special_tokens=special) == own.encode(text, add_special_tokens=special)
        ids = own.encode(text)
        assert written.decode(ids) == own.decode(ids)
    assert written.special_ids == own.special_ids
    assert metadata.get("tokenizer.ggml.pre") == PRE.get(name)
    assert len(metadata["tokenizer.ggml.tokens"]) == ROWS  # one for each row of the embedding


def test_a_space_that_goes_before_whole_texts_only_is_told(tmp_path):
    """The Metaspace of newer folders: GGUF's readers put one before every stretch, as SentencePiece did."""
    folder = write(tmp_path / "model", golden("spm-new.json"))
    with pytest.warns(QuantizeWarning, match="a space goes before each stretch of text between control tokens"):
        own, written, metadata = both(folder)
    assert metadata["tokenizer.ggml.add_space_prefix"]
    for text in TEXTS:
        if not text.startswith((" ", "\u2581")):
            assert written.encode(text) == own.encode(text)


def test_the_golden_files_have_what_the_tests_are_about():
    assert len(EXPECTED["texts"]) > 20 and {"llama3.json", "qwen2.json"} < set(FILES)


def test_template_ends_and_what_goes_around(tmp_path):
    content = golden("qwen2.json")
    ids = {token["content"]: token["id"] for token in content["added_tokens"]}
    first, second = list(ids)[:2]
    settings = {"bos_token": first, "eos_token": second, "pad_token": first, "chat_template": TEMPLATE}
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": first, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
        "special_tokens": {first: {"id": first, "ids": [ids[first]], "tokens": [first]}},
    }  # fmt: skip
    folder = write(tmp_path / "model", content, settings, eos_token_id=[ids[second], 5, 7])
    own, written, metadata = both(folder)
    assert written.bos_token_id == own.bos_token_id == ids[first]
    assert own.encode("x")[0] == written.encode("x")[0] == ids[first]
    assert metadata["tokenizer.ggml.add_bos_token"] and not metadata["tokenizer.ggml.add_eos_token"]
    assert metadata["tokenizer.ggml.padding_token_id"] == ids[first]
    assert set(written.eos_token_ids) == set(own.eos_token_ids) >= {ids[second], 5, 7}
    assert written.eos_token_ids[0] == ids[second]
    assert written.chat_template == own.chat_template == TEMPLATE
    talk = [{"role": "user", "content": "Hi <|im_end|>"}]
    assert written.apply_chat_template(talk) == own.apply_chat_template(talk)
    assert written.encode_chat(talk) == own.encode_chat(talk)


def test_more_ends_than_there_are_names_for_are_refused(tmp_path):
    folder = write(tmp_path / "model", golden("qwen2.json"), eos_token_id=[3, 4, 5, 6])
    with pytest.raises(TokenizerError, match="eos_token_id: 4 tokens end an answer, a GGUF file can name 3"):
        both(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_an_unknown_pre_tokenizer_is_refused_and_a_given_one_goes_on(tmp_path):
    content = golden("qwen2.json")
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "[a-z]+|[^a-z]"}
    folder = write(tmp_path / "model", content)
    with pytest.raises(TokenizerError, match=r"has no name in GGUF.*by --pre-tokenizer"):
        both(folder)
    with pytest.warns(QuantizeWarning, match="would make other ids of"):
        _, written, metadata = both(folder, "gpt-2")
    assert metadata["tokenizer.ggml.pre"] == "gpt-2" and written.encode("Hello")
    with pytest.raises(RequestError, match="pre_tokenizer: 'nonsense', expected one of docs/tokenizers.md"):
        quantize(folder, tmp_path / "other", "f32", pre_tokenizer="nonsense")


def test_a_pattern_written_otherwise_is_known_all_the_same():
    nfc, name = True, "qwen2"
    (pattern,) = next(entry for entry in pre_tokenizers._ALL if name in entry.names.split()).patterns
    other = pattern.replace(r"\p{N}|", r"(?:\p{N})|").replace("'s|'t|'re", r"\x27s|'t|'re")
    assert other != pattern
    assert pre_tokenizers.name_of([other], nfc=nfc, ignore_merges=False) == name
    assert pre_tokenizers.name_of([other], nfc=False, ignore_merges=False) == "stablelm2"
    assert pre_tokenizers.name_of([other], nfc=False, ignore_merges=True) is None
    assert pre_tokenizers.name_of([other, other], nfc=nfc, ignore_merges=False) is None


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_flags_of_added_tokens_that_gguf_does_not_have_are_refused(tmp_path, flag):
    content = golden("qwen2.json")
    content["added_tokens"][0][flag] = True
    with pytest.raises(TokenizerError, match=f"added token .*: {flag} has no name in a GGUF file"):
        both(write(tmp_path / "model", content))


def test_another_normalizer_is_refused(tmp_path):
    content = golden("qwen2.json")
    content["normalizer"] = {"type": "NFKC"}
    with pytest.raises(TokenizerError, match="has no name in GGUF"):
        both(write(tmp_path / "model", content))


def test_added_tokens_of_either_kind_and_beyond_the_rows(tmp_path):
    content = golden("llama3.json")
    free = max(max(content["model"]["vocab"].values()), *(t["id"] for t in content["added_tokens"])) + 1
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"] += [
        {"id": free, "content": "<tool call>", "special": False, **flags},
        {"id": free + 1, "content": "<|hidden|>", "special": True, **flags},
        {"id": free + 2, "content": "<|pad|>", "special": True, **flags},
    ]
    own, written, _ = both(write(tmp_path / "model", content, rows=free + 2))
    text = "a <tool call> b <|hidden|> c <|pad|> d"
    for parse in (False, True):
        assert written.encode(text, parse_special=parse) == own.encode(text, parse_special=parse)
    assert free in own.encode(text) and free + 1 not in own.encode(text)


def test_a_folder_without_a_tokenizer_makes_a_file_without_one(tmp_path):
    config = tiny.tiny_config()
    folder = tiny.write_huggingface(tmp_path / "model", config, tiny.random_tensors(config))
    with pytest.warns(QuantizeWarning, match="the file will have no tokenizer"):
        _, written, metadata = both(folder)
    assert written.kind == "none" and metadata["tokenizer.ggml.model"] == "no_vocab"


def test_merges_of_sentencepiece_become_scores_that_merge_the_same(tmp_path):
    """Without tokenizer.model there are no scores; with it they are its own."""
    _, written, metadata = both(write(tmp_path / "a", golden("spm-old.json")))
    scores = np.asarray(metadata["tokenizer.ggml.scores"])
    merged = scores[scores < 0]
    assert metadata["tokenizer.ggml.model"] == "llama" and len(np.unique(merged)) > 100
    assert written.kind == "sentencepiece"


def test_metas_tokenizer_becomes_merges(tmp_path):
    """tiktoken's ranks: 256 bytes and a few words."""
    import base64

    words = [bytes([i]) for i in range(256)] + [b"he", b"ll", b"hell", b"hello", b" w", b" wo", b"or", b" wor", b"12"]
    config = tiny.tiny_config(vocab_size=len(words) + 256, bos_token_id=None, eos_token_id=None)
    folder = tiny.write_meta(tmp_path / "model", config, tiny.random_tensors(config))
    lines = (base64.b64encode(word) + b" %d" % rank for rank, word in enumerate(words))
    (folder / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    own, written, metadata = both(folder)
    assert metadata["tokenizer.ggml.pre"] == "llama-bpe"
    for text in [*TEXTS, "hello wor 1212", "\u00ff\u0100"]:
        assert written.encode(text) == own.encode(text)
    assert written.chat_template == own.chat_template and set(written.eos_token_ids) == set(own.eos_token_ids)
