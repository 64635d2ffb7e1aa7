"""SentencePiece's table of characters (nmt_nfkc and its like) to a normalizer, run by the `sentencepiece` library.

The library follows the table's trie without looking where it leads, so what is no trie is refused here. The table is a
double array as Darts-clone writes it (4 bytes a unit: label, leaf bits, offset to the children), then the strings.
"""

from __future__ import annotations

import numpy as np

from pyllama.errors import TokenizerError
from pyllama.tokenizer.scored_pieces import message
from pyllama.tokenizer.steps import Normalizer
from pyllama.tokenizer.vocabulary import utf8_of

_DEPTH = 32  # the library keeps that many prefixes of one match; the longest of nmt_nfkc has half as many bytes
_LEAF = 1 << 31


def normalizer(table: bytes, where: str) -> Normalizer:
    """The normalizer a table describes: no prefix, spaces as they are. Raises TokenizerError."""
    _check(table, where)
    try:
        from sentencepiece import SentencePieceNormalizer
    except ImportError as error:
        raise TokenizerError(
            f"{where}: its normalizer needs the package sentencepiece >= 0.2 ({str(error)[:80]})"
        ) from None
    spec = message(1, b"table") + message(2, table) + b"\x18\x00\x20\x00\x28\x00"
    try:
        library = SentencePieceNormalizer(
            model_proto=message(3, spec),
            add_dummy_prefix=False,
            escape_whitespaces=False,
            remove_extra_whitespaces=False,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise TokenizerError(f"{where}: sentencepiece does not take its normalizer: {reason[:120]}") from None

    def normalize(text: str) -> str:
        utf8_of(text)  # what is none is refused
        return library.Normalize(text)  # type: ignore[no-any-return]

    return normalize


def _check(table: bytes, where: str) -> None:
    """Raise TokenizerError unless every walk stays inside, is short and ends at a string that ends."""
    nbytes = int.from_bytes(table[:4], "little")
    strings = len(table) - 4 - nbytes
    if not 0 < nbytes <= len(table) - 4 or nbytes % 1024 or strings < 1 or table[-1]:
        raise TokenizerError(f"{where}: precompiled_charsmap is no table of characters (damaged?)")
    units = np.frombuffer(table, "<u4", nbytes // 4, 4).astype(np.int64)
    places = np.arange(len(units))
    label, inner = units & 0xFF, units < _LEAF
    children = places ^ (units >> 10 << (units >> 6 & 8))
    strays = inner & ((children | 0xFF) >= len(units))
    strays |= inner & (label == 0) & (units != 0) & (places != 0)  # a zero byte of a text is to lead nowhere
    ends = inner & (units >> 8 & 1 == 1) & ~strays
    values = units[children[ends]]
    if strays.any() or (values < _LEAF).any() or (values - _LEAF >= strings).any():
        raise TokenizerError(f"{where}: precompiled_charsmap leads out of itself (damaged?)")
    first = np.frombuffer(table, np.uint8, offset=4 + nbytes)[values - _LEAF]
    try:
        table[4 + nbytes :].decode()
    except UnicodeDecodeError:
        first = np.full(1, 0x80)
    if (first & 0xC0 == 0x80).any():
        raise TokenizerError(f"{where}: precompiled_charsmap has a string that is no UTF-8 text (damaged?)")
    above = np.where(inner & (label > 0), places ^ label, -1)
    reached = np.zeros(1, np.int64)
    for _ in range(_DEPTH):
        reached = np.flatnonzero(np.isin(above, children[reached]))
        if not len(reached):
            return
    raise TokenizerError(f"{where}: precompiled_charsmap replaces more than {_DEPTH} bytes at once (damaged?)")
