"""POST /v1/completions: texts in, what follows them out."""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pyllama.engine import Stream
from pyllama.generate import Step
from pyllama.sampler import Sample
from pyllama.server import logprobs
from pyllama.server.answers import DONE, PING, PROGRESS_S, EventStream, event, merged, unless_hung_up
from pyllama.server.echo import NOTHING, Echo, echo_of
from pyllama.server.errors import ApiError
from pyllama.server.sampling import Wanted, wanted
from pyllama.server.schemas import COMPLETION
from pyllama.server.service import Service
from pyllama.server.usage import details, progress, usage

DEFAULT_MAX_TOKENS = 16  # OpenAI's


async def create(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await service.read(request, COMPLETION)
    top, max_tokens = body.get("logprobs"), body.get("max_tokens")
    # Without a token to write, the pass that reads the prompt gives one all the same: it is not shown.
    want = wanted(
        body, DEFAULT_MAX_TOKENS if max_tokens is None else max(1, max_tokens), top, service.model.config.vocab_size
    )
    if body.get("suffix"):
        raise ApiError(400, "suffix: not supported, expected none", "suffix", "unsupported")
    if body.get("best_of") not in (None, want.n):
        raise ApiError(400, f"best_of: got {body['best_of']}, expected n, {want.n}", "best_of", "unsupported")
    given = _prompts(body["prompt"])
    prompts = await service.engine.in_text_thread(_encode, service, given)
    echoes = [NOTHING] * len(prompts)
    if body.get("echo"):
        echoes = await service.engine.in_text_thread(_echoes, service, given, prompts)
    streams = service.submit(
        prompts, want, request, body.get("user"), continuation=True, param="prompt",
        prompt_logprobs=top if body.get("echo") else None,
    )  # fmt: skip
    answer = _Completion(service, streams, want, echoes, nothing=max_tokens == 0)
    if want.stream:
        return EventStream(answer.events(), streams, service.settings.timeout_s)
    return JSONResponse(await unless_hung_up(request, answer.whole(), service.settings.timeout_s))


def _prompts(given: Any) -> list[str | list[int]]:
    """The prompts of a request, one or several."""
    return [given] if isinstance(given, str) or isinstance(given[0], int) else given


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


def _echoes(service: Service, prompts: list[str | list[int]], encoded: list[list[int]]) -> list[Echo]:
    return [echo_of(prompt, ids, service.tokenizer) for prompt, ids in zip(prompts, encoded, strict=True)]


class _Choice:
    """One of the answers, as far as it has come.

    echo      the prompt that it begins with
    is_begun  whether the echo is in the text
    tokens    what log-probabilities are reported of, and where in the text they begin
    """

    def __init__(self, echo: Echo):
        self.echo = echo
        self.is_begun = False
        self.text = ""
        self.tokens: list[Step | Sample | int] = []
        self.offsets: list[int] = []
        self.finish_reason: str | None = None


class _Completion:
    """nothing: no token is to be written."""

    def __init__(self, service: Service, streams: list[Stream], want: Wanted, echoes: list[Echo], nothing: bool):
        self._service, self._streams, self._want, self._nothing = service, streams, want, nothing
        self._choices = [_Choice(echo) for echo in echoes for _ in range(want.n)]
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": service.fingerprint,
        }

    def _begin(self, index: int) -> dict[str, Any]:
        """The choice's part that is its prompt. With log-probabilities only once the prompt was computed."""
        choice = self._choices[index]
        choice.is_begun, choice.text = True, choice.echo.text
        reported = None
        if choice.echo.offsets and self._want.top_logprobs is not None:
            answer = self._streams[index - index % self._want.n].request.answer  # the first of n has them
            choice.tokens = [answer.prompt_ids[0], *answer.prompt_scores]
            choice.offsets = list(choice.echo.offsets)
            reported = self._reported(choice.tokens, choice.offsets)
        return {"index": index, "text": choice.text, "logprobs": reported, "finish_reason": None}

    def _take(self, index: int, step: Step) -> dict[str, Any]:
        """The choice's part that is new with this step."""
        choice = self._choices[index]
        reported, text = None, "" if self._nothing else step.text
        if self._want.top_logprobs is not None and not self._nothing:
            # The token that ends the answer, too: whoever counts them from the end relies on it.
            choice.tokens.append(step)
            choice.offsets.append(len(choice.text))
            reported = self._reported([step], [len(choice.text)])
        choice.text += text
        choice.finish_reason = "length" if self._nothing else step.finish_reason
        return {"index": index, "text": text, "logprobs": reported, "finish_reason": choice.finish_reason}

    def _reported(self, tokens: list[Step | Sample | int], offsets: list[int]) -> dict[str, Any] | None:
        top = self._want.top_logprobs
        return None if top is None else logprobs.of_completion(tokens, offsets, self._service.tokenizer, top)

    def _cost(self) -> dict[str, Any]:
        return {"usage": usage(self._streams, self._want.n, self._nothing), "pyllama": details(self._streams)}

    async def whole(self) -> dict[str, Any]:
        async for arrived in merged(self._streams, None):
            if arrived is not None:
                if not self._choices[arrived[0]].is_begun:
                    self._begin(arrived[0])
                self._take(*arrived)
        choices = [
            {
                "index": index,
                "text": choice.text,
                "logprobs": self._reported(choice.tokens, choice.offsets),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self._choices)
        ]
        return {**self._head, "choices": choices, **self._cost()}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        nothing = {"usage": None} if self._want.include_usage else {}
        return event({**self._head, "choices": choices, **nothing, **more})

    async def events(self) -> AsyncIterator[bytes]:
        for index, choice in enumerate(self._choices):
            if choice.echo.text and self._want.top_logprobs is None:
                yield self._chunk([self._begin(index)])
        quiet_s = PROGRESS_S if self._want.include_progress else self._service.settings.ping_s
        async for arrived in merged(self._streams, quiet_s):
            if arrived is None:
                yield self._progress() if self._want.include_progress else PING
                continue
            if not self._choices[arrived[0]].is_begun and (begun := self._begin(arrived[0]))["text"]:
                yield self._chunk([begun])
            part = self._take(*arrived)
            if part["text"] or part["logprobs"] or part["finish_reason"]:
                yield self._chunk([part])
        if self._want.include_usage:
            yield self._chunk([], **self._cost())
        yield DONE

    def _progress(self) -> bytes:
        stats = self._service.engine.stats()
        return self._chunk([], progress=[progress(stream, stats.layer, stats.layers) for stream in self._streams])
