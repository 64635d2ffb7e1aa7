"""Pieces of all ranks -> wholes, over whatever carries bytes between them: what decoder/ranks.py asks for.

Once for each step of a pass every rank gives one message to every other, so that a rank that cannot go on says so in
place of its piece, and all of them end the pass at the same step.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pyllama import _kernels as kernels
from pyllama.decoder.ranks import Rows, Share, count
from pyllama.decoder.weights import Weights

_NOTHING = np.zeros(1, np.uint8)  # an empty message says that a rank has failed; one without content has a byte


class PeerFailedError(Exception):
    """Another rank has given up the pass; it tells why itself."""


class Exchange(Protocol):
    """Carries messages between ranks; each call is made by all of them.

    swap(mine, theirs)  gives mine[r] to each rank r and fills theirs[r] with what that one gives, those of this rank
                        itself left out; False where some other rank has called fail() in its place
    """

    def swap(self, mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> bool: ...

    def fail(self) -> None: ...


class GatheringRanks:
    """The ranks of a cluster, this one among them.

    nbytes, messages  sent by this rank to others so far
    """

    def __init__(self, shares: Sequence[Share], rank: int, exchange: Exchange):
        self.shares = tuple(shares)
        self.rank = rank
        self._exchange = exchange
        self._memory = np.empty(0, np.float32)
        self.nbytes = self.messages = 0

    @property
    def share(self) -> Share:
        return self.shares[self.rank]

    def embed(self, weights: Weights, name: str, token_ids: np.ndarray, out: np.ndarray) -> None:
        """out[t] = row token_ids[t] of an embedding, (T, cols), each from the rank that has it."""
        cols = out.shape[1]
        rows = [np.flatnonzero((token_ids >= of.vocab.start) & (token_ids < of.vocab.stop)) for of in self.shares]
        own = rows[self.rank]
        piece = np.empty((len(own), cols), np.float32)
        if len(own):
            weights.embedding(name, token_ids[own] - self.share.vocab.start, piece)
        received = self._staged([len(of) * cols for of in rows])
        self._swap([piece.reshape(-1)] * len(rows), received)
        received[self.rank] = piece.reshape(-1)
        for of, values in zip(rows, received, strict=True):
            out[of] = values.reshape(len(of), cols)

    def gather(self, columns: Sequence[Rows], piece: kernels.Floats, whole: kernels.Floats) -> None:
        """whole[:, columns[r]] = piece of rank r, for every rank r: on each of them."""
        mine, out = piece.array, whole.array
        _put(out, columns[self.rank], mine)
        # One token's pieces go where they belong; heads that several ranks have overlap, and wait.
        direct = len(out) == 1 and sum(map(count, columns)) == whole.cols and all(len(of) < 2 for of in columns)
        if direct:
            theirs = [out[0, of[0].start : of[0].stop] if of else out[0, :0] for of in columns]
        else:
            theirs = self._staged([count(of) * len(out) for of in columns])
        self._swap([mine.reshape(-1)] * len(columns), theirs)
        if not direct:
            for rank, of in enumerate(columns):
                if rank != self.rank:
                    _put(out, of, theirs[rank].reshape(len(out), count(of)))

    def collect(self, ranges: Sequence[range], piece: np.ndarray, whole: np.ndarray | None) -> None:
        """The same on rank 0 alone; elsewhere whole is None."""
        nothing = np.empty(0, np.float32)
        mine = [piece.reshape(-1) if rank == 0 else nothing for rank in range(len(ranges))]
        rows = 0 if whole is None else len(whole)
        theirs = self._staged([len(of) * rows for of in ranges])
        self._swap(mine, theirs)
        if whole is not None:
            theirs[self.rank] = piece.reshape(-1)
            for of, values in zip(ranges, theirs, strict=True):
                whole[:, of.start : of.stop] = values.reshape(rows, len(of))

    def fail(self) -> None:
        """This rank cannot go on with the pass: the others learn it at the step where they are, or come to."""
        self._exchange.fail()

    def _staged(self, counts: Sequence[int]) -> list[np.ndarray]:
        """So many floats for each rank, of memory that stays."""
        if sum(counts) > len(self._memory):
            self._memory = np.empty(sum(counts), np.float32)
        ends = np.cumsum(counts)
        return [self._memory[end - count : end] for end, count in zip(ends, counts, strict=True)]

    def _swap(self, mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> None:
        for rank, piece in enumerate(mine):
            if rank != self.rank:
                self.nbytes += max(1, piece.nbytes)
                self.messages += 1
        if not self._exchange.swap([_as_bytes(piece) for piece in mine], [_as_bytes(piece) for piece in theirs]):
            raise PeerFailedError


def _put(out: np.ndarray, columns: Rows, values: np.ndarray) -> None:
    begin = 0
    for of in columns:
        out[:, of.start : of.stop] = values[:, begin : begin + len(of)]
        begin += len(of)


def _as_bytes(piece: np.ndarray) -> np.ndarray:
    return piece.view(np.uint8) if piece.size else _NOTHING.copy()
