"""What a drafter and the branches of proposed tokens take is part of the plan, out of the weights that stay."""

import dataclasses

import pytest
from published_shapes import LLAMA_7B

from pyllama.architecture.tensors import flop
from pyllama.checkpoint.outline import outline
from pyllama.planning.memory import TooSmallError, make_plan
from pyllama.planning.time import OF_DISK, Rates, enough, forecast, pass_seconds

RATES = Rates(disk_gb_s=0.5, dram_gb_s=10, gflop_s=50, pack_gb_s=2)
MODEL = outline(LLAMA_7B, "BF16")
OPTIONS = {"context_length": 512, "interpreter": 50 << 20}


@pytest.mark.parametrize("drafter, branches", [(400 << 20, 0), (0, 96 << 20), (400 << 20, 96 << 20)])
def test_reserved_bytes_come_out_of_the_weights_that_stay(drafter, branches):
    for budget in (2 << 30, 4 << 30):
        without = make_plan(MODEL, budget, **OPTIONS)
        plan = make_plan(MODEL, budget, drafter=drafter, branches=branches, **OPTIONS)
        assert (plan.drafter, plan.branches) == (drafter, branches)
        assert plan.besides + plan.pinned == budget == without.besides + without.pinned
        assert plan == dataclasses.replace(
            without, pinned=without.pinned - drafter - branches, drafter=drafter, branches=branches
        )
        assert plan.streamed > without.streamed


def test_a_budget_too_small_for_the_reserve_names_it_and_the_smallest():
    reserved = {"drafter": 300_000_000, "branches": 50_000_000}
    with pytest.raises(TooSmallError, match=r"ring \d+, drafter 300, branches 50\)") as caught:
        make_plan(MODEL, 400_000_000, **reserved, **OPTIONS)
    smallest = caught.value.smallest
    assert make_plan(MODEL, smallest, **reserved, **OPTIONS).besides <= smallest
    with pytest.raises(TooSmallError):
        make_plan(MODEL, smallest - 1, **reserved, **OPTIONS)
    with pytest.raises(TooSmallError) as caught:
        make_plan(MODEL, 1, **OPTIONS)
    assert caught.value.smallest + 350_000_000 == smallest and "drafter" not in str(caught.value)


@pytest.mark.parametrize("most", [1, 16, 64, 200, 512])
def test_small_passes_leave_more_for_weights(most):
    whole, small = (make_plan(MODEL, 4 << 30, max_pass_tokens=n, **OPTIONS) for n in (512, most))
    assert small.max_pass_tokens == most
    assert small.pinned - whole.pinned == whole.activations - small.activations >= 0
    for budget in range(400_000_000, 2_000_000_000, 200_000_000):
        assert make_plan(MODEL, budget, max_pass_tokens=most, **OPTIONS).max_pass_tokens <= most


def test_enough_memory_counts_what_is_reserved():
    most = enough(MODEL, drafter=1 << 29, branches=1 << 26, **OPTIONS)
    assert most == enough(MODEL, **OPTIONS) + (1 << 29) + (1 << 26)
    assert make_plan(MODEL, most, drafter=1 << 29, branches=1 << 26, **OPTIONS).streamed == 0


def test_a_pass_that_wants_more_logits_computes_more():
    plan = make_plan(MODEL, 20 << 30, **OPTIONS)
    slow = dataclasses.replace(RATES, gflop_s=1e-3)
    one, many = (pass_seconds(MODEL, plan, slow, 33, 256, rows=rows) for rows in (1, 33))
    assert many[1] == one[1] == "compute"
    assert many[0] - one[0] == pytest.approx(32 * 2 * 32000 * 4096 / 1e6)
    assert flop(LLAMA_7B, 33, 256, 33) - flop(LLAMA_7B, 33, 256) == 32 * 2 * 32000 * 4096


def test_the_seconds_of_a_pass_are_those_of_the_forecast():
    plan = make_plan(MODEL, 2 << 30, **OPTIONS)
    predicted = forecast(MODEL, plan, RATES)
    assert pass_seconds(MODEL, plan, RATES, 1, 256) == (predicted.token_s, "disk")
    assert pass_seconds(MODEL, plan, RATES, 1, 256, read=10**9)[0] == pytest.approx(1e9 / (0.5e9 * OF_DISK))
