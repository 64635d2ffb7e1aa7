"""A text and a model -> how well the model knows the text; and how far its opinion is from a reference model's.

The perplexity of a text is exp of the mean of -log q(token | the tokens before it in its window), q being the model's
distribution. Beside a reference with the distribution p: the mean over positions of KL(p || q) = sum of p * log(p / q)
over the vocabulary, and the share of positions where the same token is the most probable one (the lower id, in a tie).

Windows and standard errors are those of llama.cpp's perplexity tool. Logits are the decoder's, everything after them is
in float64. Of models it knows that they have a tokenizer and a decoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyllama.errors import RequestError, shown
from pyllama.generation.sampler import check_finite
from pyllama.measure.windows import Windows

if TYPE_CHECKING:
    from pyllama.model import Model
    from pyllama.tokenizer.missing import MissingTokenizer
    from pyllama.tokenizer.tokenizer import Tokenizer

    AnyTokenizer = Tokenizer | MissingTokenizer

#: Rows of float64 in which a position's figures are made.
_WORK_ROWS = 6
_LEAST_ROWS = 8


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model beside a reference; each figure with its standard error.

    perplexity  of the reference
    log_ratio   the mean of log(p / q) of the text's tokens: the logarithm of the perplexity over the reference's
    kl          the mean KL divergence, in nats
    kl_largest  the largest of a position
    same_best   the share of positions whose most probable token is the same, 0 to 1
    """

    perplexity: float
    perplexity_error: float
    log_ratio: float
    log_ratio_error: float
    kl: float
    kl_error: float
    kl_largest: float
    same_best: float
    same_best_error: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the windows so far say.

    chunks      windows computed
    positions   tokens scored in them
    perplexity  with its standard error
    against     the model beside its reference, or None without one
    """

    chunks: int
    positions: int
    perplexity: float
    perplexity_error: float
    against: Comparison | None = None


@dataclass(slots=True)
class Mean:
    """A mean that grows, without keeping what it is the mean of (the update of Chan, Golub and LeVeque, 1979)."""

    count: int = 0
    value: float = 0.0
    squares: float = 0.0  # of the distances from the mean, summed

    def add(self, values: np.ndarray) -> None:
        """values  (n,) float64, at least one"""
        count, value = len(values), float(values.mean())
        both, apart = self.count + count, value - self.value
        self.squares += float(((values - value) ** 2).sum()) + apart * apart * self.count * count / both
        self.value += apart * count / both
        self.count = both

    @property
    def error(self) -> float:
        """The standard error of the mean; 0 where a single value does not tell."""
        return math.sqrt(self.squares / self.count / (self.count - 1)) if self.count > 1 else 0.0

    def exp(self) -> tuple[float, float]:
        """exp of the mean, and its standard error to first order; infinite where float64 does not reach."""
        if self.value > 709:
            return math.inf, math.inf
        value = math.exp(self.value)
        return value, value * self.error


# -- tokens


def text_tokens(tokenizer: AnyTokenizer, text: str) -> np.ndarray:
    """(n,) int32 token ids of a text: control tokens written out in it are plain text, BOS stands before it where the
    model adds one, and EOS nowhere. Raises TokenizerError for a model without a tokenizer."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return np.array([*_begin(tokenizer), *ids], np.int32)


def check_same_tokens(ours: AnyTokenizer, theirs: AnyTokenizer, vocab_sizes: tuple[int, int], text: str) -> None:
    """Raises RequestError, naming the first difference, if the token ids of two models do not mean the same."""
    size, other_size = vocab_sizes
    if size != other_size:
        raise _differ(f"{size} and {other_size} tokens")
    for token_id in range(size):
        one, other = ours.token_bytes(token_id), theirs.token_bytes(token_id)
        if one != other:
            raise _differ(f"token {token_id} is {shown(one)} and {shown(other)}")
    own, others = text_tokens(ours, text), text_tokens(theirs, text)
    if np.array_equal(own, others):
        return
    shorter = min(len(own), len(others))
    at = int(np.argmax([*(own[:shorter] != others[:shorter]), True]))  # the first place, or the end of the shorter
    raise _differ(f"at {at} of the text stand {_piece(ours, own, at)} and {_piece(theirs, others, at)}")


def _begin(tokenizer: AnyTokenizer) -> list[int]:
    """What stands before a text: BOS or nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if tokenizer.adds_bos and bos is not None else []


def _piece(tokenizer: AnyTokenizer, ids: np.ndarray, at: int) -> str:
    return f"token {ids[at]} ({shown(tokenizer.token_bytes(int(ids[at])))})" if at < len(ids) else "no token"


def _differ(what: str) -> RequestError:
    return RequestError(f"the two models have different tokenizers: {what}; expected the same token ids for a text")


# -- memory


def row_counts(windows: Windows) -> Iterator[int]:
    """Rows of logits that a pass may return, most first. With fewer, more passes are needed for a window."""
    rows = windows.scored
    while rows > _LEAST_ROWS:
        yield rows
        rows = -(-rows // 2)
    yield rows


def rows_nbytes(rows: int, vocab_size: int, models: int) -> int:
    """Bytes of so many rows of logits of each model, and of what their figures are made in."""
    return vocab_size * (4 * rows * models + 8 * _WORK_ROWS)


# -- passes and figures


def estimates(
    model: Model, ids: np.ndarray, windows: Windows, *, against: Model | None = None, rows: int | None = None
) -> Iterator[Estimate]:
    """The estimate after each window; the last one is the result.

    ids      (n,) integers: the text's tokens, of text_tokens()
    windows  of so many tokens
    against  the reference, of the same tokens (check_same_tokens)
    rows     rows of logits that a pass returns at most; default: all of a window's. The figures do not depend on it

    Cost: for each window one pass over the weights of each model, or a few; see rows_nbytes(). Raises PyllamaError for
    logits that are not finite.
    """
    models = [model] if against is None else [model, against]
    begin = _begin(model.tokenizer) if windows.stride is None else []
    tally = _Tally(windows.scored, compared=against is not None)
    for start, end in windows:
        tokens = [int(i) for i in ids[start:end]]
        inputs = [*begin, *tokens[len(begin) : -1]]  # what would follow the last token is not asked
        for first, logits in _passes(models, inputs, windows.first, rows or windows.scored):
            targets = tokens[first + 1 : first + 1 + len(logits[0])]
            tally.score(first - windows.first, targets, *logits, position=start + first)
            del logits  # or those of the next pass come on top of them
        yield tally.close_window()


def _passes(models: list[Model], inputs: list[int], wanted: int, rows: int) -> Iterator[tuple[int, list[np.ndarray]]]:
    """(position, a (n, vocab_size) of each model) for the inputs from `wanted` on, in order, at most `rows` at once."""
    most = min(model.decoder.max_pass_tokens for model in models)
    sequences = [model.new_sequence() for model in models]
    try:
        start = 0
        while start < len(inputs):
            first = max(start, wanted)
            end = min(start + most, first + rows, len(inputs))
            count = max(0, end - first)
            parts = zip(models, sequences, strict=True)
            logits = [model.decoder.extend([(part, inputs[start:end])], [count])[0] for model, part in parts]
            start = end
            if count:
                yield first, logits
            del logits
    finally:
        for sequence in sequences:
            sequence.close()


class _Tally:
    """Logits and what came next, position by position, become an Estimate window by window."""

    def __init__(self, scored: int, *, compared: bool):
        self._chunks = 0
        self._nll = np.empty(scored)  # -log q of the text's token
        self._reference = np.empty(scored)  # -log p of it
        self._kl = np.empty(scored)
        self._same = np.empty(scored)
        self._compared = compared
        self._means = {name: Mean() for name in ("nll", "reference", "ratio", "kl", "same")}
        self._largest = 0.0

    def score(
        self, place: int, targets: list[int], logits: np.ndarray, reference: np.ndarray | None = None, *, position: int
    ) -> None:
        """The targets of a pass are scored.

        place              of the first in its window
        targets            (n,) the tokens that came next
        logits, reference  (n, vocab_size) float32
        position           of the first row in the text, for who complains
        """
        for row, target in enumerate(targets):
            for model in (logits, reference):
                if model is not None:
                    check_finite(model[row], position + row)
            self._score(place + row, target, logits[row], None if reference is None else reference[row])

    def _score(self, place: int, target: int, logits: np.ndarray, reference: np.ndarray | None) -> None:
        """The same for one. logits, reference: (vocab_size,)"""
        q = logits.astype(np.float64)
        q -= q.max()
        q_log_sum = math.log(np.exp(q).sum())
        self._nll[place] = q_log_sum - q[target]
        if reference is None:
            return
        p = reference.astype(np.float64)
        p -= p.max()
        weights = np.exp(p)
        p_sum = float(weights.sum())
        p_log_sum = math.log(p_sum)
        self._reference[place] = p_log_sum - p[target]
        # sum of p * (log p - log q): the logarithms of the sums are the same in every term.
        weights *= p - q
        self._kl[place] = float(weights.sum()) / p_sum + (q_log_sum - p_log_sum)
        self._same[place] = logits.argmax() == reference.argmax()

    def close_window(self) -> Estimate:
        """All places have been scored."""
        self._chunks += 1
        means = self._means
        means["nll"].add(self._nll)
        if self._compared:
            means["reference"].add(self._reference)
            means["ratio"].add(self._nll - self._reference)
            means["kl"].add(self._kl)
            means["same"].add(self._same)
            self._largest = max(self._largest, float(self._kl.max()))
        return Estimate(
            self._chunks, means["nll"].count, *means["nll"].exp(), self._comparison() if self._compared else None
        )

    def _comparison(self) -> Comparison:
        means = self._means
        perplexity, perplexity_error = means["reference"].exp()
        return Comparison(
            perplexity=perplexity,
            perplexity_error=perplexity_error,
            log_ratio=means["ratio"].value,
            log_ratio_error=means["ratio"].error,
            kl=means["kl"].value,
            kl_error=means["kl"].error,
            kl_largest=self._largest,
            same_best=means["same"].value,
            same_best_error=means["same"].error,
        )
