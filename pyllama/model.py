"""A path or a name in, a Model that answers prompts out: the public Python API.

Puts checkpoint, tokenizer, weights and decoder together and owns them until it is closed. It computes nothing
itself and knows no file format.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllama.chat import Chat
from pyllama.errors import BudgetError, ContextOverflowError, PyllamaError, RequestError
from pyllama.generation import Generation
from pyllama.sampler import SamplingParams

if TYPE_CHECKING:
    from pyllama.architecture.config import Config
    from pyllama.checkpoint import Checkpoint
    from pyllama.plan import Plan

#: Positions of a context nobody asked a length for, where the model allows as many.
DEFAULT_CONTEXT_LENGTH = 4096
KV_DTYPES = ("f16", "f32")

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message] | np.ndarray


def load(
    model: str | os.PathLike[str],
    *,
    context_length: int | None = None,
    kv_dtype: str = "f16",
    threads: int | None = None,
    memory: int | str | None = None,
    on_layer: Callable[[int], None] | None = None,
    contexts: int = 1,
    pre_tokenizer: str | None = None,
    **unknown: Any,
) -> "Model":
    """Opens a model; its weights are read by the first pass, and stay as far as memory allows.

    model           a Hugging Face folder, a GGUF file, Meta's original folder, one that `pyllama pack` wrote,
                    or the name of a model that was pulled ("org/name", "smollm2")
    context_length  positions a sequence may have; default: the model's own, at most 4096 and at most what an
                    eighth of the memory holds
    kv_dtype        how keys and values are kept: "f16", or "f32" at twice the memory
    threads         threads to compute with, for the whole process; default: the physical cores this process
                    may use. The results do not depend on it
    memory          what the whole process may take at its peak, in bytes or as "250M", "1.5G"; default: what is
                    available, less a margin. What does not fit is read again in every pass; the results do not
                    depend on it
    on_layer        called with the number of each layer before it runs; what it raises ends the pass and leaves
                    every sequence as it was
    contexts        sequences that are to have room for their keys and values, if memory allows: an Engine's
    pre_tokenizer   how a GGUF file's model splits text ("llama-bpe", "qwen2", ...), in place of what the file says
                    in tokenizer.ggml.pre

    Warns (BudgetWarning) of a memory beyond what the machine or the control group has.

    Raises RequestError for an argument out of range, BudgetError for too little memory, HubError for a name that
    is not there, CheckpointError for damaged files and UnsupportedError for a model pyllama does not run. Cost:
    reads the files' headers and the small vectors.
    """
    from pyllama import _kernels
    from pyllama.budget import default_budget, enough_for, interpreter_nbytes, parse_size, warn_if_beyond
    from pyllama.checkpoint import open_checkpoint
    from pyllama.exclusive import ExclusiveDecoder
    from pyllama.hub import resolve
    from pyllama.plan import TooSmallError, default_context, make_plan
    from pyllama.streaming import StreamedWeights
    from pyllama.threads import default_threads
    from pyllama.tokenizer import load_tokenizer

    if unknown:
        raise _unknown_argument(next(iter(unknown)), load)
    if kv_dtype not in KV_DTYPES:
        raise RequestError(f"kv_dtype: {kv_dtype!r}, expected {' or '.join(KV_DTYPES)}")
    _check_integer("threads", threads, 1, 1024)
    _check_integer("contexts", contexts, 1, 4096)
    budget = default_budget() if memory is None else parse_size(memory)
    if memory is not None:
        warn_if_beyond(budget)
    checkpoint = open_checkpoint(resolve(model))
    try:
        config = checkpoint.config
        _check_integer("context_length", context_length, 1, config.max_position_embeddings)
        if context_length is None:
            context_length = default_context(config, budget, kv_dtype, DEFAULT_CONTEXT_LENGTH)
        _kernels.set_num_threads(default_threads() if threads is None else threads)
        tokenizer = load_tokenizer(checkpoint, pre_tokenizer)
        plan = make_plan(
            checkpoint,
            budget,
            context_length=int(context_length),
            kv_dtype=kv_dtype,
            interpreter=interpreter_nbytes(tokenizer),
            contexts=contexts,
        )
        weights = StreamedWeights(checkpoint, slots=plan.slots, room=plan.room, pinned_nbytes=plan.pinned)
        decoder = ExclusiveDecoder(
            config,
            weights,
            context_length=plan.context_length,
            kv_dtype=kv_dtype,
            max_pass_tokens=plan.max_pass_tokens,
            rope_interleaved=checkpoint.rope_interleaved,
        )
        decoder.on_layer = on_layer
    except TooSmallError as error:
        checkpoint.close()
        if memory is None:
            raise BudgetError(f"{error}{enough_for(error.smallest)}") from None
        raise
    except BaseException:
        checkpoint.close()
        raise
    return Model(checkpoint, tokenizer, decoder, plan)


def _unknown_argument(name: str, function: Callable[..., Any]) -> RequestError:
    from inspect import Parameter, signature

    from pyllama.synonyms import meant, why_not

    known = [p.name for p in signature(function).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    ours, why = meant(name, known), why_not(name)
    hint = f"did you mean {ours}?" if ours else why or f"expected one of {', '.join(known)}"
    return RequestError(f"{name}: no such argument of {function.__name__}(), {hint}")


def _check_integer(name: str, value: int | None, low: int, high: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise RequestError(f"{name}: {value!r}, expected {low} to {high}")


class Model:
    """A loaded model; a context manager. Made by load().

    checkpoint      the files: path, format, config, tensors
    tokenizer       encode(text) -> token ids, decode(ids) -> text, and the chat template
    decoder         runs tokens of sequences through the layers
    config          the hyperparameters, named as in config.json
    context_length  positions a sequence may have
    plan            how the memory is divided

    Any thread may use it, one at a time: while a pass is under way, whoever else wants one, or closes the model, gets
    a BusyError. A forked child may go on with it, by itself.
    """

    def __init__(self, checkpoint: "Checkpoint", tokenizer, decoder, plan: "Plan | None" = None):
        self.checkpoint = checkpoint
        self.tokenizer = tokenizer
        self.decoder = decoder
        self.plan = plan
        self._closed = False

    @property
    def config(self) -> "Config":
        return self.decoder.config

    @property
    def context_length(self) -> int:
        return self.decoder.context_length

    @property
    def passes(self) -> int:
        """Passes over the weights so far."""
        return self.decoder.passes

    @property
    def bytes_read(self) -> int:
        """Bytes read from the model's files so far."""
        return self.decoder.weights.bytes_read

    def generate(
        self, prompt: Prompt, *, fingerprint: bool = False, parse_special: bool | None = None, **sampling
    ) -> Generation:
        """Answers a prompt: an iterator of steps, one a token.

        prompt         text, continued as it is; or token ids; or messages, [{"role": "user", "content": "..."}, ...],
                       put through the chat template
        fingerprint    hash the logits of every sampled position: `.fingerprint.hexdigest()`
        parse_special  whether control tokens written out in the prompt count as such; default: those in a text do,
                       those in messages are plain text
        sampling       fields of SamplingParams: temperature, top_p, seed, max_tokens, stop, ...

        Each step has token_id, text, logprob, top_logprobs and finish_reason; the Generation itself has
        token_ids, text and times, .read() for the whole text at once, and .close() to stop early.

        Raises RequestError, TokenizerError or ContextOverflowError before anything is computed.
        """
        params = SamplingParams.from_options(**sampling)
        if params.stop and self.tokenizer.kind == "none":
            self.tokenizer.refuse()  # a stop string is text, and would never be found
        prompt_ids = self.encode_prompt(prompt, parse_special=parse_special)
        is_chat = isinstance(prompt, (list, tuple)) and any(isinstance(item, Mapping) for item in prompt[:1])
        sequence = self.new_sequence()
        try:
            return Generation(
                self.decoder,
                self.tokenizer,
                sequence,
                prompt_ids,
                params,
                continuation=not is_chat,
                fingerprint=fingerprint,
                on_close=sequence.close,
            )
        except BaseException:
            sequence.close()
            raise

    def chat(self, system: str | None = None, **sampling) -> Chat:
        """A conversation whose history stays in the cache; the arguments hold for all its answers."""
        self._check_open()
        return Chat(self.decoder, self.tokenizer, system, SamplingParams.from_options(**sampling))

    def forward(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Logits after every token.

        token_ids  T token ids, at positions 0 to T - 1
        returns    (T, vocab_size) float32: row t is what follows token_ids[:t + 1]

        Raises ContextOverflowError for more tokens than the context holds. Cost: one pass over the weights, a
        few for a long text, and 4 * T * vocab_size bytes.
        """
        token_ids = self._checked(token_ids)
        if len(token_ids) > self.context_length:
            raise ContextOverflowError(
                f"token_ids: {len(token_ids)} tokens, the context holds {self.context_length}"
            )
        out = np.empty((len(token_ids), self.config.vocab_size), np.float32)  # (T, vocab_size)
        sequence = self.new_sequence()
        try:
            step = self.decoder.max_pass_tokens
            for start in range(0, len(token_ids), step):
                part = token_ids[start : start + step]
                out[start : start + step] = self.decoder.forward([(sequence, part)], logits="all")
        finally:
            sequence.close()
        return out

    def encode_prompt(self, prompt: Prompt, *, parse_special: bool | None = None) -> list[int]:
        """Token ids of any prompt generate() takes; their number is what it costs of the context.

        parse_special  whether control tokens written out in the prompt count as such; default: in a text to be
                       continued they do, in messages they are plain text
        """
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, parse_special=parse_special is not False)
        if isinstance(prompt, (list, tuple)) and prompt and all(isinstance(item, Mapping) for item in prompt):
            if self.tokenizer.chat_template is None:
                raise RequestError("messages: this model has no chat template, give it text to continue")
            messages = [dict(message) for message in prompt]
            return self.tokenizer.encode_chat(messages, parse_special=bool(parse_special))
        return self._checked(prompt)

    def new_sequence(self):
        """An empty sequence of the decoder; close it after use."""
        self._check_open()
        return self.decoder.new_sequence()

    def close(self) -> None:
        """Gives memory and files back. Closing twice does nothing. Raises BusyError while another thread computes."""
        if not self._closed:
            self.decoder.retire()
            self._closed = True
            self.decoder.weights.close()
            self.checkpoint.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise PyllamaError("model: closed, load it again")

    def _checked(self, token_ids) -> list[int]:
        vocab_size = self.config.vocab_size
        try:
            ids = np.asarray(token_ids)
        except ValueError:  # lists of different lengths
            ids = np.empty(1, object)
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            raise RequestError("prompt: expected text, a list of token ids or a list of messages")
        wrong = ids[(ids < 0) | (ids >= vocab_size)] if len(ids) else ids
        if len(wrong):
            raise RequestError(f"token id: {wrong[0]}, expected 0 to {vocab_size - 1}")
        return ids.tolist()
