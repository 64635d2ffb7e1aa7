"""A conversation: messages in, steps out, with the history kept in the KV cache.

Each turn renders the whole conversation, finds how many of its first tokens the cache already holds, and
computes the rest. What the template makes of the messages is the tokenizer's business.
"""

from typing import TYPE_CHECKING

from pyllama.errors import RequestError
from pyllama.generation import Generation
from pyllama.sampler import SamplingParams

if TYPE_CHECKING:
    from pyllama.model import Model


class Chat:
    """The turns of one conversation with a model; a context manager. Made by Model.chat().

    messages  [{"role": ..., "content": ...}, ...]: the system prompt, if any, and every finished turn
    """

    def __init__(self, model: "Model", system: str | None, params: SamplingParams):
        if model.tokenizer.chat_template is None:
            raise RequestError("chat: this model has no chat template, it can only continue text")
        self._model = model
        self._params = params
        self._system = system
        self._sequence = model.new_sequence()
        self._cached_ids: list[int] = []  # what the sequence holds, token for token
        self._generation: Generation | None = None
        self.messages: list[dict[str, str]] = []
        self.reset()

    def send(self, content: str) -> Generation:
        """The user's next message; an iterator of the answer's steps.

        The turn is part of the history when the answer ends, also when it was closed early with some text. A
        turn that got no text before it was interrupted, or failed, is forgotten.

        Raises ContextOverflowError if the conversation has outgrown the context. Cost: one pass for what the
        cache does not hold yet, and one a token.
        """
        if self._generation:
            self._generation.close()
        messages = [*self.messages, {"role": "user", "content": content}]
        prompt_ids = self._model.tokenizer.encode_chat(messages)
        self._forget_beyond(_common_prefix(self._cached_ids, prompt_ids))
        self._generation = Generation(
            self._model.decoder,
            self._model.tokenizer,
            self._sequence,
            prompt_ids,
            self._params,
            on_close=lambda: self._end_turn(messages),
        )
        return self._generation

    def reset(self) -> None:
        """Forgets the conversation, but not the system prompt."""
        if self._generation:
            self._generation.close()
        self.messages = [] if self._system is None else [{"role": "system", "content": self._system}]

    def close(self) -> None:
        """Gives the cache back."""
        if self._generation:
            self._generation.close()
        self._sequence.close()

    def __enter__(self) -> "Chat":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _forget_beyond(self, length: int) -> None:
        self._sequence.truncate(length)
        del self._cached_ids[length:]

    def _end_turn(self, messages: list[dict[str, str]]) -> None:
        generation, self._generation = self._generation, None
        if generation is None:
            return
        # The sequence counts the passes that were completed, so this holds after an interrupt as well.
        ids = generation.prompt_ids + generation.token_ids
        self._cached_ids = ids[: self._sequence.length]
        if generation.text or generation.finish_reason:
            self.messages = [*messages, {"role": "assistant", "content": generation.text}]


def _common_prefix(first: list[int], second: list[int]) -> int:
    length = 0
    for a, b in zip(first, second):
        if a != b:
            break
        length += 1
    return length
