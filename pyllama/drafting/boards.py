"""Who drafts for a model that several boards have together: whole, in the front end's process, on the first of them."""

import os
from collections.abc import Sequence
from typing import Any

from pyllama.checkpoint import Checkpoint
from pyllama.cluster.dealing import deal
from pyllama.cluster.hosts import Host
from pyllama.cluster.own_part import shares_by_place
from pyllama.decoder import Shape
from pyllama.drafting.opening import AUTO, choose_drafter
from pyllama.errors import BudgetError
from pyllama.machine.memory import default_budget
from pyllama.planning.drafting import DrafterPlan
from pyllama.planning.memory import make_plan
from pyllama.streaming.local import LocalCheckpoint

_MANY = 64  # boards, of whose memory nobody knows; a drafter that was named is tried all the same


def choose_for_boards(
    draft: str | os.PathLike[str],
    checkpoint: Checkpoint,
    tokenizer: Any,
    boards: Sequence[Host],
    memory: int | None,
    *,
    front: int,
    **options: Any,
) -> DrafterPlan | None:
    """As choose_drafter(). Of `auto`, the boards are taken to be like this one, which has to have room for the drafter
    beside its own rows.

    memory   bytes for each board, or None: what this one has
    front    bytes of what is here already
    options  of the model's plan, context_length among them
    """
    of_each = memory or default_budget() // sum(board.name == boards[0].name for board in boards)
    if draft != AUTO:
        return choose_drafter(draft, checkpoint, tokenizer, _MANY * of_each, interpreter=front, **options)
    budgets = [board.memory or of_each for board in boards]
    share = deal(checkpoint.config, shares_by_place(boards))[boards[0].place]
    own, shape = LocalCheckpoint(checkpoint, share), Shape.of_share(checkpoint.config, share)
    ours = {"interpreter": 2 * front, "shape": shape, **options}  # rank 0's process beside this one
    try:
        if not make_plan(own, budgets[0], **ours).streamed:
            return None
        # Where this board's part is all there is here, it alone is looked at.
        many = 1 if checkpoint.share else len(boards)
        drafted = choose_drafter(
            AUTO, checkpoint, tokenizer, sum(budgets[:many]), boards=many, interpreter=many * front, **options
        )
        if drafted is not None:
            taken = drafted.plan
            make_plan(own, budgets[0], drafter=taken.drafter, branches=taken.branches, **ours)
    except BudgetError:  # of the model's own, the ranks tell
        return None
    return drafted
