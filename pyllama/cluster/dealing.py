"""A config and the boards' shares -> which rows each rank computes. Pure arithmetic.

Panels of 32 rows are dealt in proportion; of q, k and v, whole heads, each query head with its key/value head. Where
that is too coarse, as with more ranks than key/value heads, the query heads of one key/value head are several ranks',
each of which keeps its keys and values.
"""

from collections.abc import Sequence
from itertools import pairwise

from pyllama._kernels import PANEL
from pyllama.architecture import Config
from pyllama.decoder import Shape
from pyllama.decoder.ranks import Share
from pyllama.errors import RequestError

MOST_RANKS = 64


def deal(config: Config, shares: Sequence[float]) -> tuple[Share, ...]:
    """What each of len(shares) ranks computes; shares are in proportion to what a board can do, any positive numbers.

    A rank may get none of something. Raises RequestError for no ranks, too many, and shares that are not positive.
    """
    if not 1 <= len(shares) <= MOST_RANKS or not all(0 < share < 1e9 for share in shares):
        raise RequestError(f"hosts: {len(shares)} shares, expected 1 to {MOST_RANKS} positive numbers")
    whole = Shape.whole(config)
    heads = deal_heads(whole.attention[0].heads, whole.attention[0].kv_heads, shares)
    hidden, inner, vocab = (
        deal_rows(rows, shares) for rows in (whole.hidden_size, whole.intermediate_size, whole.vocab_size)
    )
    return tuple(Share(*of_heads, *rest) for of_heads, *rest in zip(heads, hidden, inner, vocab, strict=True))


def deal_rows(rows: int, shares: Sequence[float]) -> list[range]:
    """Consecutive rows for each share, cut at multiples of a panel: no rank is a panel away from its due."""
    panels, total = -(-rows // PANEL), sum(shares)
    cuts, given = [0], 0.0
    for share in shares[:-1]:
        given += share
        cuts.append(min(rows, max(cuts[-1], round(panels * given / total) * PANEL)))
    cuts.append(rows)
    return [range(first, last) for first, last in pairwise(cuts)]


def deal_heads(heads: int, kv_heads: int, shares: Sequence[float]) -> list[tuple[range, range]]:
    """(query heads, key/value heads) of each rank: consecutive query heads, whole groups or some of one group.

    Of all ways to cut them the one whose slowest rank is fastest, rows of q, k and v over its share; of those, the one
    with the fewest rows in all, so that no group is split for nothing.
    """
    group = heads // kv_heads

    def cost(first: int, last: int) -> int:
        """Heads' worth of rows to compute; -1 where a rank cannot have these."""
        if first == last:
            return 0
        if first // group == (last - 1) // group:
            return last - first + 2
        return -1 if first % group or last % group else last - first + 2 * (last - first) // group

    # best[last]: (slowest, rows in all, cuts) of dealing the first `last` heads to the ranks so far
    best: dict[int, tuple[float, int, tuple[int, ...]]] = {0: (0.0, 0, (0,))}
    for rank, share in enumerate(shares):
        ends = range(heads + 1) if rank < len(shares) - 1 else (heads,)
        following: dict[int, tuple[float, int, tuple[int, ...]]] = {}
        for last in ends:
            ways = [
                (max(slowest, rows / share), total + rows, (*cuts, last))
                for first, (slowest, total, cuts) in best.items()
                if first <= last and (rows := cost(first, last)) >= 0
            ]
            if ways:
                following[last] = min(ways)
        best = following
    cuts = best[heads][2]
    return [
        (range(first, last), range(first // group, -(-last // group)) if last > first else range(0))
        for first, last in pairwise(cuts)
    ]
