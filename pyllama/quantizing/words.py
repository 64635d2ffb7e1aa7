"""A model folder's tokenizer files -> its tokens, types, scores and merges as GGUF lists them.

What the files say of whole texts (what goes around them, which tokens are special, the template) is read elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyllama.errors import TokenizerError
from pyllama.tokenizer import tiktoken, token_bytes
from pyllama.tokenizer.json_scan import TokenizerFile
from pyllama.tokenizer.piece_types import BPE, BYTE, NORMAL, UNKNOWN, UNUSED
from pyllama.tokenizer.sentencepiece_model import read_pieces
from pyllama.tokenizer.split_name import split_name
from pyllama.tokenizer.splits import every_split

#: The rules of tiktoken's files, which are Meta's, under their name in GGUF.
_META = "llama-bpe"


@dataclass(slots=True)
class Words:
    """The vocabulary of one model.

    model   tokenizer.ggml.model: "gpt2" is byte-level BPE, "llama" SentencePiece
    texts   by id; None for an id that no token has
    types   (n,) int32: scored_pieces.py has their names
    scores  (n,) float32 of a SentencePiece model, else None
    merges  "left right" of a byte-level one, in order
    pre     the name of its pre-tokenizer, or None where GGUF has none for it
    unk_id  of SentencePiece's unknown piece
    """

    model: str
    texts: list[bytes | None]
    types: np.ndarray
    scores: np.ndarray | None = None
    merges: list[bytes] | None = None
    pre: str | None = None
    unk_id: int | None = None


def read_words(folder: Path, kind: str) -> Words:
    """The vocabulary of a folder of Hugging Face's or Meta's form.

    kind: of the tokenizer that is made of it: "bpe", "sentencepiece", "tiktoken"

    Raises TokenizerError.
    """
    model = next((f for f in (folder / "tokenizer.model", folder.parent / "tokenizer.model") if f.is_file()), None)
    if kind == "tiktoken" and model is not None:
        return _of_ranks(model)
    # The pieces' own scores, where they are; tokenizer.json only has the merges that were made of them.
    if kind == "sentencepiece" and model is not None and not tiktoken.is_tiktoken(model):
        return _of_pieces(model)
    file = TokenizerFile(folder / "tokenizer.json")
    return _byte_level(file) if kind == "bpe" else _of_merges(file)


def _of_pieces(path: Path) -> Words:
    pieces = read_pieces(path)
    if pieces.algorithm != BPE or pieces.charsmap:
        what = "a table of characters" if pieces.algorithm == BPE else "a Unigram model"
        raise TokenizerError(f"{path.name}: {what} has no name in a GGUF file of these models")
    texts: list[bytes | None] = [pieces.vocabulary.bytes_of(i) for i in range(pieces.vocabulary.size)]
    return Words("llama", texts, pieces.types.copy(), pieces.scores.copy(), unk_id=pieces.unk_id)


def _of_ranks(path: Path) -> Words:
    vocabulary = tiktoken.read_ranks(path)
    left, right, merged = every_split(vocabulary, path.name)
    texts = [token_bytes.in_byte_alphabet(vocabulary.bytes_of(i)).encode() for i in range(vocabulary.size)]
    order = np.lexsort((right, left, merged))  # a lower rank merges first, and the rank is the id
    merges = [texts[a] + b" " + texts[b] for a, b in zip(left[order].tolist(), right[order].tolist(), strict=True)]
    return Words("gpt2", list(texts), np.full(len(texts), NORMAL, np.int32), merges=merges, pre=_META)


def _texts(file: TokenizerFile) -> list[bytes | None]:
    size = int(file.ids.max(initial=-1)) + 1
    texts: list[bytes | None] = [None] * size
    tokens = (token for chunk in file.tokens or () for token in chunk.unpack())
    for token_id, token in zip(file.ids.tolist(), tokens, strict=True):
        texts[token_id] = token.encode()
    return texts


def _merges(file: TokenizerFile) -> Iterator[tuple[str, str]]:
    for strings in file.merges:
        found = strings.unpack()
        yield from zip(found[::2], found[1::2], strict=True)


def _byte_level(file: TokenizerFile) -> Words:
    texts = _texts(file)
    merges = [f"{left} {right}".encode() for left, right in _merges(file)]
    return Words("gpt2", texts, np.full(len(texts), NORMAL, np.int32), merges=merges, pre=split_name(file.rest))


def _of_merges(file: TokenizerFile) -> Words:
    """SentencePiece's BPE as a tokenizer.json has it: a piece is worth what the first merge that makes it is.

    SentencePiece merges whichever two neighbours make the best piece, so all merges that make one piece rank together;
    a file where they do not is refused. A piece that no merge makes is out of use: nothing else may be made into it.
    """
    texts = _texts(file)
    ids = {text: token_id for token_id, text in enumerate(texts) if text is not None}
    scores = np.zeros(len(texts), np.float32)
    types = np.full(len(texts), UNUSED, np.int32)
    last = -1
    for rank, (left, right) in enumerate(_merges(file)):
        merged = ids.get((left + right).encode(), -1)
        if merged != last:
            if merged < 0 or types[merged] == NORMAL:
                raise TokenizerError(
                    f"tokenizer.json: model.merges: {(left + right)[:40]!r} is made in two places, which the scores of "
                    "a GGUF file cannot say; get the model's tokenizer.model"
                )
            scores[merged], types[merged] = -rank, NORMAL
            last = merged
    fallback = bool(file.rest["model"].get("byte_fallback"))
    for text, token_id in ids.items():
        if fallback and len(text) == 6 and text.startswith(b"<0x") and text.endswith(b">"):
            types[token_id] = BYTE
        elif types[token_id] == UNUSED and len(text.decode()) == 1:
            types[token_id] = NORMAL
    unk_id = ids.get((file.rest["model"].get("unk_token") or "").encode())
    if unk_id is not None:
        types[unk_id] = UNKNOWN
    return Words("llama", texts, types, scores, unk_id=unk_id)
