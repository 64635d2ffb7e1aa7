"""POST /v1/completions: texts in, what follows them out."""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pyllama.engine import Stream
from pyllama.generation import Step
from pyllama.sampler import Sample
from pyllama.server import foreign_fields, logprobs
from pyllama.server.answers import DONE, PING, PROGRESS_S, EventStream, event, merged, unless_hung_up
from pyllama.server.errors import ApiError
from pyllama.server.logprobs import Echo, Reported, echo_of
from pyllama.server.sampling import Wanted, wanted
from pyllama.server.schemas import COMPLETION
from pyllama.server.service import Service
from pyllama.server.usage import details, progress, usage

DEFAULT_MAX_TOKENS = 16  # OpenAI's


async def create(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await service.read(request, COMPLETION)
    top = body.get("logprobs")
    foreign_fields.refuse(body)
    most = body.get("max_tokens")
    # The pass over a prompt gives its first token, too: one that was not asked for is left out.
    want = wanted(body, DEFAULT_MAX_TOKENS if most is None else max(1, most), top, service.model.config.vocab_size)
    if body.get("suffix"):
        raise ApiError(400, "suffix: not supported, expected none", "suffix", "unsupported")
    if body.get("best_of") not in (None, want.n):
        raise ApiError(400, f"best_of: got {body['best_of']}, expected n, {want.n}", "best_of", "unsupported")
    given = _prompts(body["prompt"])
    prompts = await service.in_text_thread(request, _encode, service, given)
    echoes = [Echo("", []) for _ in prompts]
    if body.get("echo"):
        echoes = await service.in_text_thread(request, _echoes, service, given, prompts)
    scored = top if body.get("echo") else None
    streams = service.submit(
        prompts, want, request, body.get("user"), "prompt", continuation=True, prompt_logprobs=scored
    )
    del body, given  # an answer may take long
    answer = _Completion(service, streams, want, echoes, scored=scored is not None, written=most != 0)
    if want.stream:
        return EventStream(answer.events(), streams, service.settings.timeout_s)
    return JSONResponse(await unless_hung_up(request, answer.whole(), service.settings.timeout_s))


def _prompts(given: Any) -> list[str | list[int]]:
    """The prompts of a request, one or several."""
    return [given] if isinstance(given, str) or isinstance(given[0], int) else given


def _echoes(service: Service, prompts: list[str | list[int]], encoded: list[list[int]]) -> list[Echo]:
    return [echo_of(prompt, ids, service.tokenizer) for prompt, ids in zip(prompts, encoded, strict=True)]


def _encode(service: Service, prompts: list[str | list[int]]) -> list[list[int]]:
    """Token ids of each prompt."""
    size = service.model.config.vocab_size
    for prompt in prompts:
        wrong = [] if isinstance(prompt, str) else [token_id for token_id in prompt if token_id >= size]
        if wrong:
            raise ApiError(400, f"prompt: token id {wrong[0]}, expected 0 to {size - 1}", "prompt", "invalid_value")
    encoded = [service.model.encode_prompt(one) for one in prompts]
    for index, ids in enumerate(encoded):
        if not ids:
            raise ApiError(400, f"prompt[{index}]: no tokens, expected at least one", "prompt", "invalid_value")
    return encoded


class _Choice:
    def __init__(self) -> None:
        self.text = ""
        self.reported: list[Reported] = []
        self.finish_reason: str | None = None
        self.begun = False


class _Completion:
    """scored: whether echoes come with log-probabilities; written: whether what was sampled is wanted."""

    def __init__(
        self, service: Service, streams: list[Stream], want: Wanted, echoes: list[Echo], *, scored: bool, written: bool
    ):
        self._service, self._streams, self._want = service, streams, want
        self._echoes, self._scored, self._written = echoes, scored, written
        self._choices = [_Choice() for _ in streams]
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": service.fingerprint,
        }

    def _begin(self, index: int) -> dict[str, Any] | None:
        """The prompt as the choice's first part; None where nothing is echoed."""
        choice, echo = self._choices[index], self._echoes[index // self._want.n]
        choice.begun, choice.text = True, echo.text
        if not echo.text and not self._scored:
            return None
        if self._scored:
            answer = self._streams[index - index % self._want.n].request.answer  # the first of n scores for all
            samples = [Sample(answer.prompt_ids[0]), *answer.scored]
            choice.reported = [
                Reported(sample.token_id, sample.logprob, sample.top, offset)
                for sample, offset in zip(samples, echo.offsets, strict=True)
            ]
        return self._part(index, echo.text, choice.reported, None)

    def _take(self, index: int, step: Step) -> dict[str, Any]:
        """The choice's part that is new with this step."""
        choice = self._choices[index]
        choice.finish_reason = step.finish_reason
        if not self._written:
            choice.finish_reason = "length"
            return self._part(index, "", [], "length")
        reported = []
        if self._want.top_logprobs is not None:
            # Also of the token that ended the answer: lm-evaluation-harness leaves the last one out, whichever it is.
            reported = [Reported(step.token_id, step.logprob, step.top_logprobs, len(choice.text))]
        choice.reported += reported
        choice.text += step.text
        return self._part(index, step.text, reported, step.finish_reason)

    def _part(self, index: int, text: str, reported: list[Reported], finish_reason: str | None) -> dict[str, Any]:
        """As a chunk of a stream has it: no log-probabilities where there are none."""
        about = self._reported(reported) if reported else None
        return {"index": index, "text": text, "logprobs": about, "finish_reason": finish_reason}

    def _reported(self, reported: list[Reported]) -> dict[str, Any] | None:
        top = self._want.top_logprobs
        return None if top is None else logprobs.of_completion(reported, self._service.tokenizer, top)

    def _usage(self) -> dict[str, Any]:
        return usage(self._streams, self._want.n, written=self._written)

    async def whole(self) -> dict[str, Any]:
        async for arrived in merged(self._streams, None):
            if arrived is not None:
                if not self._choices[arrived[0]].begun:
                    self._begin(arrived[0])
                self._take(*arrived)
        choices = [
            {
                "index": index,
                "text": choice.text,
                "logprobs": self._reported(choice.reported),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self._choices)
        ]
        cost = {"usage": self._usage(), "pyllama": details(self._streams)}
        return {**self._head, "choices": choices, **cost}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        nothing = {"usage": None} if self._want.include_usage else {}
        return event({**self._head, "choices": choices, **nothing, **more})

    async def events(self) -> AsyncIterator[bytes]:
        quiet_s = PROGRESS_S if self._want.include_progress else self._service.settings.ping_s
        async for arrived in merged(self._streams, quiet_s):
            if arrived is None:
                yield self._progress() if self._want.include_progress else PING
                continue
            echo = None if self._choices[arrived[0]].begun else self._begin(arrived[0])
            if echo:
                yield self._chunk([echo])
            part = self._take(*arrived)
            if part["text"] or part["logprobs"] or part["finish_reason"]:
                yield self._chunk([part])
        if self._want.include_usage:
            cost = {"usage": self._usage(), "pyllama": details(self._streams)}
            yield self._chunk([], **cost)
        yield DONE

    def _progress(self) -> bytes:
        stats = self._service.engine.stats()
        return self._chunk([], progress=[progress(stream, stats.layer, stats.layers) for stream in self._streams])
