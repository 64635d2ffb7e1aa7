"""A config and the boards' shares -> which rows each rank computes. Pure arithmetic.

Panels of 32 rows are dealt in proportion; of q, k and v, whole heads, each query head with its key/value head. Where
that is too coarse, as with more ranks than key/value heads, the query heads of one key/value head are several ranks',
each of which keeps its keys and values. Heads of the gated delta rule are dealt as those of attention, of experts the
rows of each: every token then keeps all ranks busy alike, whichever experts it goes to.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

from pyllama._kernels import PANEL
from pyllama.architecture import Config, Layer, layers_of
from pyllama.architecture.layer import Attention, GatedDelta, Mlp, ShortConv
from pyllama.decoder.ranks import LayerShare, Rows, Share
from pyllama.errors import RequestError

MOST_RANKS = 64


def deal(config: Config, shares: Sequence[float]) -> tuple[Share, ...]:
    """What each of len(shares) ranks computes; shares are in proportion to what a board can do, any positive numbers.

    A rank may get none of something. Raises RequestError for no ranks, too many, and shares that are not positive.
    """
    if not 1 <= len(shares) <= MOST_RANKS or not all(0 < share < 1e9 for share in shares):
        raise RequestError(f"hosts: {len(shares)} shares, expected 1 to {MOST_RANKS} positive numbers")
    rows = cache(lambda count: deal_rows(count, shares))
    heads = cache(lambda queries, keys: deal_heads(queries, keys, shares))
    layers = [_deal_layer(layer, rows, heads) for layer in layers_of(config)]
    per_layer = rows(config.num_hidden_layers * config.hidden_size_per_layer_input)
    whole = zip(rows(config.hidden_size), rows(config.vocab_size), per_layer, strict=True)
    return tuple(Share(tuple(of[rank] for of in layers), *rest) for rank, rest in enumerate(whole))


def _deal_layer(
    layer: Layer,
    rows: Callable[[int], list[range]],
    heads: Callable[[int, int], list[tuple[range, range]]],
) -> list[LayerShare]:
    """Of each rank; rows, heads: deal_rows() and deal_heads() with the shares."""
    mixer, experts = layer.mixer, layer.experts
    dealt: dict[str, Sequence[range] | Sequence[Rows]] = {}
    if isinstance(mixer, Attention):
        queries, keys = zip(*heads(mixer.heads, mixer.kv_heads), strict=True)
        dealt |= {"heads": queries, "kv_heads": keys}
    elif isinstance(mixer, ShortConv):
        dealt["channels"] = rows(mixer.conv.channels)
    else:
        of_heads = heads(mixer.value_heads, mixer.key_heads)
        dealt |= {"keys": [keys for _, keys in of_heads], "values": [_values(mixer, *of) for of in of_heads]}
    if isinstance(layer.mlp, Mlp):
        dealt["inner"] = rows(layer.mlp.gate.rows)
    if experts:
        dealt["expert"] = rows(experts.gate.rows)
    return [LayerShare(**dict(zip(dealt, of, strict=True))) for of in zip(*dealt.values(), strict=True)]


def _values(mixer: GatedDelta, values: range, keys: range) -> Rows:
    """Value heads, numbered so that those of a key head are neighbours -> by the numbers that they have."""
    if not values or not mixer.tiled:
        return (values,) if values else ()
    of_all = mixer.key_heads
    group = mixer.value_heads // of_all
    begin = keys.start * group
    turns = range(values.start - begin, values.stop - begin) if len(keys) == 1 else range(group)
    found = [range(turn * of_all + keys.start, turn * of_all + keys.stop) for turn in turns]
    if len(keys) == of_all:  # neighbours again
        return (range(found[0].start, found[-1].stop),)
    return tuple(found)


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
