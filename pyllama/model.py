"""A Model that answers prompts: the public Python API.

Owns checkpoint, tokenizer, weights and decoder until it is closed. It computes nothing itself and knows no file format.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllama.closing import Closing
from pyllama.errors import ContextOverflowError, PyllamaError, RequestError
from pyllama.generation import Generation, Guide
from pyllama.generation.chat import Chat
from pyllama.generation.harmony import is_harmony
from pyllama.generation.prompt import Prompt, is_chat
from pyllama.generation.sampler import SamplingParams

if TYPE_CHECKING:
    from pyllama.architecture.config import Config
    from pyllama.checkpoint import Checkpoint
    from pyllama.decoder.exclusive import Exclusive
    from pyllama.drafting.drafts import AdaptiveDrafting
    from pyllama.planning.memory import Plan
    from pyllama.tokenizer import Tokenizer


class Model(Closing):
    """A loaded model; a context manager. Made by load().

    checkpoint      the files: path, format, config, tensors
    tokenizer       encode(text) -> token ids, decode(ids) -> text, and the chat template; a MissingTokenizer refuses
    decoder         runs tokens of sequences through the layers: ExclusiveDecoder, or of boards ClusterDecoder
    config          the hyperparameters, named as in config.json
    context_length  positions a sequence may have
    plan            how the memory is divided
    drafting        what proposes tokens, so that a pass gives several, or None

    Any thread may use it, one at a time: while a pass is under way, whoever else wants one, or closes the model, gets
    a BusyError. A forked child may go on with it, by itself.
    """

    def __init__(
        self,
        checkpoint: "Checkpoint",
        tokenizer: "Tokenizer",
        decoder: "Exclusive",
        plan: "Plan | None" = None,
        drafting: "AdaptiveDrafting | None" = None,
    ):
        self.checkpoint = checkpoint
        self.tokenizer = tokenizer
        self.decoder = decoder
        self.plan = plan
        self.drafting = drafting
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
        self,
        prompt: Prompt,
        *,
        fingerprint: bool = False,
        parse_special: bool | None = None,
        variables: Mapping[str, Any] | None = None,
        guide: Guide | None = None,
        show_special: bool = False,
        prediction: str | Sequence[int] = (),
        **sampling,
    ) -> Generation:
        """Answers a prompt: an iterator of steps, one a token.

        prompt         text, continued as it is; or token ids; or messages, [{"role": "user", "content": "..."}, ...],
                       put through the chat template
        fingerprint    hash the logits of every sampled position: `.fingerprint.hexdigest()`
        parse_special  whether control tokens written out in the prompt count as such; default: those in a text do,
                       those in messages are plain text
        variables      of the chat template, besides messages, such as {"enable_thinking": False} or {"tools": [...]}
        guide          restricts the tokens, as a grammar does; for this answer alone
        show_special   whether control tokens show in the text, as calls of tools need; in answers to messages they do
                       where the model writes harmony: generation.harmony.said() takes those apart
        prediction     text or token ids that the answer may repeat in part, as an edited file does the old one: where
                       there is a drafter, it proposes them. Changes nothing but time
        sampling       fields of SamplingParams: temperature, top_p, seed, max_tokens, stop, ...

        Each step has token_id, text, logprob, top_logprobs and finish_reason; the Generation itself has
        token_ids, text and times, .read() for the whole text at once, and .close() to stop early.

        Raises RequestError, TokenizerError or ContextOverflowError before anything is computed.
        """
        params = SamplingParams.from_options(**sampling)
        if params.stop and self.tokenizer.kind == "none":
            self.tokenizer.encode("")  # which refuses: a stop string is text, and would never be found
        prompt_ids = self.encode_prompt(prompt, parse_special=parse_special, variables=variables)
        predicted: Sequence[int] = (
            self.tokenizer.encode(prediction, add_special_tokens=False) if isinstance(prediction, str) else prediction
        )
        show_special = show_special or (is_chat(prompt) and is_harmony(self.tokenizer.chat_template))
        sequence = self.new_sequence()
        try:
            return Generation(
                self.decoder,
                self.tokenizer,
                sequence,
                prompt_ids,
                params,
                continuation=not is_chat(prompt),
                fingerprint=fingerprint,
                guide=guide,
                show_special=show_special,
                prediction=predicted,
                drafting=self.drafting,
                on_close=sequence.close,
            )
        except BaseException:
            sequence.close()
            raise

    def chat(self, system: str | None = None, **sampling) -> Chat:
        """A conversation whose history stays in the cache; the arguments hold for all its answers."""
        self._check_open()
        return Chat(self.decoder, self.tokenizer, system, SamplingParams.from_options(**sampling), self.drafting)

    def forward(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Logits after every token.

        token_ids  T token ids, at positions 0 to T - 1
        returns    (T, vocab_size) float32: row t is what follows token_ids[:t + 1]

        Raises ContextOverflowError for more tokens than the context holds. Cost: one pass over the weights, a
        few for a long text, and 4 * T * vocab_size bytes.
        """
        token_ids = self._checked(token_ids)
        if len(token_ids) > self.context_length:
            raise ContextOverflowError(f"token_ids: {len(token_ids)} tokens, the context holds {self.context_length}")
        out = np.empty((len(token_ids), self.config.vocab_size), np.float32)  # (T, vocab_size)
        with self.new_sequence() as sequence:
            step = self.decoder.max_pass_tokens
            for start in range(0, len(token_ids), step):
                part = token_ids[start : start + step]
                out[start : start + step] = self.decoder.forward([(sequence, part)], logits="all")
        return out

    def encode_prompt(
        self, prompt: Prompt, *, parse_special: bool | None = None, variables: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Token ids of any prompt generate() takes; their number is what it costs of the context.

        parse_special  whether control tokens written out in the prompt count as such; default: in a text to be
                       continued they do, in messages they are plain text
        variables      of the chat template, besides the messages
        """
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, parse_special=parse_special is not False)
        if is_chat(prompt):
            if self.tokenizer.chat_template is None:
                raise RequestError.about("messages", "this model has no chat template, give it text to continue")
            messages = [dict(message) for message in prompt]
            return self.tokenizer.encode_chat(messages, parse_special=bool(parse_special), **(variables or {}))
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
            if self.drafting is not None:
                self.drafting.close()
            self.decoder.weights.close()
            self.checkpoint.close()

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
            raise RequestError.about("prompt", "expected text, a list of token ids or a list of messages")
        wrong = ids[(ids < 0) | (ids >= vocab_size)] if len(ids) else ids
        if len(wrong):
            raise RequestError(f"token id: {wrong[0]}, expected 0 to {vocab_size - 1}")
        return ids.tolist()
