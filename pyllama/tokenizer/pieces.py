"""SentencePiece pieces, out of a tokenizer.model or GGUF metadata, to the parts of a tokenizer."""

from __future__ import annotations

import numpy as np

from pyllama.tokenizer import charsmap as characters
from pyllama.tokenizer import steps
from pyllama.tokenizer.added_tokens import AddedToken
from pyllama.tokenizer.piece_types import BYTE, CONTROL, UNKNOWN, USER_DEFINED
from pyllama.tokenizer.scored_pieces import ScoredPieces
from pyllama.tokenizer.sentencepiece import byte_pieces
from pyllama.tokenizer.sentencepiece_model import Pieces
from pyllama.tokenizer.tokenizer import Parts


def from_pieces(pieces: Pieces, where: str) -> Parts:
    """A tokenizer of SentencePiece pieces, as the `sentencepiece` library would run them.

    Each stretch of text between control tokens gets its own space prefix. A user-defined piece written with spaces,
    as GGUF files have them, is searched before spaces become marks.
    """
    vocabulary, types = pieces.vocabulary, pieces.types
    byte_ids = byte_pieces(vocabulary)
    if byte_ids is not None and not (types[byte_ids] == BYTE).all():
        byte_ids = None
    model = ScoredPieces(pieces, byte_ids=byte_ids, where=where)
    added = tuple(
        AddedToken(
            token_id,
            vocabulary.bytes_of(token_id).decode("utf-8", "replace"),
            special=bool(types[token_id] != USER_DEFINED),
            normalized=bool(types[token_id] == USER_DEFINED) and b" " not in vocabulary.bytes_of(token_id),
        )
        for token_id in np.flatnonzero(np.isin(types, (UNKNOWN, CONTROL, USER_DEFINED))).tolist()
    )
    decoded = {token_id: bytes([byte]) for byte, token_id in enumerate(byte_ids or ())}
    normalizers: list[steps.Normalizer] = []
    if pieces.charsmap:
        normalizers.append(characters.normalizer(pieces.charsmap, where))
    if pieces.collapse_spaces:
        normalizers.append(steps.collapse_spaces)
    if pieces.space_prefix:
        normalizers.append(steps.prepend(" "))
    normalizers.append(steps.replace(" ", steps.SPACE_MARK))
    return Parts(
        "sentencepiece",
        vocabulary,
        model,
        added,
        decoded,
        steps.in_turn(normalizers),
        spaces=True,
        strip_space=pieces.space_prefix,
        normalized_contents={token.id: token.content for token in added if token.normalized},
    )
