"""One budget for several models at once: the least each of them works with, and the rest by what each could use."""

from collections.abc import Sequence

from pyllama.checkpoint.outline import Described
from pyllama.errors import BudgetError
from pyllama.machine.memory import mb
from pyllama.planning.memory import TooSmallError, make_plan

_UNLIMITED = 1 << 50  # bytes: every plan has all it can use


def shares(
    models: Sequence[Described], budget: int, *, context_length: int, kv_dtype: str = "f16", base: int
) -> list[int]:
    """What each model may take of `budget` bytes, `base` of which are taken by what none of them is: Python, texts.

    A share covers what a plan counts besides the interpreter, so that make_plan() with a budget of the share and the
    interpreter's bytes works. All shares and base together are at most the budget; whoever could use more than that
    gets the same part of what it could use beyond its least. Raises TooSmallError, which names the smallest budget.
    """
    needs = [_needs(model, context_length, kv_dtype) for model in models]
    least = base + sum(low for low, _ in needs)
    if least > budget:
        raise TooSmallError(
            least,
            f"memory: {mb(budget)} MB, {'this model needs' if len(models) == 1 else 'these models need'} at least"
            f" {BudgetError.enough_mb(least)} MB with a context of {context_length}; a shorter context needs less",
        )
    more, wanted = budget - least, sum(high - low for low, high in needs)
    return [high if more >= wanted else low + (high - low) * more // wanted for low, high in needs]


def _needs(model: Described, context_length: int, kv_dtype: str) -> tuple[int, int]:
    """The least bytes that a model works with, and the most it can use, besides the interpreter's."""
    plan = make_plan(model, _UNLIMITED, context_length=context_length, kv_dtype=kv_dtype, interpreter=0)
    most = plan.besides + plan.pinned
    try:
        make_plan(model, 1, context_length=context_length, kv_dtype=kv_dtype, interpreter=0)
    except TooSmallError as error:
        return error.smallest, most
    raise BudgetError("memory: a model that needs none")  # a plan counts some megabytes of slack for each
