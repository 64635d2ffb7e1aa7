"""Tokens known by their names: what ends a text, what must not, markers of templates; from every form of file."""

import base64
import json
from types import SimpleNamespace

import numpy as np
import pytest

from pyllama.tokenizer import load_tokenizer, markers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "?"}]
LETTERS = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
# llama.cpp ends at all but the last three, whatever their types.
ENDS = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> "
    "<\uff5cend\u2581of\u2581sentence\uff5c> [e~[ <|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> "
    "<|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|> <|eot|> <|eom|> <|end_of_turn|> <|endofturn|>"
).split()
NO_ENDS = (
    "<|im_start|> <|start_header_id|> <|end_header_id|> <|fim_middle|> <|fim_prefix|> <pad> <unk> <s> "
    "<|begin_of_text|> <unused7> <|endofprompt|> <end_of_turn <|user|> [INST] <start_of_turn> <|channel|> "
    "<|message|> <im_end> <\uff5cUser\uff5c> EOT eos <|python_tag|> </think> <tool_call>"
).split()


def load(form, data=None, path="model", vocab_size=None):
    config = SimpleNamespace(vocab_size=vocab_size, model_type="llama", bos_token_id=None, eos_token_ids=())
    return load_tokenizer(SimpleNamespace(path=path, format=form, metadata=data or {}, config=config))


def byte_level(special, merges=(), **more):
    """A GGUF file's metadata. special: {text: type}; merges: pairs of letters, each also a normal token."""
    tokens = [*special, *LETTERS, *dict.fromkeys(left + right for left, right in merges)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([*special.values()] + [NORMAL] * (len(tokens) - len(special)), "<i4"),
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
    } | {f"tokenizer.{'' if key == 'chat_template' else 'ggml.'}{key}": value for key, value in more.items()}


def sentencepiece(special, pieces=(), **more):
    kinds = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL} | {f"<0x{byte:02X}>": BYTE for byte in range(256)}
    kinds |= dict.fromkeys(["\u2581", *"abcdefghio?", *pieces], NORMAL) | special
    tokens, types = list(kinds), list(kinds.values())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": -np.arange(len(tokens), dtype="<f4"),
        "tokenizer.ggml.token_type": np.array(types, "<i4"),
    } | {f"tokenizer.{'' if key == 'chat_template' else 'ggml.'}{key}": value for key, value in more.items()}


def tokenizer_json(folder, added, vocabulary=(), merges=(), settings=None):
    """A folder. added: {text: special}; vocabulary: texts that are in the model's vocabulary and nowhere else."""
    tokens = [*LETTERS, *vocabulary, *dict.fromkeys(left + right for left, right in merges)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": len(tokens) + i, "content": text, "special": special, **flags}
                         for i, (text, special) in enumerate(added.items())],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": [*map(list, merges)]},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings or {}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED, NORMAL, UNUSED])
@pytest.mark.parametrize("metadata", [byte_level, sentencepiece])
def test_names_end_whatever_the_type(metadata, kind):
    """Whatever eos is, too; each by itself, for some are no ends beside others."""
    for name in ENDS:
        tokenizer = load("gguf", metadata({"<|first|>": CONTROL, name: kind}, eos_token_id=3, add_bos_token=False))
        token_id = tokenizer.id_of(name)
        assert token_id in tokenizer.eos_token_ids, name
        assert tokenizer.eos_token_ids[0] == 3, "the file's own comes first"
        assert tokenizer.decode([token_id]) == "", name
        assert tokenizer.encode(name, add_special_tokens=False, parse_special=True) == [token_id]
        assert token_id not in tokenizer.encode(name), "and no user's text becomes it"


@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED, NORMAL])
@pytest.mark.parametrize("metadata", [byte_level, sentencepiece])
def test_other_names_do_not_end(metadata, kind):
    tokenizer = load("gguf", metadata({"<|first|>": CONTROL, **dict.fromkeys(NO_ENDS, kind)}))
    ends = {tokenizer.token_bytes(token_id).decode() for token_id in tokenizer.eos_token_ids}
    assert ends <= {"</s>"}, "of SentencePiece"


@pytest.mark.parametrize("special", [True, False])
def test_names_end_in_a_folder(tmp_path, special):
    for name in ENDS:
        tokenizer = load("huggingface", path=tokenizer_json(tmp_path, {"<s>": True, name: special}))
        assert tokenizer.eos_token_ids == (tokenizer.id_of(name),), name
        assert tokenizer.decode(tokenizer.eos_token_ids) == ""
    tokenizer = load("huggingface", path=tokenizer_json(tmp_path, dict.fromkeys(NO_ENDS, special)))
    assert tokenizer.eos_token_ids == ()
    tokenizer = load("huggingface", path=tokenizer_json(tmp_path, {}, vocabulary=["<|im_end|>"]))
    assert tokenizer.eos_token_ids == (tokenizer.id_of("<|im_end|>"),), "only in model.vocab"


def test_names_end_in_folders_of_older_files(tmp_path):
    """tokenizer.model, Llama 3's and SentencePiece's, with what was added to it beside it."""
    lines = [b"%s %d" % (base64.b64encode(bytes([byte])), byte) for byte in range(256)]
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(lines))
    tokenizer = load("meta", path=tmp_path)
    names = {tokenizer.token_bytes(token_id).decode() for token_id in tokenizer.eos_token_ids}
    assert names == {"<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"}
    decoder = {"256": {"content": "<|im_end|>", "special": False}, "257": {"content": "<|im_start|>", "special": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    assert load("huggingface", path=tmp_path).eos_token_ids == (256,)


def test_tokens_of_added_tokens_json(tmp_path):
    """As fine-tunes of Llama 2 came: two markers after 32,000 pieces, in a file of their own."""
    from golden_tokenizers import GOLDEN

    (tmp_path / "tokenizer.model").write_bytes((GOLDEN / "pieces.model").read_bytes())
    size = load("huggingface", path=tmp_path).vocab_size
    added = {"<|im_end|>": size, "<|im_start|>": size + 1}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    tokenizer = load("huggingface", path=tmp_path)
    assert tokenizer.vocab_size == size + 2
    assert {size, 2} == set(tokenizer.eos_token_ids)  # 2 is </s>
    assert tokenizer.encode("<|im_start|>", add_special_tokens=False, parse_special=True) == [size + 1]
    assert load("huggingface", path=tmp_path, vocab_size=size).eos_token_ids == (2,)


MERGES = [("<", "/"), ("</", "s"), ("</s", ">")]


def test_text_that_looks_like_an_end_is_text(tmp_path):
    """Qwen2.5 has a token </s> made by merges, from the HTML it was trained on."""
    for tokenizer in (
        load("gguf", byte_level({"<|endoftext|>": CONTROL}, MERGES, eos_token_id=0)),
        load("huggingface", path=tokenizer_json(tmp_path, {"<|endoftext|>": True}, merges=MERGES)),
    ):
        text = tokenizer.id_of("</s>")
        assert text not in tokenizer.eos_token_ids
        assert text not in tokenizer.special_ids and tokenizer.decode([text]) == "</s>"
    pieces = load("gguf", sentencepiece({}, ["<", "e", "o", "s", ">", "<e", "<eo", "<eos", "<eos>"]))
    assert pieces.id_of("<eos>") not in pieces.eos_token_ids


def test_text_that_the_files_name_as_an_end_is_one(tmp_path):
    tokenizer = load("gguf", byte_level({"<|x|>": CONTROL}, MERGES, eos_token_id=1 + len(LETTERS) + 2))
    end = tokenizer.id_of("</s>")
    assert tokenizer.eos_token_ids == (end,)
    assert tokenizer.decode([end]) == "" and end not in tokenizer.encode("</s>")
    folder = tokenizer_json(tmp_path, {}, merges=MERGES, settings={"eos_token": "</s>"})
    tokenizer = load("huggingface", path=folder)
    assert tokenizer.eos_token_ids == (tokenizer.id_of("</s>"),)
    assert tokenizer.eos_token_ids[0] not in tokenizer.encode("</s>")


def test_html_of_gemma_is_text():
    """Gemma cuts tags of HTML out of the text; </s> strikes through there."""
    tags = dict.fromkeys(["<s>", "</s>", "<td>", "</td>", "<strong>", "</strong>"], USER_DEFINED)
    tokenizer = load("gguf", byte_level({"<eos>": CONTROL, **tags}, eos_token_id=0))
    assert tokenizer.eos_token_ids == (0,)
    assert tokenizer.decode(tokenizer.encode("a</s>b")) == "a</s>b"


@pytest.mark.parametrize(
    ("names", "no_end"),
    [
        (["<|end|>", "<|return|>", "<|call|>"], "<|end|>"),  # gpt-oss
        (["<|end|>", "<|calls|>", "<|flush|>"], "<|end|>"),  # Solar Open
        (["<|end|>", "<|return|>"], None),
        (["<|end|>", "<|call|>"], None),
        (["<|end|>", "<|endoftext|>"], None),  # Phi
        (["</s>", "<|tool_response>", "<turn|>"], "</s>"),  # Gemma 4
        (["</s>", "<|im_end|>"], None),  # ChatML over Llama 2
    ],
)
def test_ends_that_are_none_beside_others(names, no_end):
    tokenizer = load("gguf", byte_level({"<|x|>": CONTROL, **dict.fromkeys(names, CONTROL)}, eos_token_id=0))
    ends = [tokenizer.token_bytes(token_id).decode() for token_id in tokenizer.eos_token_ids]
    assert sorted(ends) == sorted({"<|x|>", *names} - {no_end})
    if no_end:
        named = load("gguf", byte_level({no_end: CONTROL, **dict.fromkeys(names, CONTROL)}, eos_token_id=0))
        assert named.id_of(no_end) in named.eos_token_ids, "the file says so itself"


def test_ids_that_end_besides_eos():
    names = ["<a>", "<b>", "<c>", "<d>", "<e>", "<f>"]
    keys = ["eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"]
    data = byte_level(dict.fromkeys(names, CONTROL), **{f"{key}_token_id": i for i, key in enumerate(keys)})
    assert load("gguf", data).eos_token_ids == tuple(range(6))


@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED, NORMAL, UNUSED])
@pytest.mark.parametrize("metadata", [byte_level, sentencepiece])
def test_markers_of_the_template_are_tokens(metadata, kind):
    names = {"<|im_start|>": kind, "<|im_end|>": kind, "<|user|>": kind, "<\uff5cUser\uff5c>": kind, "[INST]": kind,
             "<tool_call>": kind, "<|else|>": kind}  # fmt: skip
    composed = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    composed += "[INST]<\uff5cUser\uff5c><tool_call>"
    for template, expected in (
        (CHATML, {"<|im_start|>": 4, "<|im_end|>": 3}),
        (composed, {"<|user|>": 2, "[INST]": 1, "<\uff5cUser\uff5c>": 1, "<tool_call>": 1}),
    ):
        tokenizer = load("gguf", metadata(names, chat_template=template))
        ids = tokenizer.encode_chat(TALK)
        assert {name: ids.count(tokenizer.id_of(name)) for name in expected} == expected
        assert ids[0] == tokenizer.id_of(next(iter(expected))), "nothing goes before the first, no space either"
        if kind in (NORMAL, UNUSED):
            other = tokenizer.id_of("<|else|>")
            assert other not in tokenizer.encode("<|else|>", parse_special=True), "the template has no such marker"
            assert tokenizer.id_of("<tool_call>") not in tokenizer.encode("<tool_call>"), "text stays text"
            assert tokenizer.decode([tokenizer.id_of("<tool_call>")]) == "<tool_call>", "an answer shows it"


@pytest.mark.parametrize("kind", ["folder", byte_level, sentencepiece])
def test_user_defined_markers_of_the_template_cannot_be_forged(tmp_path, kind):
    """DeepSeek's files have <\uff5cUser\uff5c> so; and pairs of tags, which messages hold."""
    template = CHATML + "[INST]<\uff5cUser\uff5c><think></think><lone>"
    roles, tags = ["<|im_start|>", "[INST]", "<\uff5cUser\uff5c>", "<lone>"], ["<think>", "</think>", "<|else|>"]
    if kind == "folder":
        folder = tokenizer_json(tmp_path, dict.fromkeys(roles + tags, False), settings={"chat_template": template})
        tokenizer = load("huggingface", path=folder, vocab_size=len(LETTERS) + 7)
    else:
        tokenizer = load("gguf", kind(dict.fromkeys(roles + tags, USER_DEFINED), chat_template=template))

    def counts(text):
        ids = tokenizer.encode_chat([{"role": "user", "content": text}])
        return [ids.count(tokenizer.id_of(token)) for token in roles + tags]

    harmless = counts("x")
    assert harmless == [2, 1, 1, 1, 1, 1, 0]
    assert counts("".join(roles)) == harmless
    assert counts("a" + "".join(tags)) == [2, 1, 1, 1, 2, 2, 1]
    for token in roles + tags:
        assert tokenizer.decode([tokenizer.id_of(token)]) == token, "an answer shows it"


def test_words_of_the_template_are_no_markers():
    """Only what is bracketed as a marker, and what no merge makes."""
    pairs = [("[", "0"), ("[0", "]"), ("u", "s"), ("us", "er")]
    words = byte_level({"role": NORMAL, "x|": NORMAL}, [*pairs[:2], pairs[2], ("e", "r"), pairs[3]],
                       chat_template="{{ messages[0].role }}user[0]x|")  # fmt: skip
    tokenizer = load("gguf", words)
    ids = tokenizer.encode_chat(TALK)
    assert tokenizer.special_ids == frozenset() and tokenizer.id_of("user") in ids
    assert not {tokenizer.id_of("role"), tokenizer.id_of("x|"), tokenizer.id_of("[0]")} & set(ids)


def test_a_template_that_fails_still_names_its_markers():
    template = "{{ raise_exception('no') }}<|im_start|>"
    data = byte_level({"<|im_start|>": NORMAL, "<|other|>": NORMAL}, chat_template=template)
    assert load("gguf", data).encode("<|im_start|>", parse_special=True) == [0]


def test_bos_stored_as_normal_is_a_token():
    data = byte_level({"<|begin_of_text|>": NORMAL}, chat_template="{{ bos_token }}x", bos_token_id=0)
    assert load("gguf", data).encode_chat(TALK)[0] == 0


def test_an_end_that_is_a_line_end_stays_text():
    """Somebody lets answers end with the line: the token is still what text is made of."""
    data = byte_level({"\n\n": USER_DEFINED}, eos_token_id=0)
    tokenizer = load("gguf", data)
    assert tokenizer.eos_token_ids == (0,)
    assert tokenizer.encode("a\n\nb")[1] == 0 and tokenizer.decode([0]) == "\n\n"


@pytest.mark.parametrize("value", [-1, 4294967295, "size", 1 << 40])
@pytest.mark.parametrize("name", "bos eos eot eom unknown padding seperator cls mask fim_pre fim_suf fim_mid fim_pad "
                         "fim_rep fim_sep prefix suffix middle".split())  # fmt: skip
@pytest.mark.parametrize("metadata", [byte_level, sentencepiece])
def test_special_ids_that_name_no_token_are_as_if_absent(metadata, name, value):
    good = metadata({"<|im_end|>": CONTROL}, chat_template=CHATML)
    value = len(good["tokenizer.ggml.tokens"]) if value == "size" else value
    broken = good | {f"tokenizer.ggml.{name}_token_id": value}
    for data in (good, broken):
        data["tokenizer.ggml.add_bos_token"] = name != "bos"
    absent, tokenizer = load("gguf", good), load("gguf", broken)
    assert tokenizer.eos_token_ids == absent.eos_token_ids
    assert tokenizer.bos_token_id == absent.bos_token_id
    assert tokenizer.encode("abc<|im_end|>", parse_special=True) == absent.encode("abc<|im_end|>", parse_special=True)


def test_bos_is_found_by_name_where_its_id_is_broken():
    data = byte_level({"<|begin_of_text|>": CONTROL}, bos_token_id=1 << 20) | {"tokenizer.ggml.pre": "llama-bpe"}
    tokenizer = load("gguf", data)
    assert tokenizer.bos_token_id == 0 and tokenizer.encode("a")[0] == 0
    tokenizer = load("gguf", data | {"tokenizer.ggml.add_bos_token": False})
    assert tokenizer.bos_token_id is None and tokenizer.encode("a")[0] != 0


@pytest.mark.parametrize("value", [-1, 4294967295, 9999, [9999, 300], []])
def test_ends_of_generation_config_that_name_no_token(tmp_path, value):
    tokenizer_json(tmp_path, {"<|x|>": True, "<|im_end|>": True})
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    tokenizer = load("huggingface", path=tmp_path, vocab_size=len(LETTERS) + 2)
    ends = {len(LETTERS) + 1} | {end for end in (value if isinstance(value, list) else []) if end == 300}
    assert set(tokenizer.eos_token_ids) == {end for end in ends if end < len(LETTERS) + 2}


@pytest.mark.parametrize("special", [True, False])
def test_added_tokens_beyond_the_rows(tmp_path, special):
    rows = len(LETTERS) + 1
    plain = load("huggingface", path=tokenizer_json(tmp_path, {"<s>": True}), vocab_size=rows)
    beyond = dict.fromkeys(["<pad>", "<|im_end|>", "[x]"], special)
    settings = {"pad_token": "<pad>", "eos_token": "<|im_end|>", "unk_token": "[x]"}
    tokenizer = load("huggingface", path=tokenizer_json(tmp_path, {"<s>": True, **beyond}, settings=settings),
                     vocab_size=rows)  # fmt: skip
    text = "a <pad> b<|im_end|>[x]<s>"
    for parse_special in (True, False):
        assert tokenizer.encode(text, parse_special=parse_special) == plain.encode(text, parse_special=parse_special)
    assert tokenizer.vocab_size == rows and tokenizer.eos_token_ids == plain.eos_token_ids == ()
    assert tokenizer.id_of("<pad>") is None


@pytest.mark.parametrize("kind", [CONTROL, USER_DEFINED])
@pytest.mark.parametrize("metadata", [byte_level, sentencepiece])
def test_tokens_of_gguf_beyond_the_rows(metadata, kind):
    """The list of tokens is longer than the embedding, as where a padding token was added to the list alone."""
    good = metadata({})
    rows = len(good["tokenizer.ggml.tokens"])
    wide = dict(good)
    wide["tokenizer.ggml.tokens"] = [*good["tokenizer.ggml.tokens"], "<pad>"]
    wide["tokenizer.ggml.token_type"] = np.append(good["tokenizer.ggml.token_type"], kind)
    wide["tokenizer.ggml.padding_token_id"] = rows
    if "tokenizer.ggml.scores" in good:
        wide["tokenizer.ggml.scores"] = np.append(good["tokenizer.ggml.scores"], np.float32(0))
    tokenizer, expected = load("gguf", wide, vocab_size=rows), load("gguf", good, vocab_size=rows)
    assert tokenizer.encode("a<pad>b", parse_special=True) == expected.encode("a<pad>b", parse_special=True)
    assert tokenizer.vocab_size == rows


def test_exact_repeats_of_added_tokens(tmp_path):
    folder = tokenizer_json(tmp_path, {"<s>": True, "<|x|>": False})
    expected = load("huggingface", path=folder).encode("<s>a<|x|>", parse_special=True)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] = content["added_tokens"] * 3 + content["added_tokens"][:1]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert load("huggingface", path=folder).encode("<s>a<|x|>", parse_special=True) == expected


@pytest.mark.parametrize("prefix", [True, False])
def test_user_defined_pieces_with_spaces(prefix):
    tokens = ["  ", "   ", "good morning", " ab", "ab ", "\n\n", "\u2581\u2581i"]
    data = sentencepiece(dict.fromkeys(tokens, USER_DEFINED), add_space_prefix=prefix, add_bos_token=False)
    tokenizer = load("gguf", data)
    for text, token, times in (
        ("a good morning b", "good morning", 1),
        ("good morninggood morning", "good morning", 2),
        ("a  b", "  ", 1), ("a   b", "   ", 1), ("a b", "  ", 0), ("a b", "   ", 0),
        ("c ab", " ab", 1), ("ab", " ab", 0), ("ab c", "ab ", 1), ("goodmorning", "good morning", 0),
        ("a\n\nb", "\n\n", 1),
    ):  # fmt: skip
        ids = tokenizer.encode(text)
        assert ids.count(tokenizer.id_of(token)) == times, text
        assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_names_are_unique():
    assert len(set(markers.ENDS)) == len(markers.ENDS)
