"""Token ids in, steps out: prefill the prompt, then sample, show and feed back one token a pass.

An Answer is what one prompt has got so far: it turns rows of logits into steps, and decides when the answer ends
and which of its text may already be shown. A Generation runs one alone; the engine runs many, in shared passes. It
knows a decoder, a tokenizer and a sampler by what they do, and neither files nor front ends.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pyllama.errors import ContextOverflowError, RequestError
from pyllama.sampler import Sample, Sampler, SamplingParams, with_logprobs


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

    def __init__(self):
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
        self.found = False

    def push(self, piece: str) -> str:
        """The text that is safe to show now that `piece` has come. After a stop string: always ""."""
        if self.found:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        ends = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            self.found = True
            self._held = ""
            return text[: min(ends)[1]]
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


class Answer:
    """The answer to one prompt so far.

    prompt_ids     the prompt's token ids
    token_ids      sampled so far, the token that ended the answer included
    text           the text so far
    finish_reason  None, "stop" or "length"
    fingerprint    a Fingerprint, or None if not asked for
    seed           the seed in use, whether given or drawn
    prompt_scores  log-probabilities of the prompt's tokens but the first, as far as they were computed
    """

    def __init__(
        self,
        tokenizer,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        vocab_size: int,
        context_length: int,
        continuation: bool = False,
        fingerprint: bool = False,
        prompt_logprobs: int | None = None,
        guide: Guide | None = None,
        show_special: bool = False,
    ):
        """Computes nothing yet.

        tokenizer       for the text and the ends of text
        prompt_ids      the whole prompt
        params          what to sample and when to stop
        vocab_size      length of a row of logits
        context_length  positions the answer may fill, the prompt's included
        continuation    whether the text goes on after the prompt's, so that a space at its start belongs to it
        fingerprint     whether to hash the logits: a few ms a token for a large vocabulary
        prompt_logprobs also report the prompt's log-probabilities, with those of so many of the most probable tokens;
                        None: do not
        guide           restricts the tokens, or None
        show_special    whether control tokens show in the text, all but those that end it

        Raises RequestError for an empty prompt and ContextOverflowError for one the context cannot hold.
        """
        if not len(prompt_ids):
            raise RequestError("prompt: no tokens, expected at least one")
        if len(prompt_ids) > context_length:
            raise ContextOverflowError(
                f"prompt: {len(prompt_ids)} tokens, the context holds {context_length};"
                " shorten it or load the model with a larger context"
            )
        self.prompt_ids = [int(i) for i in prompt_ids]
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self.fingerprint = Fingerprint() if fingerprint else None
        self.prompt_scores: list[Sample] = []
        self._prompt_logprobs = prompt_logprobs
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
    def wants_scores(self) -> bool:
        """Whether logits of the prompt's positions are still wanted, each of them."""
        return self._prompt_logprobs is not None and len(self.prompt_scores) < len(self.prompt_ids) - 1

    @property
    def reusable(self) -> int:
        """How many of the tokens need not be computed if their keys and values are known. The last one always is."""
        return len(self.prompt_scores) if self.wants_scores else self.length - 1

    def score(self, position: int, logits: np.ndarray) -> None:
        """Take the rows of logits (n, vocab_size) after the tokens from a position on: those of the prompt score the
        tokens that follow them."""
        for target, row in enumerate(logits, position + 1):
            if self.wants_scores and target == len(self.prompt_scores) + 1:
                self.prompt_scores.append(with_logprobs(row, self.prompt_ids[target], self._prompt_logprobs or 0))

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


class Generation:
    """One answer to a prompt: an iterator of Step, closed by its end, by close() and by an error.

    prompt_ids     the prompt's token ids
    token_ids      sampled so far, the token that ended the answer included
    text           the text so far
    finish_reason  None, "stop" or "length"
    cached_tokens  prompt tokens that were in the cache already
    prefill_s      seconds from the first next() to the first token
    decode_s       seconds spent on the tokens after it, not counting the caller's own time
    fingerprint    a Fingerprint, or None if not asked for
    seed           the seed in use, whether given or drawn
    """

    def __init__(
        self,
        decoder,
        tokenizer,
        sequence,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        continuation: bool = False,
        fingerprint: bool = False,
        on_close: Callable[[], None] | None = None,
    ):
        """Computes nothing yet.

        decoder      runs tokens through the model
        tokenizer    for the text and the ends of text
        sequence     the positions already in the cache: its tokens must be the first of prompt_ids (a new
                     sequence has none); only the rest is computed. It stays the caller's, to keep or to close
        prompt_ids   the whole prompt
        params       what to sample and when to stop
        continuation whether the text goes on after the prompt's, so that a space at its start belongs to it
        fingerprint  whether to hash the logits: a few ms a token for a large vocabulary
        on_close     called once, when the sequence is no longer used

        Raises RequestError for an empty prompt and ContextOverflowError for one the context cannot hold.
        Cost of iterating: one pass over the weights for the prompt (few, if it is long) and one for each
        token but the first.
        """
        self._answer = Answer(
            tokenizer,
            prompt_ids,
            params,
            vocab_size=decoder.config.vocab_size,
            context_length=decoder.context_length,
            continuation=continuation,
            fingerprint=fingerprint,
        )
        # The last token's logits are needed, so it is computed again even if the cache has it.
        self.cached_tokens = min(sequence.length, self.prompt_tokens - 1)
        self.prefill_s = 0.0
        self.decode_s = 0.0
        self._decoder = decoder
        self._sequence = sequence
        self._on_close = on_close
        self._closed = False

    @property
    def prompt_ids(self) -> list[int]:
        return self._answer.prompt_ids

    @property
    def token_ids(self) -> list[int]:
        return self._answer.token_ids

    @property
    def text(self) -> str:
        return self._answer.text

    @property
    def finish_reason(self) -> str | None:
        return self._answer.finish_reason

    @property
    def fingerprint(self) -> Fingerprint | None:
        return self._answer.fingerprint

    @property
    def seed(self) -> int:
        return self._answer.seed

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_ids)

    @property
    def completion_tokens(self) -> int:
        return len(self.token_ids)

    def __iter__(self) -> "Generation":
        return self

    def __next__(self) -> Step:
        if self._closed or self.finish_reason:
            self.close()
            raise StopIteration
        start = time.perf_counter()
        first = not self.token_ids
        try:
            step = self._step()
        except BaseException:
            self.close()
            raise
        elapsed = time.perf_counter() - start
        if first:
            self.prefill_s = elapsed
        else:
            self.decode_s += elapsed
        if self.finish_reason:
            self.close()
        return step

    def read(self) -> str:
        """Runs to the end; the whole text."""
        for _ in self:
            pass
        return self.text

    def close(self) -> None:
        """Ends the answer here and gives the sequence back. Closing twice does nothing."""
        if not self._closed:
            self._closed = True
            if self._on_close:
                self._on_close()

    def __enter__(self) -> "Generation":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _step(self) -> Step:
        return self._answer.push(self._forward())

    def _forward(self) -> np.ndarray:
        """Logits after everything so far. One pass over the model; a prompt may take a few."""
        if self.token_ids:
            return self._decoder.forward([(self._sequence, self.token_ids[-1:])])[-1]
        self._sequence.truncate(self.cached_tokens)
        logits = self._decoder.prefill(self._sequence, self.prompt_ids[self.cached_tokens :])
        return logits.reshape(-1)
