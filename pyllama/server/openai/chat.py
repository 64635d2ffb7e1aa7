"""POST /v1/chat/completions: a conversation in, its next message out."""

from starlette.requests import Request
from starlette.responses import Response

from pyllama.generation import Step
from pyllama.server.choice import Choice
from pyllama.server.conversation import Asked, ask
from pyllama.server.json_object import JsonObject
from pyllama.server.openai import foreign_fields, logprobs
from pyllama.server.openai.reply import ChoiceObject, OpenAIReply
from pyllama.server.service import Service


async def create(service: Service, request: Request, body: JsonObject) -> Response:
    foreign_fields.refuse(body)
    answer = _Chat(service, await ask(service, request, body))
    del body  # an answer may take long
    return await answer.response(request)


class _Chat(OpenAIReply):
    def __init__(self, service: Service, asked: Asked):
        kind = "chat.completion.chunk" if asked.want.stream else "chat.completion"
        super().__init__(service, asked.streams, asked.want, "chatcmpl", kind)
        self._choices = [Choice(service, asked, stream.request.answer.prompt_ids) for stream in asked.streams]
        self._logged: list[list[JsonObject]] = [[] for _ in asked.streams]

    def opening(self) -> list[ChoiceObject]:
        return [_delta(index, {"role": "assistant", "content": ""}) for index in range(len(self.streams))]

    def take(self, index: int, step: Step) -> list[ChoiceObject]:
        choice, told = self._choices[index], len(self._choices[index].calls)
        content, new = choice.take(step)
        reported = self._logprobs(step)
        if reported and not self.want.stream:
            self._logged[index] += reported["content"]
        parts = []
        if choice.thought:
            parts.append(_delta(index, {"reasoning_content": choice.thought}))
        if content or (reported and reported["content"]):
            parts.append(_delta(index, {"content": content}, reported))
        parts += [_delta(index, {"tool_calls": [call.as_openai(told + i)]}) for i, call in enumerate(new)]
        if choice.finish_reason:
            parts.append(_delta(index, {}, finish_reason=choice.finish_reason))
        return parts

    def _logprobs(self, step: Step) -> JsonObject | None:
        top, tokenizer = self.want.top_logprobs, self.service.tokenizer
        if top is None:
            return None
        content = [] if logprobs.is_ending(step, tokenizer) else [logprobs.of_chat(step, tokenizer, top)]
        return {"content": content, "refusal": None}

    def choices(self) -> list[ChoiceObject]:
        return [self._choice(index, choice) for index, choice in enumerate(self._choices)]

    def _choice(self, index: int, choice: Choice) -> ChoiceObject:
        message: JsonObject = {"role": "assistant", "content": choice.content, "refusal": None}
        if choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.calls:
            message["content"] = choice.content or None
            message["tool_calls"] = [call.as_openai() for call in choice.calls]
        reported = None if self.want.top_logprobs is None else {"content": self._logged[index], "refusal": None}
        return {"index": index, "message": message, "logprobs": reported, "finish_reason": choice.finish_reason}


def _delta(
    index: int, delta: JsonObject, reported: JsonObject | None = None, finish_reason: str | None = None
) -> ChoiceObject:
    return {"index": index, "delta": delta, "logprobs": reported, "finish_reason": finish_reason}
