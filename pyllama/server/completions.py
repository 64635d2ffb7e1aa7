"""POST /v1/completions: texts in, what follows them out."""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pyllama.engine import Stream
from pyllama.generation import Step
from pyllama.server import logprobs
from pyllama.server.answers import DONE, PING, PROGRESS_S, EventStream, event, merged, unless_hung_up
from pyllama.server.errors import ApiError
from pyllama.server.sampling import Wanted, wanted
from pyllama.server.schemas import COMPLETION
from pyllama.server.service import Service
from pyllama.server.usage import details, progress, usage

DEFAULT_MAX_TOKENS = 16  # OpenAI's


async def create(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await service.read(request, COMPLETION)
    top = body.get("logprobs")
    want = wanted(body, body.get("max_tokens") or DEFAULT_MAX_TOKENS, top, service.model.config.vocab_size)
    if body.get("suffix"):
        raise ApiError(400, "suffix: not supported, expected none", "suffix", "unsupported")
    if body.get("best_of") not in (None, want.n):
        raise ApiError(400, f"best_of: got {body['best_of']}, expected n, {want.n}", "best_of", "unsupported")
    if body.get("echo") and top is not None:
        raise ApiError(400, "echo: not together with logprobs", "echo", "unsupported")
    prompts = await service.engine.in_text_thread(_encode, service, body["prompt"])
    echoes = [""] * len(prompts)
    if body.get("echo"):
        echoes = await service.engine.in_text_thread(lambda: [service.tokenizer.decode(ids) for ids in prompts])
    streams = service.submit(prompts, want, request, body.get("user"), continuation=True)
    answer = _Completion(service, streams, want, [echo for echo in echoes for _ in range(want.n)])
    if want.stream:
        return EventStream(answer.events(), streams, service.settings.timeout_s)
    return JSONResponse(await unless_hung_up(request, answer.whole(), service.settings.timeout_s))


def _encode(service: Service, prompt: Any) -> list[list[int]]:
    """Token ids of each prompt."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        prompt = [prompt]
    encoded = [service.model.encode_prompt(one) for one in prompt]
    for index, ids in enumerate(encoded):
        if not ids:
            raise ApiError(400, f"prompt[{index}]: no tokens, expected at least one", "prompt", "invalid_value")
    return encoded


class _Choice:
    def __init__(self, echo: str):
        self.text = echo
        self.steps: list[Step] = []
        self.offsets: list[int] = []
        self.finish_reason: str | None = None


class _Completion:
    def __init__(self, service: Service, streams: list[Stream], want: Wanted, echoes: list[str]):
        self._service, self._streams, self._want = service, streams, want
        self._choices = [_Choice(echo) for echo in echoes]
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": service.fingerprint,
        }

    def _take(self, index: int, step: Step) -> dict[str, Any]:
        """The choice's part that is new with this step."""
        choice = self._choices[index]
        reported = None
        if self._want.top_logprobs is not None and not logprobs.is_ending(step, self._service.tokenizer):
            choice.steps.append(step)
            choice.offsets.append(len(choice.text))
            reported = self._reported([step], [len(choice.text)])
        choice.text += step.text
        choice.finish_reason = step.finish_reason
        return {"index": index, "text": step.text, "logprobs": reported, "finish_reason": step.finish_reason}

    def _reported(self, steps: list[Step], offsets: list[int]) -> dict[str, Any] | None:
        top = self._want.top_logprobs
        return None if top is None else logprobs.of_completion(steps, offsets, self._service.tokenizer, top)

    async def whole(self) -> dict[str, Any]:
        async for arrived in merged(self._streams, None):
            if arrived is not None:
                self._take(*arrived)
        choices = [
            {
                "index": index,
                "text": choice.text,
                "logprobs": self._reported(choice.steps, choice.offsets),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self._choices)
        ]
        cost = {"usage": usage(self._streams, self._want.n), "pyllama": details(self._streams)}
        return {**self._head, "choices": choices, **cost}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        nothing = {"usage": None} if self._want.include_usage else {}
        return event({**self._head, "choices": choices, **nothing, **more})

    async def events(self) -> AsyncIterator[bytes]:
        for index, choice in enumerate(self._choices):
            if choice.text:
                yield self._chunk([{"index": index, "text": choice.text, "logprobs": None, "finish_reason": None}])
        quiet_s = PROGRESS_S if self._want.include_progress else self._service.settings.ping_s
        async for arrived in merged(self._streams, quiet_s):
            if arrived is None:
                yield self._progress() if self._want.include_progress else PING
                continue
            part = self._take(*arrived)
            if part["text"] or part["logprobs"] or part["finish_reason"]:
                yield self._chunk([part])
        if self._want.include_usage:
            cost = {"usage": usage(self._streams, self._want.n), "pyllama": details(self._streams)}
            yield self._chunk([], **cost)
        yield DONE

    def _progress(self) -> bytes:
        stats = self._service.engine.stats()
        return self._chunk([], progress=[progress(stream, stats.layer, stats.layers) for stream in self._streams])
