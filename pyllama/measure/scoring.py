"""Paths or names of one or two models, a text and a memory budget -> estimates of the text's perplexity.

Opens what is needed in the order in which it can fail: files, tokenizers, the text's tokens, memory; nothing is read of
the weights until the first estimate is asked for. What an estimate is, perplexity.py knows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from pyllama.checkpoint import Checkpoint, open_checkpoint
from pyllama.closing import Closing
from pyllama.errors import RequestError
from pyllama.hub import resolve
from pyllama.loading import assemble, check_computing, set_threads
from pyllama.machine.memory import budget_of, resident_nbytes
from pyllama.measure.perplexity import Estimate, check_same_tokens, estimates, row_counts, rows_nbytes, text_tokens
from pyllama.measure.windows import CONTEXT, Windows
from pyllama.model import Model
from pyllama.planning.memory import TooSmallError, telling_enough
from pyllama.planning.shares import shares
from pyllama.tokenizer import load_tokenizer

#: Of the budget, what rows of logits may take: a quarter, since with all of a window's it takes one pass and not two.
_ROWS_SHARE = 4


class Scoring(Closing):
    """A context manager, and an iterator over estimates: one a window, the last of which is the result.

    model, against  the models; against is None without a reference
    windows         how the text is cut
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        text: str,
        *,
        against: str | os.PathLike[str] | None = None,
        context: int | None = None,
        stride: int | None = None,
        chunks: int | None = None,
        memory: int | str | None = None,
        kv_dtype: str = "f16",
        threads: int | None = None,
        pre_tokenizer: str | None = None,
        on_layer: Callable[[int], None] | None = None,
    ):
        """
        model     path or name, as load() takes it
        text      what is scored
        against   path or name of the reference, whose tokens have to be the same
        context   tokens of a window; default: 512, or what the models have if that is less
        stride    None, or from one window's start to the next
        chunks    windows at most; default: all of the text
        memory    for all of it, both models and their logits
        on_layer  of both models

        The others are load()'s; pre_tokenizer holds for both, as far as they are GGUF files. Raises what load() does,
        and RequestError for a text that is too short and for models whose tokens differ.
        """
        check_computing(kv_dtype, threads)
        budget = budget_of(memory)
        with ExitStack() as opened:
            names = [model] if against is None else [model, against]
            checkpoints = [opened.enter_context(open_checkpoint(resolve(name))) for name in names]
            context = _context(context, checkpoints)
            tokenizers = [
                load_tokenizer(checkpoint, pre_tokenizer if number == 0 or checkpoint.format == "gguf" else None)
                for number, checkpoint in enumerate(checkpoints)
            ]
            self._ids = text_tokens(tokenizers[0], text)
            self.windows = Windows(len(self._ids), context, stride, chunks)
            vocab_size = checkpoints[0].config.vocab_size
            if against is not None:
                check_same_tokens(tokenizers[0], tokenizers[1], (vocab_size, checkpoints[1].config.vocab_size), text)
            set_threads(threads)
            present = resident_nbytes() + sum(tokenizer.template_nbytes for tokenizer in tokenizers)

            def divide(rows: int) -> list[int]:
                base = present + rows_nbytes(rows, vocab_size, len(names))
                return shares(checkpoints, budget, context_length=context, kv_dtype=kv_dtype, base=base)

            with telling_enough(memory):
                self._rows, parts = _most_rows(self.windows, budget // _ROWS_SHARE, vocab_size, len(names), divide)
            models = [
                opened.enter_context(
                    assemble(
                        checkpoint,
                        tokenizer,
                        part,
                        interpreter=0,  # shares leave it out
                        context_length=context,
                        kv_dtype=kv_dtype,
                        on_layer=on_layer,
                    )
                )
                for checkpoint, tokenizer, part in zip(checkpoints, tokenizers, parts, strict=True)
            ]
            self._opened = opened.pop_all()
        self.model: Model = models[0]
        self.against: Model | None = models[1] if against is not None else None

    def __iter__(self) -> Iterator[Estimate]:
        return estimates(self.model, self._ids, self.windows, against=self.against, rows=self._rows)

    @property
    def tokens(self) -> int:
        """Of the text."""
        return len(self._ids)

    def close(self) -> None:
        """Gives memory and files back."""
        self._opened.close()


def _context(asked: int | None, checkpoints: list[Checkpoint]) -> int:
    most = min(checkpoint.config.max_position_embeddings for checkpoint in checkpoints)
    if asked is None:
        return min(CONTEXT, most)
    if asked > most:
        raise RequestError(f"context: {asked}, expected at most the model's {most}")
    return asked


def _most_rows(
    windows: Windows, most: int, vocab_size: int, models: int, divide: Callable[[int], list[int]]
) -> tuple[int, list[int]]:
    """As many rows of logits a pass as fit into `most` bytes and leave the models enough, and what these get.

    Raises TooSmallError if the fewest leave them too little.
    """
    *more, fewest = row_counts(windows)
    for rows in more:
        if rows_nbytes(rows, vocab_size, models) <= most:
            try:
                return rows, divide(rows)
            except TooSmallError:
                pass
    return fewest, divide(fewest)
