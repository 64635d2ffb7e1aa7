"""One budget for two models: what each gets works, and together it is no more than there is."""

import pytest
import tiny

from pyllama.checkpoint import open_checkpoint
from pyllama.planning.memory import TooSmallError, make_plan
from pyllama.planning.shares import shares

BASE = 40 << 20
OPTIONS = {"context_length": 64, "kv_dtype": "f16"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    opened = []
    for name, size in (("small", 64), ("large", 512)):
        config = tiny.tiny_config(hidden_size=size, intermediate_size=4 * size, vocab_size=2000)
        opened.append(
            open_checkpoint(tiny.write_huggingface(folder / name, config, tiny.random_tensors(config, seed=1)))
        )
    yield opened
    for checkpoint in opened:
        checkpoint.close()


def taken(checkpoint, share):
    plan = make_plan(checkpoint, share, interpreter=0, **OPTIONS)
    return plan.process + plan.cache + plan.activations + plan.ring + plan.pinned


def test_the_smallest_budget_works_and_one_byte_less_does_not(checkpoints):
    for models in (checkpoints, checkpoints[:1]):
        with pytest.raises(TooSmallError, match="need") as caught:
            shares(models, 1 << 20, base=BASE, **OPTIONS)
        least = caught.value.smallest
        with pytest.raises(TooSmallError):
            shares(models, least - 1, base=BASE, **OPTIONS)
        parts = shares(models, least, base=BASE, **OPTIONS)
        assert sum(parts) + BASE == least
        assert [taken(*pair) for pair in zip(models, parts, strict=True)] <= parts


def test_a_larger_budget_is_divided_by_what_each_could_use(checkpoints):
    with pytest.raises(TooSmallError) as caught:
        shares(checkpoints, 1 << 20, base=BASE, **OPTIONS)
    least = caught.value.smallest
    lowest = shares(checkpoints, least, base=BASE, **OPTIONS)
    highest = shares(checkpoints, 1 << 40, base=BASE, **OPTIONS)
    assert highest[1] - lowest[1] > 4 * (highest[0] - lowest[0]) > 0
    before = lowest
    for budget in range(least, BASE + sum(highest) + (1 << 20), 1 << 18):
        parts = shares(checkpoints, budget, base=BASE, **OPTIONS)
        assert sum(parts) + BASE <= budget
        assert all(low <= part <= high for low, part, high in zip(before, parts, highest, strict=True))
        for pair in zip(checkpoints, parts, strict=True):
            assert taken(*pair) <= pair[1]
        before = parts
    assert before == highest


def test_what_each_could_use_holds_all_its_weights(checkpoints):
    for checkpoint, part in zip(checkpoints, shares(checkpoints, 1 << 40, base=0, **OPTIONS), strict=True):
        plan = make_plan(checkpoint, part, interpreter=0, **OPTIONS)
        assert plan.streamed == 0 and plan.max_pass_tokens == 64
