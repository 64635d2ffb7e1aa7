"""POST /v1/completions: texts in, what follows them out."""

from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from pyllama.engine import Stream
from pyllama.generation import Step
from pyllama.generation.sampler import Sample
from pyllama.server.errors import ApiError, invalid, unsupported
from pyllama.server.fill_in import Gap, prompt_of
from pyllama.server.json_object import JsonObject
from pyllama.server.openai import foreign_fields, logprobs
from pyllama.server.openai.logprobs import Echo, Reported, echo_of
from pyllama.server.openai.reply import ChoiceObject, OpenAIReply
from pyllama.server.sampling import Wanted, wanted
from pyllama.server.schemas import listed
from pyllama.server.service import Service

DEFAULT_MAX_TOKENS = 16  # OpenAI's


async def create(service: Service, request: Request, body: JsonObject) -> Response:
    top = body.get("logprobs")
    foreign_fields.refuse(body)
    most = body.get("max_tokens")
    # The pass over a prompt gives its first token, too: one that was not asked for is left out.
    most_tokens = DEFAULT_MAX_TOKENS if most is None else max(1, most)
    want = wanted(body, most_tokens, top, service.model.config.vocab_size, service.sampling_defaults)
    if body.get("best_of") not in (None, want.n):
        raise unsupported("best_of", f"got {body['best_of']}, expected n, {want.n}")
    given = listed(body["prompt"])
    if body.get("suffix"):
        prompts, ends = await service.in_text_thread(request, _around, service, given, body)
        want = replace(want, params=replace(want.params, stop_token_ids=(*want.params.stop_token_ids, *ends)))
    else:
        prompts = await service.in_text_thread(request, _encode, service, given)
    echoes = [Echo("", []) for _ in prompts]
    if body.get("echo"):
        both = zip(given, prompts, strict=True)
        echoes = await service.in_text_thread(
            request, lambda: [echo_of(prompt, ids, service.tokenizer) for prompt, ids in both]
        )
    scored = top if body.get("echo") else None
    streams = service.submit(
        prompts, want, request, body.get("user"), "prompt", continuation=True, prompt_logprobs=scored
    )
    del body, given  # an answer may take long
    answer = _Completion(service, streams, want, echoes, scored=scored is not None, sampled=most != 0)
    return await answer.response(request)


def _encode(service: Service, prompts: list[str | list[int]]) -> list[list[int]]:
    """Token ids of each prompt."""
    size = service.model.config.vocab_size
    for prompt in prompts:
        wrong = [] if isinstance(prompt, str) else [token_id for token_id in prompt if token_id >= size]
        if wrong:
            raise invalid("prompt", f"token id {wrong[0]}, expected 0 to {size - 1}")
    encoded = [service.model.encode_prompt(one) for one in prompts]
    for index, ids in enumerate(encoded):
        if not ids:
            raise ApiError(400, f"prompt[{index}]: no tokens, expected at least one", "prompt", "invalid_value")
    return encoded


def _around(service: Service, prompts: list[str | list[int]], body: JsonObject) -> tuple[list[list[int]], list[int]]:
    """Token ids of each prompt with a gap between it and the suffix, and those that end what fills it."""
    if body.get("echo"):
        raise unsupported("echo", "not together with suffix")
    found: list[list[int]] = []
    ends: list[int] = []
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise unsupported("prompt", "token ids, expected text together with suffix")
        ids, ends = prompt_of(service.tokenizer, Gap(prompt, body["suffix"]), "suffix")
        found.append(ids)
    return found, ends


class _Choice:
    def __init__(self) -> None:
        self.text = ""
        self.reported: list[Reported] = []
        self.finish_reason: str | None = None
        self.begun = False


class _Completion(OpenAIReply):
    """scored: whether echoes come with log-probabilities; sampled: whether what was sampled is wanted."""

    def __init__(
        self, service: Service, streams: list[Stream], want: Wanted, echoes: list[Echo], *, scored: bool, sampled: bool
    ):
        super().__init__(service, streams, want, "cmpl", "text_completion", sampled=sampled)
        self._echoes, self._scored = echoes, scored
        self._choices = [_Choice() for _ in streams]

    def _begin(self, index: int) -> list[ChoiceObject]:
        """The prompt as the choice's first part; none where nothing is echoed."""
        choice, echo = self._choices[index], self._echoes[index // self.want.n]
        choice.begun, choice.text = True, echo.text
        if not echo.text and not self._scored:
            return []
        if self._scored:
            answer = self.streams[index - index % self.want.n].request.answer  # the first of n scores for all
            samples = [Sample(answer.prompt_ids[0]), *answer.scored]
            choice.reported = [
                Reported(sample.token_id, sample.logprob, sample.top, offset)
                for sample, offset in zip(samples, echo.offsets, strict=True)
            ]
        return [self._part(index, echo.text, choice.reported, None)]

    def take(self, index: int, step: Step) -> list[ChoiceObject]:
        choice = self._choices[index]
        parts = [] if choice.begun else self._begin(index)
        choice.finish_reason = step.finish_reason
        if not self._sampled:
            choice.finish_reason = "length"
            return [*parts, self._part(index, "", [], "length")]
        reported = []
        if self.want.top_logprobs is not None:
            # Also of the token that ended the answer: lm-evaluation-harness leaves the last one out, whichever it is.
            reported = [Reported(step.token_id, step.logprob, step.top_logprobs, len(choice.text))]
        choice.reported += reported
        choice.text += step.text
        if step.text or reported or step.finish_reason:
            parts.append(self._part(index, step.text, reported, step.finish_reason))
        return parts

    def _part(self, index: int, text: str, reported: list[Reported], finish_reason: str | None) -> ChoiceObject:
        """As a chunk of a stream has it: no log-probabilities where there are none."""
        about = self._reported(reported) if reported else None
        return {"index": index, "text": text, "logprobs": about, "finish_reason": finish_reason}

    def _reported(self, reported: list[Reported]) -> JsonObject | None:
        top = self.want.top_logprobs
        return None if top is None else logprobs.of_completion(reported, self.service.tokenizer, top)

    def choices(self) -> list[ChoiceObject]:
        return [
            {
                "index": index,
                "text": choice.text,
                "logprobs": self._reported(choice.reported),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self._choices)
        ]
