"""`--draft` in, a drafter out: which one is meant, whether it may draft for this model, and what it takes.

off      none
lookup   look-up in the text alone, which takes nothing
MODEL    a path or a name: a model with the same tokenizer
"""

from dataclasses import dataclass
from typing import Any

from pyllama.checkpoint import open_checkpoint
from pyllama.decoder.buffers import buffers_nbytes
from pyllama.decoder.exclusive import ExclusiveDecoder
from pyllama.decoder.shape import Shape
from pyllama.drafting.model_drafter import ModelDrafter
from pyllama.drafting.vocabularies import check_same
from pyllama.planning.memory import LEAST_SLOTS, make_plan
from pyllama.streaming import StreamedWeights
from pyllama.tokenizer import load_tokenizer

#: Tokens of a drafter's passes: of a prompt it reads; groups of nodes are far smaller.
PASS_TOKENS = 128
#: Pages of its cache beside those of the text: what branches of a tree take.
BRANCH_PAGES = 64
#: To what probabilities of copies of few bits are raised: these are less sure than they are right.
COPY_POWER = 1.5


@dataclass(frozen=True, slots=True)
class Opened:
    """A drafter and the bytes that it takes."""

    drafter: ModelDrafter
    nbytes: int


def open_drafter(
    name: str, path: Any, tokenizer: Any, *, context_length: int, contexts: int = 1, copy: bool = False
) -> Opened:
    """A model as drafter for texts of a tokenizer; its weights are read by its first pass, and stay.

    name      for people
    path      of the model, as open_checkpoint() takes it
    contexts  texts that it reads side by side
    copy      whether it is a copy, of few bits, of the model it drafts for

    Raises UnsupportedError for another vocabulary, and what open_checkpoint() raises.
    """
    checkpoint = open_checkpoint(path)
    try:
        if not copy:
            check_same(tokenizer, load_tokenizer(checkpoint), name)
        context_length = min(context_length, checkpoint.config.max_position_embeddings)
        plan = make_plan(checkpoint, 1 << 50, context_length=context_length, contexts=contexts, interpreter=0)
        weights = StreamedWeights(checkpoint, slots=LEAST_SLOTS, room=plan.room)
        decoder = ExclusiveDecoder(
            checkpoint.config,
            weights,
            context_length=context_length,
            max_pass_tokens=PASS_TOKENS,
            rope_interleaved=checkpoint.rope_interleaved,
        )
        pages = plan.cache // decoder.cache.page_nbytes + BRANCH_PAGES
        decoder.cache.limit(pages)
        dtypes = {tensor.dtype for tensor in checkpoint.tensors.values()}
        activations = buffers_nbytes(Shape.whole(checkpoint.config), PASS_TOKENS, dtypes)
        nbytes = plan.weights + pages * decoder.cache.page_nbytes + activations

        def close() -> None:
            weights.close()
            checkpoint.close()

        return Opened(ModelDrafter(name, decoder, close, power=COPY_POWER if copy else 1.0), nbytes)
    except BaseException:
        checkpoint.close()
        raise
