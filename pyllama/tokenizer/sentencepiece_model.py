"""tokenizer.model as SentencePiece writes it: a protobuf message, to pieces, scores and types.

Reads the few fields that matter of the wire format itself, so that a damaged file is an error and never more: the
`sentencepiece` library, which runs the pieces, aborts the process on some. Models whose pieces are words or single
characters are refused by name: no model of the family has one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyllama.errors import TokenizerError
from pyllama.tokenizer.files import read_whole
from pyllama.tokenizer.piece_types import BPE, UNIGRAM
from pyllama.tokenizer.vocabulary import MAX_TOKENS, Vocabulary

MAX_NBYTES = 64 << 20
_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass(frozen=True, slots=True)
class Pieces:
    """What a model file says, or a GGUF file's metadata.

    vocabulary, scores, types   one of each id; types as GGUF numbers them (1 normal, 2 unknown, 3 control,
                                4 user-defined, 5 unused, 6 byte), which are SentencePiece's own
    unk_id, bos_id, eos_id      None where the model has none
    space_prefix                a space goes before the text
    collapse_spaces             runs of spaces become one, spaces at the ends none
    algorithm                   BPE or UNIGRAM
    charsmap                    table of characters to normalize by, or nothing
    """

    vocabulary: Vocabulary
    scores: np.ndarray
    types: np.ndarray
    unk_id: int | None
    space_prefix: bool
    collapse_spaces: bool
    algorithm: int = BPE
    charsmap: bytes = b""
    bos_id: int | None = None
    eos_id: int | None = None


def read_pieces(path: Path) -> Pieces:
    """The pieces of a model file. Raises TokenizerError."""
    where = path.name
    texts: list[bytes] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(read_whole(path, MAX_NBYTES), where):
        if number == 1:
            piece = dict(_fields(value, where))
            text, score = piece.get(1), piece.get(2, b"\0\0\0\0")
            if not isinstance(text, bytes) or not text or not isinstance(score, bytes) or len(score) != 4:
                raise TokenizerError(f"{where}: piece {len(texts)} is no text with a score")
            texts.append(text)
            scores.append(struct.unpack("<f", score)[0])
            kind = piece.get(3, 1)
            if not isinstance(kind, int) or not 1 <= kind <= 6:
                raise TokenizerError(f"{where}: piece {len(texts) - 1} has type {kind!r}, expected 1 to 6")
            types.append(kind)
            if len(texts) > MAX_TOKENS:
                raise TokenizerError(f"{where}: more than {MAX_TOKENS} pieces")
        elif number == 2:
            trainer.update(_fields(value, where))
        elif number == 3:
            normalizer.update(_fields(value, where))
    if not texts:
        raise TokenizerError(f"{where}: no pieces, expected a SentencePiece model or tiktoken's lines")
    model_type = trainer.get(3, 1)
    if not isinstance(model_type, int) or model_type not in (UNIGRAM, BPE):
        name = _MODEL_TYPES.get(model_type, str(model_type)) if isinstance(model_type, int) else "?"
        raise TokenizerError(
            f"{where}: SentencePiece model type {name!r} is not supported, expected 'bpe' or 'unigram'"
        )
    charsmap = normalizer.get(2, b"")
    if not isinstance(charsmap, bytes):
        raise TokenizerError(f"{where}: precompiled_charsmap is a number, expected a table (damaged?)")
    if not normalizer.get(5, 1):
        raise TokenizerError(f"{where}: escape_whitespaces false is not supported")
    if trainer.get(24, 0):
        raise TokenizerError(f"{where}: treat_whitespace_as_suffix is not supported")

    def special(number: int, default: int, kind: int) -> int | None:
        token_id = trainer.get(number, default)
        if isinstance(token_id, int) and 0 <= token_id < len(types) and types[token_id] == kind:
            return token_id
        return None

    return Pieces(
        Vocabulary(b"".join(texts), np.fromiter(map(len, texts), np.int64, len(texts))),
        np.array(scores, np.float32),
        np.array(types, np.int32),
        special(40, 0, 2),
        bool(normalizer.get(3, 1)),
        bool(normalizer.get(4, 1)),
        model_type,
        charsmap,
        special(41, 1, 3),
        special(42, 2, 3),
    )


def _fields(data: int | bytes, where: str) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a message; numbers as int, everything longer as bytes."""
    if not isinstance(data, bytes):
        raise TokenizerError(f"{where}: a number where a message is expected (damaged?)")
    at = 0

    def varint() -> int:
        nonlocal at
        result = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise TokenizerError(f"{where}: a number that does not end at byte {at} (truncated?)")
            byte = data[at]
            at += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result
            shift += 7

    while at < len(data):
        key = varint()
        wire, number = key & 7, key >> 3
        if wire == 0:
            yield number, varint()
            continue
        if wire not in (1, 2, 5) or number == 0:
            raise TokenizerError(f"{where}: field {number} of wire type {wire} is not protobuf (damaged?)")
        size = {1: 8, 5: 4}.get(wire) or varint()
        if size > len(data) - at:
            raise TokenizerError(f"{where}: field {number} of {size} bytes at byte {at}, {len(data) - at} are left "
                                 "(truncated?)")  # fmt: skip
        yield number, data[at : at + size]
        at += size
