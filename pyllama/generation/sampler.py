"""One row of logits in, one token out: a chain of small steps, each of which can be left out.

The order is the one of transformers, with OpenAI's penalties beside its repetition penalty:

    repetition_penalty, frequency_penalty, presence_penalty     change the logits, and so does logit_bias
    temperature                                                 scales them; 0 takes the largest and ends here
    top_k, top_p, min_p                                         drop candidates
    Gumbel noise is added to the logits of those left           the largest sum is the token

That is a draw from the softmax (E. J. Gumbel, 1954). The noise is a function of (seed, index of the token, token id):
a drafter's logits with the same noise are the best guess at what will be drawn. The same logits, parameters and seed
give the same token on every machine: hash, logarithm and exp are the kernels' own, sums run in a fixed order, and ties
go to the lower token id. Nothing here comes from NumPy's random streams or from libm. It knows no model and no text.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, cast

import numpy as np

from pyllama import _kernels
from pyllama.errors import PyllamaError, RequestError
from pyllama.synonyms import meant

SEED_MASK = (1 << 64) - 1
# No candidate is further below the largest: noise lies between -3.7 and 36.8, so it could not be drawn anyway.
LOWEST_EXPONENT = np.float32(-87.0)
LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What to sample and when to stop, in OpenAI's words. Checked when it is made.

    temperature         0 = greedy (the default: the text depends on the model and the prompt alone)
    top_k               keep the k most probable tokens; 0 = all
    top_p               keep the fewest most probable tokens whose probabilities reach top_p; 1 = all
    min_p               keep tokens at least min_p times as probable as the most probable; 0 = all
    repetition_penalty  divide positive, multiply negative logits of every token of prompt and answer; 1 = off
    presence_penalty    subtracted from the logit of every token the answer already has; 0 = off
    frequency_penalty   the same, once for each time the answer has it; 0 = off
    logit_bias          {token id: what is added to its logit}, for those named
    seed                same seed, same text; None = a fresh one each time
    max_tokens          tokens to write at most; None = until the model ends or the context is full
    stop                the text ends before the first of these strings
    stop_token_ids      the answer ends at any of these tokens
    logprobs            report the log-probability of the token and of the n most probable; 0 = none
    ignore_eos          go on past the model's own end of text

    Raises RequestError naming the field, what it got and its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int = 0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        self._number("temperature", 0.0, 100.0, "0 (greedy) to 100")
        self._integer("top_k", 0, 2**31, "0 (all) or more")
        self._number("top_p", 0.0, 1.0, "more than 0, up to 1", open_low=True)
        self._number("min_p", 0.0, 1.0, "0 to 1")
        self._number("repetition_penalty", 0.0, 100.0, "more than 0, up to 100", open_low=True)
        self._number("presence_penalty", -100.0, 100.0, "-100 to 100")
        self._number("frequency_penalty", -100.0, 100.0, "-100 to 100")
        if self.seed is not None:
            self._integer("seed", -(2**63), 2**64 - 1, "an integer of 64 bits")
        if self.max_tokens is not None:
            self._integer("max_tokens", 1, 2**31, "1 or more")
        self._integer("logprobs", 0, 1000, "0 to 1000")
        self._bias()
        if not isinstance(self.ignore_eos, bool):
            raise RequestError.about("ignore_eos", f"{self.ignore_eos!r}, expected true or false")
        self._stops()

    def _number(self, name: str, low: float, high: float, expected: str, open_low: bool = False) -> None:
        value = getattr(self, name)
        number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        if not number or not low <= value <= high or (open_low and value == low):
            raise RequestError.about(name, f"{value!r}, expected {expected}")
        object.__setattr__(self, name, float(value))

    def _integer(self, name: str, low: int, high: int, expected: str) -> None:
        value = getattr(self, name)
        if not _is_integer(value) or not low <= value <= high:
            raise RequestError.about(name, f"{value!r}, expected {expected}")
        object.__setattr__(self, name, int(value))

    def _bias(self) -> None:
        """Stored as pairs: the parameters are frozen."""
        given = self.logit_bias
        pairs = tuple(given.items()) if isinstance(given, Mapping) else given
        if not isinstance(pairs, (list, tuple)) or not all(
            isinstance(pair, (list, tuple))
            and len(pair) == 2
            and _is_integer(pair[0])
            and pair[0] >= 0
            and isinstance(pair[1], (int, float))
            and -100 <= pair[1] <= 100
            for pair in pairs
        ):
            raise RequestError.about("logit_bias", f"{given!r}, expected token ids with numbers from -100 to 100")
        object.__setattr__(self, "logit_bias", tuple((int(i), float(bias)) for i, bias in pairs))

    def _stops(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, (list, tuple)) or not all(isinstance(text, str) and text for text in stop):
            raise RequestError.about("stop", f"{self.stop!r}, expected a string or a list of strings, none empty")
        ids = self.stop_token_ids
        if not isinstance(ids, (list, tuple)) or not all(_is_integer(i) and i >= 0 for i in ids):
            raise RequestError.about("stop_token_ids", f"{ids!r}, expected a list of token ids")
        object.__setattr__(self, "stop", tuple(stop))
        object.__setattr__(self, "stop_token_ids", tuple(int(i) for i in ids))

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """logit_bias as it is stored."""
        return cast("tuple[tuple[int, float], ...]", self.logit_bias)

    @classmethod
    def from_options(cls, **options: Any) -> "SamplingParams":
        """SamplingParams(**options), where an unknown name is the caller's error and None the default."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                ours = meant(name, known)
                hint = f", did you mean {ours}?" if ours else f", expected one of {', '.join(known)}"
                raise RequestError.about(name, f"no such sampling option{hint}")
        return cls(**{name: value for name, value in options.items() if value is not None})


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Sample:
    """A token and, if asked for, log-probabilities under the model's own logits, before any penalty."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Candidates:
    """What is left to choose from. Steps may overwrite the arrays: they belong to this row alone."""

    ids: np.ndarray  # (n,) int64
    logits: np.ndarray  # (n,) float32; after the temperature step: at most 0, and the largest is 0

    def keep(self, selection: np.ndarray) -> "Candidates":
        return Candidates(self.ids[selection], self.logits[selection])


class Sampler:
    """Chooses the tokens of one answer. Holds no history, so any position can be asked for again.

    params      the checked parameters
    vocab_size  length of a row of logits
    """

    def __init__(self, params: SamplingParams, vocab_size: int):
        self.params = params
        self.vocab_size = vocab_size
        seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else params.seed
        self.seed = seed & SEED_MASK
        self._ids = np.arange(vocab_size, dtype=np.int64)
        for token_id, _ in params.biases:
            if token_id >= vocab_size:
                raise RequestError.about("logit_bias", f"token id {token_id}, expected 0 to {vocab_size - 1}")
        self._chain = list(_chain(params))

    def __call__(
        self,
        logits: np.ndarray,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int],
        allowed: np.ndarray | None = None,
    ) -> Sample:
        """The next token after prompt_ids + output_ids.

        logits      (vocab_size,) float32, not modified
        prompt_ids  token ids the model was given
        output_ids  token ids sampled since; their number is the index of the draw
        allowed     (n,) int64: the ids to choose from, ascending; None: all

        Raises PyllamaError if a logit is not finite: the weights are damaged, or a kernel is wrong.
        """
        token_id = int(self.best(logits, prompt_ids, output_ids, allowed)[0][0])
        if not self.params.logprobs:
            return Sample(token_id)
        return with_logprobs(logits, token_id, self.params.logprobs)

    def best(
        self,
        logits: np.ndarray,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int],
        allowed: np.ndarray | None = None,
        count: int = 1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The tokens nearest to being chosen after prompt_ids + output_ids, the chosen one first.

        Of the model's own logits the first is the token. Of a drafter's, they are the best guesses at it: their noise
        is that of the model's draw.

        count   tokens wanted, 1 or more
        others  as of a call

        Returns ids (n,) int64 and scores (n,) float64, falling: logits / temperature + noise but for a constant, or the
        logits at temperature 0. n is at most `count`, less where fewer candidates are left.

        Raises PyllamaError if a logit is not finite.
        """
        params = self.params
        if logits.shape != (self.vocab_size,) or logits.dtype != np.float32:
            expected = f"float32 ({self.vocab_size},)"
            raise PyllamaError(f"logits: {logits.dtype} {logits.shape}, expected {expected}")
        check_finite(logits, len(prompt_ids) + len(output_ids))
        candidates = Candidates(self._ids, _penalize(params, logits, prompt_ids, output_ids))
        if allowed is not None:
            candidates = candidates.keep(allowed)
        if params.temperature == 0:
            # argmax: the first of equals, the lower id
            order = np.array([candidates.logits.argmax()]) if count == 1 else largest(candidates.logits, count)
            chosen = candidates.keep(order)
            return chosen.ids, chosen.logits.astype(np.float64)
        for step in self._chain:
            candidates = step(candidates)
        count = min(count, len(candidates.ids))
        ids, scores = np.empty(count, np.int64), np.empty(count, np.float64)
        _kernels.draw(candidates.ids, candidates.logits, self.seed, len(output_ids), ids, scores)
        return ids, scores


def check_finite(logits: np.ndarray, position: int) -> None:
    """Raises PyllamaError if a logit is not finite: the weights are damaged, or a kernel is wrong."""
    if not np.isfinite(logits).all():
        bad = int(np.flatnonzero(~np.isfinite(logits))[0])
        raise PyllamaError(
            f"logits: token {bad} has {logits[bad]}, expected finite numbers, at position {position}; the model's"
            " weights may be damaged"
        )


def _penalize(
    params: SamplingParams, logits: np.ndarray, prompt_ids: Sequence[int], output_ids: Sequence[int]
) -> np.ndarray:
    """The logits after penalties and bias: a copy if any of them does something, else the row itself."""
    repetition = np.float32(params.repetition_penalty)
    frequency, presence = np.float32(params.frequency_penalty), np.float32(params.presence_penalty)
    repeats = repetition != 1 and (len(prompt_ids) or len(output_ids))
    counts = (frequency != 0 or presence != 0) and len(output_ids)
    if not repeats and not counts and not params.logit_bias:
        return logits
    logits = logits.copy()
    if repeats:
        seen = np.unique(np.concatenate([np.asarray(prompt_ids, np.int64), np.asarray(output_ids, np.int64)]))
        before = logits[seen]
        # A penalty may be 0 in float32, or take a logit beyond it.
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            logits[seen] = np.where(before > 0, before / repetition, before * repetition)
        np.clip(logits, -LARGEST, LARGEST, out=logits)
    if counts:
        seen, times = np.unique(np.asarray(output_ids, np.int64), return_counts=True)
        logits[seen] -= times.astype(np.float32) * frequency + presence
    for token_id, bias in params.biases:
        logits[token_id] += np.float32(bias)
    return logits


def _chain(params: SamplingParams) -> Iterator[Callable[[Candidates], Candidates]]:
    """The steps these parameters need, in order."""
    yield partial(_temperature, np.float32(params.temperature))
    if params.top_k:
        yield partial(_top_k, params.top_k)
    if params.top_p < 1:
        yield partial(_top_p, params.top_p)
    if params.min_p > 0:
        yield partial(_min_p, np.float32(params.min_p))


def _temperature(temperature: np.float32, candidates: Candidates) -> Candidates:
    """logits = (logits - max) / temperature. The shift comes first, so that no temperature can overflow."""
    with np.errstate(over="ignore"):
        shifted = candidates.logits - candidates.logits.max()
        if temperature:
            shifted /= temperature
        else:  # too small for float32: the largest, 0 / 0, must stay 0
            shifted[shifted < 0] = LOWEST_EXPONENT
    np.maximum(shifted, LOWEST_EXPONENT, out=shifted)
    return Candidates(candidates.ids, shifted)


def _top_k(count: int, candidates: Candidates) -> Candidates:
    """The `count` largest logits, largest first."""
    return candidates.keep(largest(candidates.logits, count))


def _top_p(mass: float, candidates: Candidates) -> Candidates:
    """The shortest run of the largest probabilities whose sum reaches `mass` of the whole, largest first."""
    weights = _exp(candidates.logits)
    target = mass * _running_sums(weights)[-1]
    # A trained model is sure enough that a few hundred tokens do: sorting all is the last resort.
    for count in (256, 2048, len(weights)):
        order = largest(weights, count)
        sums = _running_sums(weights[order])
        if sums[-1] >= target:
            break
    return candidates.keep(order[: int(np.searchsorted(sums, target, side="left")) + 1])


def _min_p(ratio: np.float32, candidates: Candidates) -> Candidates:
    """Probabilities of at least `ratio` times the largest."""
    weights = _exp(candidates.logits)
    return candidates.keep(weights >= ratio * weights.max())


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest float32 values, largest first, equals by lower index.

    Sorts one 64-bit key an element: the value's bits, turned so that larger floats are smaller integers,
    above the index. No two keys are equal, so it does not matter that partition and sort are not stable.
    """
    chosen = np.arange(len(values), dtype=np.uint64)
    columns = len(values) // 32
    if 0 < count <= columns:
        # `count` columns have a maximum of at least the count-th largest maximum: nothing below it is needed.
        maxima = values[: 32 * columns].reshape(32, columns).max(axis=0)
        threshold = np.partition(maxima, columns - count)[columns - count]
        chosen = np.flatnonzero(values >= threshold).astype(np.uint64)
        values = values[chosen]
    bits = (values + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0: they are equal
    ascending = np.where(bits >> 31, bits, ~bits & np.uint32(0x7FFFFFFF))
    keys = (ascending.astype(np.uint64) << np.uint64(32)) | chosen
    if count < len(keys):
        keys = np.partition(keys, count - 1)[:count]
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _running_sums(weights: np.ndarray) -> np.ndarray:
    """Sums of the first 1, 2, ... values in float64, added one by one: np.sum's order depends on the machine."""
    return np.cumsum(weights.astype(np.float64))


def _exp(values: np.ndarray) -> np.ndarray:
    """exp of float32 values at most 0, with the same bits on every machine."""
    values = np.ascontiguousarray(values)
    out = np.empty_like(values)
    _kernels.exp(values, out)
    return out


def with_logprobs(logits: np.ndarray, token_id: int, count: int) -> Sample:
    """Log-softmax of the unmodified logits, which are finite, at token_id and at the `count` largest."""
    with np.errstate(over="ignore"):
        shifted: np.ndarray = logits - logits.max()
    np.maximum(shifted, -LARGEST, out=shifted)  # finite even where float32 cannot hold the difference
    total = float(_running_sums(_exp(np.maximum(shifted, LOWEST_EXPONENT)))[-1])
    log_total = math.log(total)
    # Far more digits than float32 holds, and few enough to hide how this machine's libm rounds log.
    top = tuple((int(i), round(float(shifted[i]) - log_total, 9)) for i in largest(shifted, count))
    return Sample(token_id, round(float(shifted[token_id]) - log_total, 9), top)
