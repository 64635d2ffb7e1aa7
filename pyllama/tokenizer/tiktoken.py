"""tokenizer.model as Llama 3 has it: tiktoken's text, a base64 token and its rank on each line.

Meta keeps the special tokens and the pattern in its code (llama3/tokenizer.py); they are here.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

import numpy as np

from pyllama.errors import TokenizerError, reason_of
from pyllama.tokenizer import pattern as patterns
from pyllama.tokenizer import steps
from pyllama.tokenizer.added_tokens import AddedToken
from pyllama.tokenizer.bpe import ByteLevelModel
from pyllama.tokenizer.files import read_whole
from pyllama.tokenizer.merges import MergeTable
from pyllama.tokenizer.splits import every_split
from pyllama.tokenizer.tokenizer import Parts
from pyllama.tokenizer.vocabulary import MAX_TOKENS, Vocabulary

MAX_NBYTES = 64 << 20
_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]{1,7}")
_LLAMA3_SPECIALS = 256
# Llama 3 and 3.1: the second list names what 3.1 took out of the reserved ones.
_NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}


def is_tiktoken(path: Path) -> bool:
    """Whether a file begins with a line of tiktoken's."""
    try:
        with path.open("rb") as file:
            first = file.readline(8192)
    except OSError as error:
        raise TokenizerError(f"{path}: {reason_of(error)}") from None
    return _LINE.fullmatch(first.rstrip(b"\r\n")) is not None


def llama3_specials(first: int) -> tuple[AddedToken, ...]:
    """The 256 special tokens of Llama 3.1, which follow the ordinary ones; 3.0 only reserves more of them."""
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(_LLAMA3_SPECIALS))
    return tuple(AddedToken(first + index, _NAMED.get(index) or next(reserved)) for index in range(_LLAMA3_SPECIALS))


def read_ranks(path: Path) -> Vocabulary:
    """The vocabulary of a tiktoken file, ranks as ids. Raises TokenizerError."""
    where = path.name
    blob = bytearray()
    lengths: list[int] = []
    for number, line in enumerate(read_whole(path, MAX_NBYTES).splitlines()):
        if not line:
            continue
        if _LINE.fullmatch(line) is None or len(lengths) >= MAX_TOKENS:
            raise TokenizerError(f"{where}: line {number + 1} is {line[:60]!r}, expected base64 and a rank")
        encoded, rank = line.split(b" ")
        try:
            token = base64.b64decode(encoded, validate=True)
        except binascii.Error as error:
            raise TokenizerError(f"{where}: line {number + 1}: bad base64 {encoded[:60]!r}: {error}") from None
        if int(rank) != len(lengths) or not token:
            raise TokenizerError(f"{where}: line {number + 1} has rank {int(rank)}, expected {len(lengths)}")
        blob += token
        lengths.append(len(token))
    return Vocabulary(bytes(blob), np.array(lengths, np.int64))


def read(path: Path, specials: tuple[AddedToken, ...] | None = None) -> Parts:
    """The tokenizer of a Llama 3 tokenizer.model; `specials` in place of Meta's own table."""
    vocabulary = read_ranks(path)
    missing = [byte for byte in range(256) if vocabulary.find(bytes([byte])) < 0]
    if missing:
        raise TokenizerError(f"{path.name}: {len(missing)} of the 256 single bytes have no token")
    added = llama3_specials(vocabulary.size) if specials is None else specials
    left, right, merged = every_split(vocabulary, path.name)
    merges = MergeTable(left, right, merged, merged, vocabulary.size)
    model = ByteLevelModel(vocabulary, merges, ignore_merges=True)
    by_name = {token.content: token.id for token in added}
    bos = by_name.get("<|begin_of_text|>")
    return Parts(
        "tiktoken",
        vocabulary,
        model,
        added,
        {token.id: token.content.encode() for token in added},
        pre_tokenizer=steps.split_isolated(patterns.compile_pattern(patterns.LLAMA3, path.name)),
        before=() if bos is None else (bos,),
        bos_token_id=bos,
        eos_token_ids=tuple(by_name[name] for name in ("<|end_of_text|>", "<|eot_id|>") if name in by_name),
    )
