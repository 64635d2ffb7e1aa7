"""The ids: equal to what the reference libraries gave for hard texts, from every form a tokenizer comes in."""

import json
import shutil

import numpy as np
import pytest
from golden_tokenizers import (
    BYTE_LEVEL,
    EXPECTED,
    FILES,
    GOLDEN,
    TEXTS,
    checkpoint,
    gguf_metadata,
    pieces_metadata,
    write,
)

from pyllama.errors import TokenizerError
from pyllama.tokenizer import load_tokenizer


def model_folder(folder):
    shutil.copy(GOLDEN / "pieces.model", folder / "tokenizer.model")
    return folder


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("special", [True, False])
def test_tokenizer_json_gives_the_ids_of_tokenizers(tmp_path, name, special):
    tokenizer = load_tokenizer(checkpoint(write(tmp_path, name)))
    expected = EXPECTED["ids"][name]["special" if special else "plain"]
    for text, ids in zip(TEXTS, expected, strict=True):
        assert tokenizer.encode(text, add_special_tokens=False, parse_special=special) == ids, repr(text)


@pytest.mark.parametrize("name", FILES)
def test_however_the_file_is_laid_out(tmp_path, name):
    """Indented or not, merges as strings or pairs, model first or last: the same ids."""
    content = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
    expected = EXPECTED["ids"][name]["plain"]
    spaced = [" ".join(merge) for merge in content["model"]["merges"]]
    model = content["model"]
    reordered = {key: model[key] for key in ("merges", "vocab")} | {
        key: value for key, value in model.items() if key not in ("merges", "vocab")
    }
    for changed, options in (
        (content, {"indent": 2}),
        (content, {"indent": "\t", "ensure_ascii": False}),
        (content | {"model": model | {"merges": spaced}}, {"separators": (",", ":")}),
        ({"model": reordered} | {key: content[key] for key in content if key != "model"}, {}),
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps(changed, **options), encoding="utf-8")
        tokenizer = load_tokenizer(checkpoint(tmp_path))
        assert [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS] == expected


@pytest.mark.parametrize("name", ["llama3.json", "smollm.json"])
def test_gguf_gives_the_same_ids(name):
    tokenizer = load_tokenizer(checkpoint("model.gguf", "gguf", gguf_metadata(name)))
    for special in (True, False):
        expected = EXPECTED["ids"][name]["special" if special else "plain"]
        for text, ids in zip(TEXTS, expected, strict=True):
            assert tokenizer.encode(text, add_special_tokens=False, parse_special=special) == ids, repr(text)


@pytest.mark.parametrize("form", ["meta", "huggingface", "gguf"])
def test_pieces_give_the_ids_of_sentencepiece(tmp_path, form):
    metadata = pieces_metadata() if form == "gguf" else None
    tokenizer = load_tokenizer(checkpoint(model_folder(tmp_path), form, metadata))
    expected = EXPECTED["ids"]["pieces.model"]["plain"]
    for text, ids in zip(TEXTS, expected, strict=True):
        assert tokenizer.encode(text, add_special_tokens=False) == ids, repr(text)
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id == 1
    assert 2 in tokenizer.eos_token_ids


def test_tiktoken_file_is_told_apart_and_gives_the_ids_of_its_merges(tmp_path):
    """Ranks as ids: the trained tokenizer's own vocabulary, written as Meta writes Llama 3's."""
    import base64

    source = load_tokenizer(checkpoint(write(tmp_path, "llama3.json")))
    lines = []
    for token_id in range(500):
        lines.append(base64.b64encode(source.token_bytes(token_id)) + b" %d" % token_id)
    folder = tmp_path / "meta"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    tokenizer = load_tokenizer(checkpoint(folder, "meta"))
    assert tokenizer.kind == "tiktoken"
    assert tokenizer.vocab_size == 500 + 256
    assert tokenizer.id_of("<|begin_of_text|>") == tokenizer.bos_token_id == 500
    assert tokenizer.id_of("<|eot_id|>") == 509
    assert tokenizer.id_of("<|reserved_special_token_247|>") == 755
    assert tokenizer.eos_token_ids[:2] == (501, 509)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids[0] == 500
        assert tokenizer.decode(ids) == text
        assert not tokenizer.special_ids & set(ids[1:])
    # Ids ascend with the merges, so both rules merge alike wherever one split of a token exists.
    assert tokenizer.encode("the module", add_special_tokens=False) == source.encode(
        "the module", add_special_tokens=False
    )


@pytest.mark.parametrize("name", FILES)
def test_user_text_never_becomes_a_special_token(tmp_path, name):
    tokenizer = load_tokenizer(checkpoint(write(tmp_path, name)))
    tokens = [tokenizer.token_bytes(token_id).decode() for token_id in tokenizer.special_ids]
    for text in (*tokens, *TEXTS, " ".join(tokens), "".join(tokens)):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert not tokenizer.special_ids & set(ids) - {tokenizer.id_of("<unk>")}, repr(text)
    for token in tokens:
        assert tokenizer.encode(token, add_special_tokens=False, parse_special=True) == [tokenizer.id_of(token)]


def test_a_merge_into_a_special_token_is_never_used(tmp_path):
    """A file whose merges spell a special token must not turn the user's letters into it."""
    content = json.loads((GOLDEN / "smollm.json").read_text(encoding="utf-8"))
    merged = content["model"]["merges"][0]
    text = "".join(merged)
    token_id = content["model"]["vocab"][text]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"].append({"id": token_id, "content": text, **flags})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = load_tokenizer(checkpoint(tmp_path))
    assert token_id in tokenizer.special_ids
    plain = text.replace("Ġ", " ")
    assert token_id not in tokenizer.encode(plain, add_special_tokens=False)


def test_flags_of_tokenizer_config_prevail(tmp_path):
    """As AutoTokenizer: flags of added_tokens_decoder, a named token is special, a new one gets the next id."""
    content = json.loads((GOLDEN / "llama3.json").read_text(encoding="utf-8"))
    end, turn = content["added_tokens"][1], content["added_tokens"][2]
    new_id = max(token["id"] for token in content["added_tokens"]) + 1
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    settings = {
        "added_tokens_decoder": {
            str(turn["id"]): {**flags, "content": turn["content"], "lstrip": True},
            str(new_id): {**flags, "content": "<new>"},
        },
        "eos_token": {"content": end["content"]},
    }
    tokenizer = load_tokenizer(checkpoint(write(tmp_path, "llama3.json", settings)))
    ids = tokenizer.encode("a   <|im_start|>b<new>", add_special_tokens=False, parse_special=True)
    assert ids == [*tokenizer.encode("a", add_special_tokens=False), turn["id"], tokenizer.id_of("b"), new_id]
    assert end["id"] in tokenizer.eos_token_ids
    settings["added_tokens_decoder"][str(new_id + 1)] = settings["added_tokens_decoder"].pop(str(new_id))
    with pytest.raises(TokenizerError, match="added_tokens_decoder"):
        load_tokenizer(checkpoint(write(tmp_path, "llama3.json", settings)))


def test_what_lies_beyond_the_model_stays_out_or_is_refused(tmp_path):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    settings = {"added_tokens_decoder": {"504": {**flags, "content": "<pad>"}}, "pad_token": "<pad>"}
    folder = write(tmp_path, "llama3.json", settings)
    assert load_tokenizer(checkpoint(folder, vocab_size=505)).id_of("<pad>") == 504
    tokenizer = load_tokenizer(checkpoint(folder, vocab_size=504))
    assert tokenizer.id_of("<pad>") is None
    assert 504 not in tokenizer.encode("<pad>", parse_special=True)
    for rows in (503, 501):  # the last added tokens have no row: they are left out, too
        tokenizer = load_tokenizer(checkpoint(folder, vocab_size=rows))
        assert tokenizer.vocab_size == rows and tokenizer.id_of("<|im_end|>") is None
        assert max(tokenizer.encode("a<|im_end|><pad>", parse_special=True)) < rows
    for rows in (500, 499):  # BOS has none; or a token of text
        with pytest.raises(TokenizerError, match=f"504 tokens, expected at most vocab_size {rows}"):
            load_tokenizer(checkpoint(folder, vocab_size=rows))


def test_post_processor_decides_on_bos(tmp_path):
    """tokenizer.json's post-processor, whatever add_bos_token says: AutoTokenizer looks at it only without one."""
    for settings in ({}, {"add_bos_token": False, "add_eos_token": True}):
        tokenizer = load_tokenizer(checkpoint(write(tmp_path, "llama3.json", settings)))
        assert tokenizer.encode("") == [tokenizer.id_of("<|begin|>")]
        tokenizer = load_tokenizer(checkpoint(write(tmp_path, "smollm.json", settings)))
        assert tokenizer.encode("") == []
    folder = tmp_path / "model"
    folder.mkdir()
    model_folder(folder)
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": false, "add_eos_token": true}')
    assert load_tokenizer(checkpoint(folder)).encode("") == [2]


def test_class_llama_replaces_the_steps_of_a_sentencepiece_file(tmp_path):
    """AutoTokenizer's LlamaTokenizer: no second space mark for text that begins with one; first stretch only."""
    plain = {"tokenizer_class": "PreTrainedTokenizerFast"}
    llama = {"tokenizer_class": "LlamaTokenizerFast"}
    old = load_tokenizer(checkpoint(write(tmp_path, "spm-old.json", plain)))
    new = load_tokenizer(checkpoint(write(tmp_path, "spm-old.json", llama)))
    legacy = load_tokenizer(checkpoint(write(tmp_path, "spm-old.json", llama | {"legacy": True})))
    mistral = load_tokenizer(checkpoint(write(tmp_path, "spm-old.json", llama), model_type="mistral"))
    text = " a</s>a"
    encoded = [t.encode(text, add_special_tokens=False, parse_special=True) for t in (old, new, legacy, mistral)]
    mark_a, a, mark = old.id_of(" a"), old.id_of("a"), old.id_of(" ")
    assert encoded[1] == [mark_a, 2, a]
    assert encoded[2] == [mark_a, 2, mark_a]
    assert encoded[0] == encoded[3] != encoded[2]
    assert encoded[0][-1] == mark_a and mark in (encoded[0][0], mark)


def test_eos_of_generation_config_and_turn_ends(tmp_path):
    folder = write(tmp_path, "llama3.json", {"eos_token": "<|end|>"})
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    tokenizer = load_tokenizer(checkpoint(folder))
    assert tokenizer.eos_token_ids == (tokenizer.id_of("<|end|>"), 7, 8, tokenizer.id_of("<|im_end|>"))


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_decoding_gives_the_text_back(tmp_path, name):
    import unicodedata

    tokenizer = load_tokenizer(checkpoint(write(tmp_path, name)))
    for text in TEXTS:
        back = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
        if name == "llama3.json":
            assert back == text
        elif name == "qwen2.json" and "<" not in text:
            assert back == unicodedata.normalize("NFC", text)


def test_lone_surrogate_is_an_error(tmp_path):
    for name in ("llama3.json", "spm-new.json", "qwen2.json"):
        tokenizer = load_tokenizer(checkpoint(write(tmp_path, name)))
        with pytest.raises(TokenizerError, match="U\\+D83D"):
            tokenizer.encode("a \ud83d b")


def test_unknown_pre_tokenizer_of_gguf_is_refused_by_name():
    metadata = gguf_metadata("llama3.json") | {"tokenizer.ggml.pre": "nobody-knows"}
    with pytest.raises(TokenizerError, match="nobody-knows"):
        load_tokenizer(checkpoint("model.gguf", "gguf", metadata))


def test_id_range(tmp_path):
    tokenizer = load_tokenizer(checkpoint(write(tmp_path, "llama3.json"), vocab_size=600))
    assert tokenizer.token_bytes(599) == b""  # a padding row: the model may sample it, it has no text
    for token_id in (-1, 600):
        with pytest.raises(TokenizerError, match="600|599"):
            tokenizer.token_bytes(token_id)
    assert tokenizer.token_bytes(np.int64(tokenizer.id_of("a"))) == b"a"
