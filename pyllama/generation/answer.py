"""Rows of logits in, steps out: what one prompt has got so far.

An Answer samples, decides when the answer ends and which of its text may already be shown. Knows a tokenizer and a
sampler by what they do, and neither a decoder nor whoever runs it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np

from pyllama.errors import ContextOverflowError, RequestError
from pyllama.generation.sampler import Sample, Sampler, SamplingParams, check_finite, with_logprobs
from pyllama.generation.tree import ROOT, Tree

#: Rows of logits of a prompt that is scored, in one pass: as small as what a plan leaves unused.
SCORED_NBYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Step:
    """One sampled token.

    text           what may be shown now: the texts of all steps joined are the whole text
    logprob        log-probability of the token, None unless asked for
    top_logprobs   (token id, log-probability) of the most probable, most probable first
    finish_reason  None, until the last step: "stop" (the model, a stop string or a stop token ended the
                   answer) or "length" (max_tokens reached or the context full)
    """

    token_id: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: str | None = None


class Fingerprint:
    """SHA-256 over the float32 little-endian logits of every sampled position, in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, logits: np.ndarray) -> None:
        self._hash.update(np.ascontiguousarray(logits, dtype="<f4").data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class StopStrings:
    """Text in pieces in, text that may be shown out: nothing of a stop string, and nothing after it.

    The stop string that is complete first ends the text, wherever the pieces are cut. What might still become
    one is held back.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None  # the stop string that ended the text

    def push(self, piece: str) -> str:
        """The text that is safe to show now that `piece` has come. After a stop string: always ""."""
        if self.found:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        ends = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            _, start, self.found = min(ends)
            self._held = ""
            return text[:start]
        keep = max(overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, when no more comes."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that is a beginning of stop, but not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class Guide(Protocol):
    """Says which tokens may come next, as a grammar does."""

    def allowed(self) -> np.ndarray | None:
        """(n,) int64 ids, ascending, at least one; None for any token."""
        ...

    def accept(self, token_id: int) -> bool:
        """The token was taken; whether the text is complete, so that nothing may follow."""
        ...


@runtime_checkable
class FarSeeingGuide(Guide, Protocol):
    """A guide that can be asked about tokens before they are taken: only under such a one anything is proposed."""

    def fitting(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens, one after the other, may come next. Nothing is taken."""
        ...


class AnswerOptions(TypedDict, total=False):
    """What may be said of an answer besides its prompt and how to sample it: Answer tells what each means."""

    continuation: bool
    fingerprint: bool
    guide: Guide | None
    show_special: bool
    prompt_logprobs: int | None
    prediction: Sequence[int]


class Answer:
    """The answer to one prompt so far.

    prompt_ids     the prompt's token ids
    token_ids      sampled so far, the token that ended the answer included
    text           the text so far
    finish_reason  None, "stop" or "length"
    fingerprint    a Fingerprint, or None if not asked for
    seed           the seed in use, whether given or drawn
    scored         the prompt's tokens but the first, with log-probabilities, as far as they were asked for and came
    prediction     token ids that its text may repeat
    hidden         whether the rows it wants are of final hidden states, not of logits
    """

    hidden = False

    def __init__(
        self,
        tokenizer: Any,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        vocab_size: int,
        context_length: int,
        continuation: bool = False,
        fingerprint: bool = False,
        guide: Guide | None = None,
        show_special: bool = False,
        prompt_logprobs: int | None = None,
        prediction: Sequence[int] = (),
    ):
        """Computes nothing yet.

        tokenizer       for the text and the ends of text
        prompt_ids      the whole prompt
        params          what to sample and when to stop
        vocab_size      length of a row of logits
        context_length  positions the answer may fill, the prompt's included
        continuation    whether the text goes on after the prompt's, so that a space at its start belongs to it
        fingerprint     whether to hash the logits: a few ms a token for a large vocabulary
        guide           restricts the tokens, or None
        show_special    whether control tokens show in the text, all but those that end it
        prompt_logprobs report the log-probability of each token of the prompt, and of so many of the most probable
                        ones in its place; a pass takes fewer tokens then
        prediction      token ids that the answer may repeat, for a drafter to propose: it changes nothing but time

        Raises RequestError for an empty prompt and ContextOverflowError for one the context cannot hold.
        """
        if not len(prompt_ids):
            raise RequestError.about("prompt", "no tokens, expected at least one")
        if len(prompt_ids) > context_length:
            raise ContextOverflowError(
                # In words that litellm and langchain know: their programs shorten the conversation then.
                f"prompt is too long: {len(prompt_ids)} tokens, this model's maximum context length is"
                f" {context_length} tokens; shorten it or load the model with a larger context"
            )
        self.prompt_ids = [int(i) for i in prompt_ids]
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self.fingerprint = Fingerprint() if fingerprint else None
        self.scored: list[Sample] = []
        self.prediction = [int(i) for i in prediction]
        self._prompt_logprobs = prompt_logprobs
        self._vocab_size = vocab_size
        self._sampler = Sampler(params, vocab_size)
        self.seed = self._sampler.seed
        self._params = params
        self._context_length = context_length
        self._guide = guide
        shown = {"skip_special_tokens": False} if show_special else {}
        self._stream = tokenizer.stream(continuation=continuation, **shown)
        self._stops = StopStrings(params.stop)
        ends = () if params.ignore_eos else tokenizer.eos_token_ids
        self._end_ids = frozenset(ends) | frozenset(params.stop_token_ids)

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt_ids) + len(self.token_ids)

    def tokens(self, start: int, stop: int | None = None) -> list[int]:
        """Prompt and answer as one list, from position `start` on."""
        prompt = len(self.prompt_ids)
        stop = self.length if stop is None else stop
        if start >= prompt:
            return self.token_ids[start - prompt : stop - prompt]
        return self.prompt_ids[start:stop] + self.token_ids[: max(0, stop - prompt)]

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._stops.found

    @property
    def _unscored(self) -> bool:
        return self._prompt_logprobs is not None and len(self.scored) < len(self.prompt_ids) - 1

    @property
    def most_tokens(self) -> int | None:
        """Tokens that a pass may take of it, where their rows of logits would be too many to hold."""
        return max(8, SCORED_NBYTES // (4 * self._vocab_size)) if self._unscored else None

    @property
    def reusable(self) -> int:
        """Tokens whose keys and values suffice: the others' rows of logits are needed."""
        return len(self.scored) if self._unscored else self.length - 1

    def rows_wanted(self, start: int, stop: int) -> int:
        """How many rows of logits are wanted of a pass over the tokens from start to stop: its last ones."""
        if self._unscored:
            return max(0, stop - max(start, len(self.scored)))
        return 1 if stop == self.length else 0

    # --- what a drafter may know of it ---

    @property
    def most_proposed(self) -> int:
        """Proposed tokens, one after the other, that could all become part of it and be followed by one more."""
        if self.hidden or self._unscored or self.finish_reason:
            return 0
        if self._guide is not None and not isinstance(self._guide, FarSeeingGuide):
            return 0
        most = self._context_length - self.length
        if self._params.max_tokens is not None:
            most = min(most, self._params.max_tokens - len(self.token_ids) - 1)
        return max(0, most)

    def may_follow(self, token_id: int) -> bool:
        """Whether it is worth proposing: a token of the vocabulary that does not end the answer."""
        return 0 <= token_id < self._vocab_size and token_id not in self._end_ids

    def fitting(self, tree: Tree) -> Tree:
        """The tree without what the guide would refuse."""
        if not isinstance(self._guide, FarSeeingGuide):
            return tree
        fits = Tree()
        for ids in tree.branches():
            node, old = ROOT, ROOT
            for token_id in ids[: self._guide.fitting(ids)]:
                old = tree.node(old, token_id)
                node = fits.add(node, token_id, tree.probabilities[old])
        return fits

    def likely(self, logits: np.ndarray, proposed: Sequence[int], count: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that a drafter thinks will be drawn after the answer and some proposed ones.

        logits    (n,) float32, a drafter's: of a vocabulary that has this one's tokens under the same ids
        proposed  token ids that follow the answer
        count     tokens wanted

        Returns ids (m,) int64 and guesses at their probabilities (m,) float64, falling; m is at most `count`. The draw
        has the noise that the model's own will have there: so the guess at a draw is nearly as good as that at the
        most probable token. Raises PyllamaError if a logit is not finite.
        """
        row = logits[: self._vocab_size]
        if len(row) < self._vocab_size:
            row = np.concatenate([row, np.full(self._vocab_size - len(row), row.min(), np.float32)])
        ids, scores = self._sampler.best(row, self.prompt_ids, [*self.token_ids, *proposed], None, max(count, 8))
        with np.errstate(over="ignore"):
            # Greedy: the probability that the drafter gives. Drawn: how far the best is ahead, noise and all.
            weights = np.exp((row if self._params.temperature == 0 else scores) - scores[0])
        return ids[:count], np.exp(scores[:count] - scores[0]) / weights.sum()

    # --- what a pass gives ---

    def take(self, rows: np.ndarray) -> list[Step]:
        """The rows that a pass gave of those wanted: the new steps, none while part of the prompt is left."""
        first = 0
        while self._unscored and first < len(rows):
            check_finite(rows[first], len(self.scored) + 1)
            token_id = self.prompt_ids[len(self.scored) + 1]
            self.scored.append(with_logprobs(rows[first], token_id, self._prompt_logprobs or 0))
            first += 1
        return [self.push(row) for row in rows[first:]]

    def push(self, logits: np.ndarray) -> Step:
        """The next token, from the logits (vocab_size,) after everything so far."""
        if self.fingerprint:
            self.fingerprint.update(logits)
        allowed = self._guide.allowed() if self._guide else None
        sample = self._sampler(logits, self.prompt_ids, self.token_ids, allowed)
        self.token_ids.append(sample.token_id)
        text = self._show(sample.token_id)
        self.text += text
        return Step(sample.token_id, text, sample.logprob, sample.top, self.finish_reason)

    def _show(self, token_id: int) -> str:
        """The text to show for this token; sets finish_reason if the answer ends with it."""
        text = ""
        if token_id in self._end_ids:
            self.finish_reason = "stop"
        else:
            text = self._stops.push(self._stream.push(token_id))
            complete = self._guide is not None and self._guide.accept(token_id)
            full = self.length > self._context_length
            if complete:
                self.finish_reason = "stop"
            elif not self._stops.found and (len(self.token_ids) == self._params.max_tokens or full):
                self.finish_reason = "length"
        if self.finish_reason:
            text += self._stops.push(self._stream.finish())
        if self._stops.found:
            self.finish_reason = "stop"
        return text + (self._stops.finish() if self.finish_reason else "")
