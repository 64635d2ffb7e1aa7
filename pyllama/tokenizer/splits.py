"""Merge tables of vocabularies that have none: two neighbours merge if their concatenation is a token.

That is the rule of tiktoken, lowest id first. Every split of every token into two tokens becomes an entry, and the
same machine as for ranked merges runs it.
"""

from __future__ import annotations

import numpy as np

from pyllama.errors import TokenizerError
from pyllama.tokenizer.merges import MergeTable
from pyllama.tokenizer.vocabulary import Spans, Vocabulary

_MAX_LENGTH = 1024
_MAX_SPLITS = 1 << 24  # Llama 3 has 830,000 to try
_CHUNK = 8192


def merge_every_split(vocabulary: Vocabulary, tokens: np.ndarray, rank: np.ndarray, where: str) -> MergeTable:
    """The merge table of a vocabulary.

    tokens  (m,) ids that take part, ascending
    rank    (size,) rank of each id as the result of a merge
    """
    left, right, merged = every_split(vocabulary, tokens, where)
    return MergeTable(left, right, merged, rank[merged], vocabulary.size)


def every_split(vocabulary: Vocabulary, tokens: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """left, right, merged, (m,) each: the ids of every two tokens that make a third.

    tokens  (m,) ids that take part, ascending
    """
    takes_part = np.zeros(vocabulary.size, bool)
    takes_part[tokens] = True
    parts = [np.zeros((3, 0), np.int64)]
    tried = 0
    for first in range(0, len(tokens), _CHUNK):
        chunk = tokens[first : first + _CHUNK]
        data = [vocabulary.bytes_of(token_id) for token_id in chunk.tolist()]
        blob = np.frombuffer(b"".join(data), np.uint8)
        sizes = np.fromiter(map(len, data), np.int64, len(data))
        longest = int(sizes.max(initial=0))
        tried += len(blob)
        if longest > _MAX_LENGTH or tried > _MAX_SPLITS:
            raise TokenizerError(
                f"{where}: a token of {longest} bytes, {tried} bytes so far; expected at most {_MAX_LENGTH} and "
                f"{_MAX_SPLITS}"
            )
        starts = np.cumsum(sizes) - sizes
        spans = Spans(blob)
        for cut in range(1, longest):
            index = np.flatnonzero(sizes > cut)
            halves = []
            for begin, length in (
                (starts[index], np.full(len(index), cut)),
                (starts[index] + cut, sizes[index] - cut),
            ):
                found = vocabulary.find_spans(spans, begin, length).astype(np.int64)
                found[(found >= 0) & ~takes_part[found]] = -1
                halves.append(found)
            keep = (halves[0] >= 0) & (halves[1] >= 0)
            merged = chunk[index[keep]]
            parts.append(np.stack([halves[0][keep], halves[1][keep], merged]))
    left, right, merged = np.concatenate(parts, axis=1)
    return left, right, merged
