"""Writes the tokenizers of this folder, trained on a little text, and what the reference libraries make of hard texts.

Run with an interpreter that has `tokenizers` and `sentencepiece` installed:  python make_golden.py
  *.json           tokenizer.json files of about 500 tokens
  pieces.model     a SentencePiece model
  expected.json    {"texts": [...], "ids": {file: {"special": [ids of each text], "plain": [...]}}}
"""

from __future__ import annotations

import io
import json
import pydoc
import random
import textwrap
from pathlib import Path

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

HERE = Path(__file__).resolve().parent
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
LLAMA3 = WORDS + r"\p{N}{1,3}|" + TAIL
QWEN2 = WORDS + r"\p{N}|" + TAIL
SPECIALS = ("<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>")
OTHER = "naïve café Straße ЖЗ Привет мир 漢字かな 안녕 مرحبا नमस्ते 👩‍👩‍👧 e\u0301 ½ ٣ 12345 \t\r\n"


def corpus() -> list[str]:
    """English prose and code from the standard library's own documentation, and a line of other scripts."""
    modules = (textwrap, json, random, io)
    return [pydoc.plain(pydoc.render_doc(module)) for module in modules] + [OTHER] * 8


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])


def train(pre_tokenizer: pre_tokenizers.PreTokenizer, *, whole_alphabet: bool = True, **model: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if whole_alphabet else []
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS])
    return tokenizer


def llama3() -> Tokenizer:
    tokenizer = train(split(LLAMA3), ignore_merges=True)
    begin = tokenizer.token_to_id(SPECIALS[0])
    template = processors.TemplateProcessing(
        single=f"{SPECIALS[0]} $A", pair=f"{SPECIALS[0]} $A $B", special_tokens=[(SPECIALS[0], begin)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def qwen2() -> Tokenizer:
    tokenizer = train(split(QWEN2))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens(
        [
            AddedToken("<left>", lstrip=True, normalized=False),
            AddedToken("<right>", rstrip=True, normalized=False),
            AddedToken("word", single_word=True, normalized=False),
            AddedToken("caf\u00e9", normalized=True),
        ]
    )
    return tokenizer


def smollm() -> Tokenizer:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return train(
        pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        whole_alphabet=False,
    )


def pieces() -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in corpus() for line in text.splitlines() if line.strip()),
        model_writer=written, model_type="bpe", vocab_size=600, byte_fallback=True, character_coverage=0.999,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True,
        split_digits=True, user_defined_symbols=["<|tool|>", "@@"], control_symbols=["[INST]", "[/INST]"],
        allow_whitespace_only_pieces=True, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return written.getvalue()


def sentencepiece_json(model: bytes, modern: bool) -> Tokenizer:
    """The model as transformers would write it: the old way with a normalizer, the new way with Metaspace."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = processor.get_piece_size()
    texts = [processor.id_to_piece(index) for index in range(size)]
    vocabulary = {text: index for index, text in enumerate(texts)}
    ordinary = [
        index for index in range(size)
        if not (processor.is_control(index) or processor.is_unknown(index) or processor.is_byte(index))
    ]  # fmt: skip
    known = {texts[index] for index in ordinary}
    ranked = []
    for index in ordinary:
        text = texts[index]
        for cut in range(1, len(text)):
            if text[:cut] in known and text[cut:] in known:
                ranked.append((-processor.get_score(index), index, text[:cut], text[cut:]))
    merges = [(left, right) for _, _, left, right in sorted(ranked)]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if modern:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    control = [texts[index] for index in range(size) if processor.is_control(index) or processor.is_unknown(index)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return tokenizer


def texts() -> list[str]:
    """Short texts that have gone wrong in one tokenizer or another."""
    chooser = random.Random(4)
    space = "\t\n\v\f\r\x1c\x1f \x85\xa0\u1680\u2003\u2028\u3000\u200b\ufeff"
    ranges = ((0x20, 0x7E), (0xA0, 0x17F), (0x300, 0x36F), (0x400, 0x45F), (0x590, 0x5FF), (0x900, 0x97F),
              (0xE00, 0xE5B), (0x1100, 0x11FF), (0x2070, 0x2BFF), (0x3040, 0x30FF), (0x4E00, 0x4EFF),
              (0xAC00, 0xACFF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0x2EBF0, 0x2EC20),
              (0, 0x1F), (0xE000, 0xE00F))  # fmt: skip
    parts = [*SPECIALS, "<left>", " <right> ", "word", "words", "café", "cafe\u0301", "<s>", "</s>", "[INST]", "<unk>",
             "<|tool|>", "@@", "<0x41>", "<|im_", "end|>", " ", "  ", "\n", "'s", "'S", "'\u017f", "'LL", "don't",
             "12345", "٣٤", "½", "x", "▁", "▁▁", "👩‍👩‍👧", "🏳️‍🌈", "\u0301\u0316", "ﬁ", "İ", "the",
             " the", "Ġ", "\r\n", "Å"]  # fmt: skip
    found = ["", " ", "  ", "\n", "a", " a", "▁", "▁a", "\0", "Hello, world!", "  two  spaces ", "a" * 70, " " * 70,
             "def f(x):\n\treturn x  # ok\r\n\r\n", "1234567890", "e\u0301" * 20, "\u00ad\u200d\ufeff"]  # fmt: skip
    for _ in range(40):
        found.append("".join(chooser.choice(parts) for _ in range(chooser.randint(2, 8))))
    for _ in range(30):
        low, high = chooser.choice(ranges)
        found.append("".join(
            chooser.choice([chr(chooser.randint(low, high)), chr(chooser.randint(low, high)), chooser.choice(space)])
            for _ in range(chooser.randint(2, 14))
        ))  # fmt: skip
    found.append(bytes(chooser.randrange(256) for _ in range(60)).decode("latin-1"))
    return found


def main() -> None:
    model = pieces()
    (HERE / "pieces.model").write_bytes(model)
    tokenizers = {
        "llama3.json": llama3(), "qwen2.json": qwen2(), "smollm.json": smollm(),
        "spm-old.json": sentencepiece_json(model, False), "spm-new.json": sentencepiece_json(model, True),
    }  # fmt: skip
    hard = texts()
    ids: dict[str, dict[str, list[list[int]]]] = {}
    for name, tokenizer in tokenizers.items():
        tokenizer.save(str(HERE / name), pretty=name == "qwen2.json")
        ids[name] = {}
        for key, ignored in (("special", False), ("plain", True)):
            tokenizer.encode_special_tokens = ignored
            ids[name][key] = [tokenizer.encode(text, add_special_tokens=False).ids for text in hard]
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids["pieces.model"] = {"plain": [processor.encode(text) for text in hard]}
    expected = {"texts": hard, "ids": ids}
    (HERE / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
