"""How many tokens a text has -> where it is cut into windows, and which tokens of each are scored.

As llama.cpp's perplexity tool does it (tools/perplexity/perplexity.cpp: perplexity() and, with a stride,
perplexity_v2()), so that figures compare. Knows no tokens, only their number.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pyllama.errors import RequestError

CONTEXT = 512
#: Of three tokens, two are context enough for the third to be scored.
LEAST_CONTEXT = 3


@dataclass(frozen=True, slots=True)
class Windows:
    """Iterates over (start, end) of each window.

    tokens   of the text, BOS included where the model adds one
    context  tokens of a window
    stride   None: windows stand one after the other, BOS takes the place of the first token of each where the model
             adds one, and of the second half all tokens but the first are scored. Else a window starts every `stride`
             tokens, its first token stays what it is, and its last `stride` tokens are scored: almost every token of
             the text, with almost the whole context before it, in context / stride times as many passes
    most     windows at most; None: all

    Raises RequestError for what does not go together, and for a text that is too short.
    """

    tokens: int
    context: int = CONTEXT
    stride: int | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        if self.context < LEAST_CONTEXT:
            raise RequestError(f"context: {self.context}, expected at least {LEAST_CONTEXT}")
        if self.stride is not None and not 1 <= self.stride < self.context:
            raise RequestError(f"stride: {self.stride}, expected 1 to {self.context - 1}, less than the context")
        if self.most is not None and self.most < 1:
            raise RequestError(f"chunks: {self.most}, expected at least 1")
        # Where windows overlap there is one token more: the last window ends before it.
        least = self.context if self.stride is None else self.context + 1
        if self.tokens < least:
            raise RequestError(
                f"{self.tokens} tokens of text, expected at least {least} for a context of {self.context}; give more"
                " text or a smaller context"
            )

    @property
    def count(self) -> int:
        """Windows there are."""
        if self.stride is None:
            count = self.tokens // self.context
        else:
            count = -(-(self.tokens - self.context) // self.stride)
        return count if self.most is None else min(count, self.most)

    @property
    def first(self) -> int:
        """The first position of a window whose logits are wanted: they say what its next token is."""
        return self.context // 2 if self.stride is None else self.context - self.stride - 1

    @property
    def scored(self) -> int:
        """Tokens of each window that are scored; they follow the positions from `first` on."""
        return self.context - 1 - self.first

    def __iter__(self) -> Iterator[tuple[int, int]]:
        step = self.stride or self.context
        return ((i * step, i * step + self.context) for i in range(self.count))
