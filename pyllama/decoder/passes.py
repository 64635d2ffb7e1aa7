"""One pass as plain data: which tokens stand where, which pages are read and written, which rows of logits are wanted.

A Pass is integers only, so it can be kept, compared, and sent to whoever holds a share of the model. build() makes it
from sequences and the tokens they go on with. Several branches of one text share a pass: a node of their tree is
computed once, reads through the pages of one branch it is part of, and is written into the page of each. So attention
meets every branch as it meets a sequence of its own, and the bits are those of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pyllama.decoder.kv_cache import CachedSequence, KVCache
from pyllama.decoder.page_pool import POSITIONS
from pyllama.decoder.states import StateSteps, steps_of
from pyllama.errors import RequestError

Segment = tuple[CachedSequence, Sequence[int]]

_NONE = np.zeros((0, 2), np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One over T tokens of S sequences.

    token_ids  (T,) int64
    positions  (T,) int64, each token's in its sequence
    sequences  (T,) int32, the row of `pages` that the token attends through
    pages      (S, max_pages) int32, numbers of the sequences' pages, -1 beyond the last
    writes     (W, 2) int32, a token and a page into which its keys and values go, at its position's place
    copies     (C, 2) int32, pages to be copied before anything else, from and to, in order
    rows       (R,) int64, tokens whose logits are wanted, ascending
    page_count pages that there must be: whoever runs the pass adds what is missing
    steps      what layers with a state do, or None in a model without
    """

    token_ids: np.ndarray
    positions: np.ndarray
    sequences: np.ndarray
    pages: np.ndarray
    writes: np.ndarray
    copies: np.ndarray
    rows: np.ndarray
    page_count: int
    steps: StateSteps | None = None


def build(
    cache: KVCache, segments: Sequence[Segment], wanted: Sequence[int], max_tokens: int
) -> tuple[Pass, list[np.ndarray]]:
    """The pass that appends each segment's tokens to its sequence, with pages reserved for them.

    segments    (sequence, token ids), no sequence twice; forks of one text have common beginnings computed once
    wanted      how many of each segment's last tokens get a row of logits
    max_tokens  that one takes

    Returns the pass and, for each segment, the indices of its rows among the pass's: forks may have rows in common.
    It is to be run next. Raises RequestError for too many tokens and ContextOverflowError for a sequence that cannot
    hold its own; then no sequence has changed.
    """
    token_ids, positions, owners, paths = _tree(segments)
    if len(token_ids) > max_tokens:
        raise RequestError(f"forward: {len(token_ids)} tokens in one pass, expected at most {max_tokens}")
    try:
        for sequence, ids in segments:
            sequence.reserve(sequence.length + len(ids))
        steps = _steps(cache, segments, paths, len(token_ids))
    except BaseException:
        for sequence, _ in segments:
            sequence.release_unused()
        raise
    ends = [path[len(path) - count :] for path, count in zip(paths, wanted, strict=True)]
    rows = _joined(ends)
    shared = len(token_ids) < sum(map(len, paths))
    if shared:
        rows = np.flatnonzero(np.bincount(rows))
    copies = cache.take_copies()
    planned = Pass(
        token_ids=token_ids,
        positions=positions,
        sequences=owners,
        pages=_joined([sequence.table for sequence, _ in segments]).copy(),
        writes=_writes(segments, positions, paths),
        copies=np.array(copies, np.int32) if copies else _NONE,
        rows=rows,
        page_count=len(cache.pages),
        steps=steps,
    )
    return planned, [np.searchsorted(rows, end) for end in ends] if shared else _counted(ends)


def _steps(cache: KVCache, segments: Sequence[Segment], paths: list[np.ndarray], tokens: int) -> StateSteps | None:
    if cache.states is None:
        return None
    texts = [
        (sequence.history, path.tolist(), sequence.provisional)
        for (sequence, _), path in zip(segments, paths, strict=True)
        if sequence.history is not None
    ]
    return steps_of(cache.states, texts, tokens)


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _counted(parts: list[np.ndarray]) -> list[np.ndarray]:
    """The index of each number of the parts when they stand one after the other."""
    indices, first = [], 0
    for part in parts:
        indices.append(np.arange(first, first + len(part)))
        first += len(part)
    return indices


def _tree(segments: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Token ids, positions and owners of the nodes, and the nodes of each segment's tokens."""
    token_ids: list[int] = []
    positions: list[int] = []
    owners: list[int] = []
    paths: list[np.ndarray] = []
    trees: dict[object, dict[tuple[int, int], int]] = {}  # of each text that forks share: (parent, token id) -> node
    for owner, (sequence, ids) in enumerate(segments):
        text, first = sequence.text, len(token_ids)
        if text is None or len(segments) == 1:
            token_ids += ids
            positions += range(sequence.length, sequence.length + len(ids))
            paths.append(np.arange(first, len(token_ids)))
        else:
            tree, path, node = trees.setdefault(text, {}), [], -1
            for position, token_id in enumerate(map(int, ids), sequence.length):
                node = tree.setdefault((node, token_id), len(token_ids))
                if node == len(token_ids):
                    token_ids.append(token_id)
                    positions.append(position)
                path.append(node)
            paths.append(np.array(path))
        owners += [owner] * (len(token_ids) - first)
    return np.array(token_ids, np.int64), np.array(positions, np.int64), np.array(owners, np.int32), paths


def _writes(segments: Sequence[Segment], positions: np.ndarray, paths: list[np.ndarray]) -> np.ndarray:
    """Every node goes into the pages of all segments it is part of; their pages at its position differ."""
    writes = np.empty((sum(map(len, paths)), 2), np.int32)
    writes[:, 0] = _joined(paths)
    pages = [sequence.table[0, positions[path] // POSITIONS] for (sequence, _), path in zip(segments, paths)]
    writes[:, 1] = _joined(pages)
    return writes
