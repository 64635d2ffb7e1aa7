"""Rows and heads dealt to ranks: all of them, once, in proportion."""

from dataclasses import replace

import pytest
import tiny

from pyllama.architecture import Config
from pyllama.checkpoint.huggingface_config import huggingface_config
from pyllama.cluster.dealing import deal, deal_heads, deal_rows
from pyllama.decoder.ranks import LayerShare
from pyllama.errors import RequestError


def config(**overrides) -> Config:
    return huggingface_config(tiny.tiny_config(**overrides))


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 48, 101, 4096, 11008, 32000])
@pytest.mark.parametrize("shares", [[1], [1, 1], [1, 0.1, 0.5], [1] * 7, [0.1] * 5, [1, 1e-6]])
def test_rows_are_dealt_once_in_panels_and_in_proportion(rows, shares):
    dealt = deal_rows(rows, shares)
    assert [row for of in dealt for row in of] == list(range(rows))
    for of, share in zip(dealt, shares, strict=True):
        assert of.start % 32 == 0 or not of
        assert abs(len(of) - rows * share / sum(shares)) <= 32


@pytest.mark.parametrize(
    "heads, kv_heads", [(1, 1), (6, 3), (8, 2), (9, 3), (32, 32), (32, 8), (14, 2), (15, 5), (7, 1)]
)
@pytest.mark.parametrize("shares", [[1], [1, 1], [1, 0.1, 0.5], [1] * 7, [0.1] * 5, [1] * 16, [1, 1e-6]])
def test_query_heads_are_dealt_once_with_their_key_value_heads(heads, kv_heads, shares):
    group, dealt = heads // kv_heads, deal_heads(heads, kv_heads, shares)
    assert [head for queries, _ in dealt for head in queries] == list(range(heads))
    assert {head for _, keys in dealt for head in keys} == set(range(kv_heads))
    for queries, keys in dealt:
        assert {head // group for head in queries} == set(keys)
        if queries:
            assert len(queries) % len(keys) == 0  # as many query heads for each key/value head
            assert len(keys) == 1 or len(queries) == group * len(keys)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_groups_stay_whole_where_they_can(ranks):
    assert [len(keys) for _, keys in deal_heads(32, 8, [1] * ranks)] == [8 // ranks] * ranks


def test_more_ranks_than_key_value_heads_split_groups():
    dealt = deal_heads(32, 4, [1] * 8)
    assert [len(queries) for queries, _ in dealt] == [4] * 8
    assert [list(keys) for _, keys in dealt] == [[0], [0], [1], [1], [2], [2], [3], [3]]


def test_a_fast_board_gets_more_heads():
    assert [len(queries) for queries, _ in deal_heads(32, 32, [3, 1])] == [24, 8]


@pytest.mark.parametrize("shares", [[], [0], [1, -1], [1] * 65, [float("nan")], [float("inf")]])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(RequestError, match="hosts: "):
        deal(config(), shares)


def test_all_of_a_model_is_dealt():
    first, second = deal(config(), [1, 0.2])
    assert [share.layers[1].heads for share in (first, second)] == [range(6), range(0)]
    assert (first.vocab, second.vocab) == (range(96), range(96, 101))
    (alone,) = deal(config(), [1])
    assert alone == ((LayerShare(range(6), range(3), inner=range(80)),) * 2, range(48), range(101), range(0))


@pytest.mark.parametrize("shares", [[1], [1, 1], [1, 0.1, 0.5], [1] * 7, [0.1] * 5])
@pytest.mark.parametrize("tiled", [False, True])
def test_value_heads_are_dealt_once_with_their_key_heads(shares, tiled):
    sizes = {"linear_num_key_heads": 4, "linear_num_value_heads": 12}
    whole = config(model_type="qwen3_5_text", **sizes)
    assert whole.delta_rule is not None
    whole = replace(whole, delta_rule=whole.delta_rule._replace(tiled=tiled))
    dealt = [share.layers[0] for share in deal(whole, shares)]
    heads = [[head for rows in of.values for head in rows] for of in dealt]
    assert sorted(head for of in heads for head in of) == list(range(12))
    for of, mine in zip(dealt, heads, strict=True):
        assert mine == sorted(mine)
        assert {head % 4 if tiled else head // 3 for head in mine} == set(of.keys)


@pytest.mark.parametrize("family", tiny.MIXTURES)
def test_every_rank_has_rows_of_every_expert(family):
    dealt = deal(config(model_type=family, moe_intermediate_size=128, intermediate_size=128), [1, 1, 2])
    assert [share.layers[-1].expert for share in dealt] == [range(32), range(32, 64), range(64, 128)]
