"""A conversation: messages in, steps out, with the history kept in the KV cache.

Each turn renders the whole conversation, finds how many of its first tokens the cache already holds, and
computes the rest. What the template makes of the messages is the tokenizer's business.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from pyllama.closing import Closing
from pyllama.errors import BusyError, RequestError
from pyllama.generation import Drafting, Generation
from pyllama.generation.harmony import is_harmony, said
from pyllama.generation.sampler import SamplingParams

if TYPE_CHECKING:
    from pyllama.decoder.exclusive import Exclusive
    from pyllama.tokenizer import Tokenizer


class Chat(Closing):
    """The turns of one conversation with a model; a context manager. Made by Model.chat().

    system     the system prompt, or None; a new one holds from the next message on
    params     what to sample and when to stop; new ones, too
    variables  of the template, besides messages: {"enable_thinking": False} for models that ask
    messages   [{"role": ..., "content": ...}, ...]: every finished turn, after the system prompt, if there is one
    """

    def __init__(
        self,
        decoder: "Exclusive",
        tokenizer: "Tokenizer",
        system: str | None,
        params: SamplingParams,
        drafting: Drafting | None = None,
    ):
        if tokenizer.chat_template is None:
            raise RequestError(
                "chat: this model has no chat template, it can only continue text; chat_template gives it one"
            )
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._drafting = drafting
        self.params = params
        self.variables: dict[str, Any] = {}
        self._harmony = is_harmony(tokenizer.chat_template)
        self._sequence = decoder.new_sequence()
        self._cached_ids: list[int] = []  # what the sequence holds, token for token
        self._generation: Generation | None = None
        self._changing = threading.Lock()
        self.messages: list[dict[str, str]] = []
        self.system = system

    def send(self, content: str) -> Generation:
        """The user's next message; an iterator of the answer's steps.

        The turn is part of the history when the answer ends, also when it was closed early with some text. A
        turn that got no text before it was interrupted, or failed, is forgotten.

        Raises ContextOverflowError if the conversation has outgrown the context, and BusyError while another thread
        computes the answer before this one. Cost: one pass for what the cache does not hold yet, and one a token.
        """
        with self._changed_alone():
            messages = [*self.messages, {"role": "user", "content": content}]
            prompt_ids = self._tokenizer.encode_chat(messages, **self.variables)
            self._forget_beyond(prompt_ids)
            self._generation = Generation(
                self._decoder,
                self._tokenizer,
                self._sequence,
                prompt_ids,
                self.params,
                drafting=self._drafting,
                show_special=self._harmony,
                on_close=lambda: self._end_turn(messages),
            )
            return self._generation

    @property
    def system(self) -> str | None:
        first = self.messages[0] if self.messages else {}
        return first["content"] if first.get("role") == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        turns = self.messages[self.system is not None :]
        self._set_messages(turns if text is None else [{"role": "system", "content": text}, *turns])

    def reset(self) -> None:
        """Forgets the conversation, but not the system prompt."""
        self._set_messages(self.messages[: self.system is not None])

    def undo(self) -> str | None:
        """Forgets the last turn; the message it began with, None if there is no turn."""
        users = [index for index, message in enumerate(self.messages) if message["role"] == "user"]
        if not users:
            return None
        last = self.messages[users[-1]]["content"]
        self._set_messages(self.messages[: users[-1]])
        return last

    def restore(self, messages: list[dict[str, str]]) -> None:
        """Goes on from another conversation. Raises RequestError if the template refuses it."""
        self._tokenizer.encode_chat([*messages, {"role": "user", "content": ""}], **self.variables)
        self._set_messages(messages)

    def _set_messages(self, messages: list[dict[str, str]]) -> None:
        with self._changed_alone():
            self.messages = messages

    def warm_up(self, on_layer: Callable[[int], None] | None = None) -> None:
        """Computes what the next message's prompt begins with, whatever the message: its pass reads the weights, too.

        on_layer  called with the number of each layer before it runs; what it raises ends the pass

        Cost: one pass. While another thread does it, send() and the others raise BusyError.
        """
        with self._changed_alone():
            asked = [self._tokenizer.encode_chat([*self.messages, {"role": "user", "content": text}], **self.variables)
                     for text in ("a", "1")]  # fmt: skip
            ids = asked[0][: max(1, len(commonprefix(asked)))][: self._decoder.max_pass_tokens]
            self._forget_beyond(ids)
            new = ids[self._sequence.length :]
            if new:
                self._decoder.forward([(self._sequence, new)], on_layer=on_layer)
                self._cached_ids = ids

    def close(self) -> None:
        """Gives the cache back. Raises BusyError while another thread computes an answer."""
        with self._changed_alone():
            self._sequence.close()

    @contextmanager
    def _changed_alone(self) -> Iterator[None]:
        """For as long as the block lasts; the last answer has ended. Raises BusyError."""
        if self._changing.locked():
            raise BusyError("chat: another thread changes this conversation")
        with self._changing:
            if self._generation:
                self._generation.close()
            if self._generation:  # its step is under way elsewhere: the sequence is not free yet
                raise BusyError("chat: the last answer is still being computed; it ends with the token under way")
            yield

    def _forget_beyond(self, ids: list[int]) -> None:
        """The cache keeps what is the beginning of these ids."""
        length = self._sequence.restorable(len(commonprefix([self._cached_ids, ids])))
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
            text = said(generation.text)[1] if self._harmony else generation.text
            self.messages = [*messages, {"role": "assistant", "content": text}]
