"""The tokenizer: text to token ids and back, whatever files it was read from.

Cuts added tokens out of the text, normalizes and splits the rest, lets a model turn the pieces into ids, and puts
the beginning and end tokens around. It reads no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pyllama.errors import TokenizerError
from pyllama.tokenizer.added_tokens import AddedToken, AddedTokens
from pyllama.tokenizer.chat_template import ChatTemplate
from pyllama.tokenizer.detokenizer import StreamDecoder
from pyllama.tokenizer.final_message import FinalMessage
from pyllama.tokenizer.steps import SPACE_MARK, Normalizer, PreTokenizer
from pyllama.tokenizer.vocabulary import Vocabulary

# Tokens that end an answer or a turn in one family or another; they end generation wherever they are special.
TURN_ENDS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|end|>",
)


class Model(Protocol):
    """Turns one piece of text into ids."""

    def encode(self, piece: str, out: list[int]) -> None: ...


@dataclass(slots=True)
class Parts:
    """What a tokenizer is made of; one of the readers fills it in.

    kind            "bpe", "sentencepiece" or "tiktoken"
    vocabulary      tokens of the model, in the bytes the model works on
    added           added tokens with their flags
    decoded         bytes an id decodes to, where they differ from the vocabulary's
    spaces          the vocabulary writes spaces as SPACE_MARK, and decoding drops one at the start
    before, after   ids put around a text: BOS, EOS
    normalized_contents  what to look for in normalized text, by token id; else each content, normalized
    """

    kind: str
    vocabulary: Vocabulary
    model: Model
    added: tuple[AddedToken, ...] = ()
    decoded: dict[int, bytes] = field(default_factory=dict)
    normalizer: Normalizer | None = None
    pre_tokenizer: PreTokenizer | None = None
    spaces: bool = False
    strip_space: bool = False
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    chat_template: ChatTemplate | None = None
    normalized_contents: dict[int, str] | None = None


class Tokenizer:
    """Text to token ids and back.

    kind           "bpe", "sentencepiece" or "tiktoken"
    vocab_size     one more than the largest id
    bos_token_id   beginning of text, or None
    eos_token_ids  ids that end an answer
    special_ids    control tokens: never made from user text, shown as nothing
    """

    def __init__(self, parts: Parts, model_vocab_size: int | None = None) -> None:
        self.kind = parts.kind
        self._vocabulary = parts.vocabulary
        self._model = parts.model
        self._normalizer, self._pre_tokenizer = parts.normalizer, parts.pre_tokenizer
        self._decoded = parts.decoded
        self._spaces, self._strip_space = parts.spaces, parts.strip_space
        self._before, self._after = list(parts.before), list(parts.after)
        self._template = parts.chat_template
        self.vocab_size = max([parts.vocabulary.size, *(token.id + 1 for token in parts.added)])
        if model_vocab_size is not None and self.vocab_size > model_vocab_size:
            raise TokenizerError(
                f"tokenizer: {self.vocab_size} tokens, expected at most vocab_size {model_vocab_size} of the "
                "model's config; are these the files of one model?"
            )
        self._id_limit = max(self.vocab_size, model_vocab_size or 0)
        self._ids_of_added = {token.content: token.id for token in parts.added}
        self.special_ids = frozenset(token.id for token in parts.added if token.special)
        self.bos_token_id = parts.bos_token_id
        ends = [*parts.eos_token_ids]
        for content in TURN_ENDS:
            token_id = self._ids_of_added.get(content)
            if token_id is not None and token_id in self.special_ids and token_id not in ends:
                ends.append(token_id)
        self.eos_token_ids = tuple(dict.fromkeys(ends))
        self._raw_added = AddedTokens(token for token in parts.added if not token.normalized)
        normalized = [token for token in parts.added if token.normalized]
        normalize = self._normalizer or (lambda text: text)
        contents = {token.id: normalize(token.content) for token in normalized}
        self._normalized_added = AddedTokens(normalized, contents | (parts.normalized_contents or {}))

    def __repr__(self) -> str:
        return f"<Tokenizer {self.kind}, {self.vocab_size} tokens>"

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False) -> list[int]:
        """The token ids of a text.

        add_special_tokens  put BOS and EOS around it where the model's files say so
        parse_special       control tokens written out in the text count as such; without, they are plain text

        Raises TokenizerError for lone surrogates, which no token stands for.
        """
        if not isinstance(text, str):
            raise TokenizerError(f"text: {type(text).__name__}, expected str")
        ids: list[int] = list(self._before) if add_special_tokens else []
        first = True
        for stretch in self._raw_added.split(text, parse_special):
            if isinstance(stretch, AddedToken):
                ids.append(stretch.id)
            else:
                self._encode_stretch(stretch, first, parse_special, ids)
            first = False
        if add_special_tokens:
            ids += self._after
        return ids

    def _encode_stretch(self, text: str, first: bool, parse_special: bool, ids: list[int]) -> None:
        if self._normalizer is not None:
            text = self._normalizer(text)
        for stretch in self._normalized_added.split(text, parse_special):
            if isinstance(stretch, AddedToken):
                ids.append(stretch.id)
            else:
                pieces = [stretch] if self._pre_tokenizer is None else self._pre_tokenizer([stretch], first)
                for piece in pieces:
                    self._model.encode(piece, ids)
            first = False

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; none for an id the tokenizer has no token for."""
        if not 0 <= token_id < self._id_limit:
            raise TokenizerError(f"token id {token_id}, expected 0 to {self._id_limit - 1}")
        data = self._decoded.get(token_id)
        if data is None:
            data = self._vocabulary.bytes_of(token_id) if token_id < self._vocabulary.size else b""
            if self._spaces:
                data = data.replace(SPACE_MARK.encode(), b" ")
        return data

    def stream(self, *, skip_special_tokens: bool = True, continuation: bool = False) -> StreamDecoder:
        """A decoder for ids that come one by one.

        skip_special_tokens  control tokens give ""
        continuation         the text goes on after other text: a SentencePiece model's first space is kept
        """
        return StreamDecoder(
            self._shown_bytes if skip_special_tokens else self.token_bytes,
            strip_space=self._strip_space and not continuation,
            replace_each=self._spaces,
        )

    def _shown_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self.special_ids else self.token_bytes(token_id)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids: what stream() gives for them, together."""
        stream = self.stream(skip_special_tokens=skip_special_tokens)
        return "".join([*map(stream.push, map(int, ids)), stream.finish()])

    def id_of(self, token: str) -> int | None:
        """The id of a token given as its text (spaces as spaces), or None."""
        token_id = self._ids_of_added.get(token)
        if token_id is None:
            data = (token.replace(" ", SPACE_MARK) if self._spaces else token).encode("utf-8", "replace")
            token_id = self._vocabulary.find(data)
        return token_id if token_id >= 0 else None

    @property
    def chat_template(self) -> str | None:
        """The text of the chat template, or None."""
        return None if self._template is None else self._template.source

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The text of a chat, ready for encode(..., add_special_tokens=False, parse_special=True)."""
        if self._template is None:
            raise TokenizerError("this model has no chat template; give it a prompt instead of messages")
        if continue_final_message:
            final = FinalMessage(messages, self._template.source)
            return final.cut(
                self._template.render(final.messages, add_generation_prompt=False, tools=tools, **variables)
            )
        return self._template.render(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, **variables
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """The token ids of a chat. The template writes BOS itself, so none is added.

        continue_final_message  end where the last message ends, so that the answer goes on there. White space at its
                                end stays, unless the template takes it away

        Raises RequestError where the template refuses the messages, TokenizerError where it is bad itself.
        """
        text = self.apply_chat_template(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            **variables,
        )
        return self.encode(text, add_special_tokens=False, parse_special=True)
