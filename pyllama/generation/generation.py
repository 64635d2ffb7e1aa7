"""One answer, alone: an engine of one request that runs when it is asked for the next step."""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from pyllama.closing import Closing
from pyllama.errors import BusyError
from pyllama.generation.answer import Answer, AnswerOptions, Fingerprint, Step
from pyllama.generation.sampler import SamplingParams
from pyllama.generation.task import Drafting, Passed, Task, run_pass, share_out

if TYPE_CHECKING:
    from typing import Unpack

    from pyllama.decoder.extending import Extender
    from pyllama.decoder.kv_cache import CachedSequence


class Generation(Closing):
    """One answer to a prompt: an iterator of Step, closed by its end, by close() and by an error.

    While a step is computed, next() on another thread, or in a signal handler, raises BusyError and changes nothing;
    close() takes effect when the step is done, and may be used to stop a generation from elsewhere.

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
        decoder: "Extender",
        tokenizer: Any,
        sequence: "CachedSequence",
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        drafting: Drafting | None = None,
        on_close: Callable[[], None] | None = None,
        **options: "Unpack[AnswerOptions]",
    ):
        """Computes nothing yet.

        decoder      runs tokens through the model
        tokenizer    for the text and the ends of text
        sequence     the positions already in the cache: its tokens must be the first of prompt_ids (a new
                     sequence has none); only the rest is computed. It stays the caller's, to keep or to close
        prompt_ids   the whole prompt
        params       what to sample and when to stop
        drafting     proposes tokens, so that a pass gives several; None: one token a pass
        on_close     called once, when the sequence is no longer used; on the thread that found it so
        options      as in Answer

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
            **options,
        )
        # The last token's logits are needed, so it is computed again even if the cache has it.
        self.cached_tokens = sequence.restorable(self._answer.reusable)
        self.prefill_s = 0.0
        self.decode_s = 0.0
        self._decoder = decoder
        self._drafting = drafting
        self._task = Task(self._answer, sequence)
        self._sequence = sequence
        self._started = False
        self._steps: Generator[Step] = _nothing()  # of the last pass
        self._on_close = on_close
        self._closed = False
        self._stepping = threading.Lock()

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
    def proposed_tokens(self) -> int:
        """Tokens that a drafter proposed and passes computed."""
        return self._task.proposed

    @property
    def accepted_tokens(self) -> int:
        """Of those, the ones that became part of the answer: each saved a pass."""
        return self._task.accepted

    @property
    def tokens_a_pass(self) -> float:
        """Of the answer, on average, the pass that gave its first one included; 1 where nobody drafts."""
        own = self.completion_tokens - self.accepted_tokens
        return self.completion_tokens / own if own else 1.0

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_ids)

    @property
    def completion_tokens(self) -> int:
        return len(self.token_ids)

    def __iter__(self) -> "Generation":
        return self

    def __next__(self) -> Step:
        if self._stepping.locked():
            raise BusyError("generation: its next step is being computed already, by another thread or further up")
        try:
            with self._stepping:
                return self._timed_step()
        finally:
            self._release()

    def _timed_step(self) -> Step:
        if self._closed:
            raise StopIteration
        start = time.perf_counter()
        first = not self.token_ids
        try:
            while (step := next(self._steps, None)) is None:
                self._run()
        except BaseException:
            self._closed = True
            raise
        elapsed = time.perf_counter() - start
        if first:
            self.prefill_s = elapsed
        else:
            self.decode_s += elapsed
        self._closed = self._closed or step.finish_reason is not None
        return step

    def read(self) -> str:
        """Runs to the end; the whole text."""
        for _ in self:
            pass
        return self.text

    def close(self) -> None:
        """Ends the answer here and gives the sequence back. Closing twice does nothing."""
        self._closed = True
        self._release()

    def _release(self) -> None:
        """Give the sequence back if nobody will use it: not now, if a step is under way, which does it when it ends."""
        if self._closed and not self._stepping.locked():
            with self._stepping:
                self._steps.close()
                on_close, self._on_close = self._on_close, None
                drafting, self._drafting = self._drafting, None
                if drafting is not None:
                    drafting.forget(self._task)
                if on_close is not None:
                    on_close()

    def _run(self) -> None:
        """One pass over the model."""
        if not self._started:
            self._started = True
            self._sequence.truncate(self.cached_tokens)
            self._sequence.mark(self._answer.length, exactly=True)
        parts = share_out([self._task], self._decoder.max_pass_tokens)
        passed = run_pass(self._decoder, parts, self._drafting)
        self._steps = self._taken(passed)

    def _taken(self, passed: Passed) -> Generator[Step]:
        """The steps of a pass; to be closed if not all of them are wanted."""
        count = 0
        try:
            with closing(self._task.accept(passed.found[0])) as steps:
                for step in steps:
                    count += 1
                    yield step
        finally:
            if self._drafting is not None:
                self._drafting.passed([self._task], passed.tokens, passed.seconds, count)


def _nothing() -> Generator[Step]:
    yield from ()
