"""Merge tables of vocabularies that have none: two neighbours merge if their concatenation is a token.

That is the rule of tiktoken, lowest id first. Every split of every token into two tokens becomes an entry, and the
same machine as for ranked merges runs it.
"""

from __future__ import annotations

import numpy as np

from pyllama.errors import TokenizerError
from pyllama.tokenizer.vocabulary import Spans, Vocabulary

_MAX_LENGTH = 1024
_MAX_SPLITS = 1 << 24  # Llama 3 has 830,000 to try
_CHUNK = 8192


def every_split(vocabulary: Vocabulary, where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """left, right, merged, (m,) each: the ids of every two tokens that make a third."""
    parts = [np.zeros((3, 0), np.int64)]
    tried = 0
    for first in range(0, vocabulary.size, _CHUNK):
        data = [vocabulary.bytes_of(token_id) for token_id in range(first, min(first + _CHUNK, vocabulary.size))]
        blob = np.frombuffer(b"".join(data), np.uint8)
        sizes = np.fromiter(map(len, data), np.int64, len(data))
        longest = int(sizes.max())
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
            left = vocabulary.find_spans(spans, starts[index], np.full(len(index), cut))
            right = vocabulary.find_spans(spans, starts[index] + cut, sizes[index] - cut)
            keep = (left >= 0) & (right >= 0)
            parts.append(np.stack([left[keep], right[keep], first + index[keep]]))
    left, right, merged = np.concatenate(parts, axis=1)
    return left, right, merged
