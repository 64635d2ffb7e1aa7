"""Seconds a token of boards that share a model: the slowest decides, talk comes on top, proposed shares level them."""

import pytest
import tiny

from pyllama.checkpoint import open_checkpoint
from pyllama.cluster.dealing import deal
from pyllama.decoder import Shape
from pyllama.planning.boards import GIGABIT, Link, propose, talk_seconds, together
from pyllama.planning.memory import make_plan
from pyllama.planning.time import OF_DRAM, Rates, forecast
from pyllama.streaming.local import LocalCheckpoint

RATES = Rates(1.0, 10.0, 50.0, 2.0)
PLENTY = 1 << 40


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "head_dim": 64, "vocab_size": 2048}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    folder = tiny.write_random(tmp_path_factory.mktemp("m") / "m", **heads, **sizes)
    with open_checkpoint(folder) as opened:
        yield opened


def on(checkpoint, shares, rates, link=GIGABIT, budget=PLENTY):
    dealt = deal(checkpoint.config, shares)
    parts = [LocalCheckpoint(checkpoint, share) for share in dealt]
    shapes = [Shape.of_share(checkpoint.config, share) for share in dealt]
    return together(parts, shapes, [budget] * len(shares), rates, link, context_length=256)


def test_one_board_takes_what_a_plan_predicts(checkpoint):
    alone = together([checkpoint], [Shape.whole(checkpoint.config)], [PLENTY], [RATES], GIGABIT, context_length=256)
    plan = make_plan(checkpoint, PLENTY, context_length=256)
    assert alone.token_s == pytest.approx(forecast(checkpoint, plan, RATES).token_s)
    assert alone.talk_s == 0


def test_two_boards_take_half_and_their_talk(checkpoint):
    alone, two = (on(checkpoint, [1] * n, [RATES] * n) for n in (1, 2))
    assert two.token_s - two.talk_s == pytest.approx(alone.token_s / 2, rel=0.1)
    assert two.talk_s == talk_seconds(checkpoint, 2, GIGABIT) > 0


def test_the_slowest_decides(checkpoint):
    slow = Rates(1.0, 2.5, 50.0, 2.0)
    made = on(checkpoint, [1, 1], [RATES, slow])
    assert made.token_s - made.talk_s == made.boards[1].token_s > 3 * made.boards[0].token_s
    assert made.boards[1].bound == "memory"


def test_talk_counts_messages_and_bytes(checkpoint):
    layers = checkpoint.config.num_hidden_layers
    assert talk_seconds(checkpoint, 3, Link(1.0, 1e9)) == pytest.approx(4 * layers + 2, rel=1e-6)
    floats = layers * (512 + 2 * 512 + 1024) + 512 + 2048
    assert talk_seconds(checkpoint, 2, Link(0.0, 1e-9 * 4)) == pytest.approx(floats / 2)


@pytest.mark.parametrize("fast", [1, 2, 4])
def test_shares_are_as_the_boards_are_fast(fast):
    rates = [Rates(1.0, 10.0 * fast, 50.0 * fast, 2.0), RATES]
    budgets = [PLENTY, PLENTY]
    assert propose(10**9, 1.0, budgets, rates, [50.0 * fast, 50.0]) == [1.0, pytest.approx(1 / fast)]


def test_a_board_with_little_memory_gets_what_it_can_keep_and_a_little_of_its_disk():
    shares = propose(10**9, 1.0, [10**9, 10**8], [RATES, RATES], [50.0, 50.0])
    kept, seconds = 10**8, 0.8e9 / (10e9 * OF_DRAM)
    assert shares[0] == 1.0 and kept / 0.9e9 < shares[1] < (kept + 1.2e9 * seconds) / 0.8e9
