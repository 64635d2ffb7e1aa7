"""Rows of hidden states in, one vector out: a text to the mean of what the model makes of its tokens."""

from typing import Any

import numpy as np

from pyllama.generation.answer import Answer, Step


class Embedding(Answer):
    """An answer that is no text: it ends with the prompt, and `vector` is the mean of the final hidden states.

    vector  float64 (hidden_size,) once its only step is there: not normalized, summed in the order of the tokens
    """

    hidden = True

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.vector: np.ndarray | None = None
        self._count = 0  # tokens that are in the sum

    @property
    def reusable(self) -> int:
        return self._count

    def rows_wanted(self, start: int, stop: int) -> int:
        return max(0, stop - max(start, self._count))

    def take(self, rows: np.ndarray) -> list[Step]:
        """The hidden states (n, hidden_size) of the next tokens; a step, without a token, once they are all here."""
        for row in rows:
            self.vector = row.astype(np.float64) if self.vector is None else self.vector + row
        self._count += len(rows)
        if self._count < len(self.prompt_ids) or self.vector is None:
            return []
        self.vector /= self._count
        self.finish_reason = "stop"
        return [Step(-1, "", finish_reason="stop")]
