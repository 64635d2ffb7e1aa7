"""The tokenizer: text to token ids and back, whatever files it was read from.

Cuts added tokens out of the text, normalizes and splits the rest, lets a model turn the pieces into ids, and puts
the beginning and end tokens around. It reads no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pyllama.errors import RequestError, TokenizerError
from pyllama.tokenizer.added_tokens import AddedToken, AddedTokens
from pyllama.tokenizer.chat_template import ChatTemplate
from pyllama.tokenizer.detokenizer import StreamDecoder
from pyllama.tokenizer.marks import Marks
from pyllama.tokenizer.steps import SPACE_MARK, Normalizer, PreTokenizer
from pyllama.tokenizer.vocabulary import Vocabulary


class Model(Protocol):
    """Turns one piece of text into ids, and knows of ids whether text becomes them."""

    def encode(self, piece: str, out: list[int]) -> None: ...

    def makes(self, ids: np.ndarray) -> np.ndarray: ...

    def forbid(self, ids: frozenset[int]) -> None: ...


@dataclass(slots=True)
class Parts:
    """What a tokenizer is made of; one of the readers fills it in.

    kind            "bpe", "sentencepiece" or "tiktoken"
    vocabulary      tokens of the model, in the bytes the model works on
    added           added tokens with their flags
    decoded         bytes an id decodes to, where they differ from the vocabulary's
    spaces          the vocabulary writes spaces as SPACE_MARK, and decoding drops one at the start
    before, after   ids put around a text: BOS, EOS
    special_texts   what a chat template sees besides messages: bos_token, eos_token, ... -> their text
    normalized_contents  what to look for in normalized text, by token id; else each content, normalized
    rows            rows of the model's embedding, where the vocabulary goes on beyond them
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
    special_texts: Mapping[str, str] = field(default_factory=dict)
    chat_template: ChatTemplate | None = None
    normalized_contents: dict[int, str] | None = None
    rows: int | None = None

    @property
    def size(self) -> int:
        """One more than the largest id."""
        size = max([self.vocabulary.size, *(token.id + 1 for token in self.added)])
        return size if self.rows is None else min(size, self.rows)

    def drop_beyond(self, rows: int) -> None:
        """Leaves out added tokens that the model has no rows for: their text is plain text.

        Uploads got a padding token that the embedding never did. Where text itself, or what goes around it, lies
        beyond the rows, these are not the files of one model: then nothing changes, and Tokenizer refuses.
        """
        beyond = frozenset(token.id for token in self.added if token.id >= rows)
        plain = set(range(rows, self.vocabulary.size)) - beyond
        if not beyond or plain or beyond & {*self.before, *self.after}:
            return
        self.rows = rows
        self.model.forbid(beyond)
        self.added = tuple(token for token in self.added if token.id < rows)
        self.decoded = {token_id: data for token_id, data in self.decoded.items() if token_id < rows}


# Two noncharacters, which no text is to hold (Unicode 16, section 23.7): after the last word of a message that goes on.
_END_OF_FINAL = "\ufdd0\ufdd1"


def _with_end_marked(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str]:
    """The messages, with a mark after the last word of the last one, and the spaces that stand after the mark: a
    template that takes them away at the end of a message is to take them away. RequestError: it is none to go on."""
    last = messages[-1] if isinstance(messages, Sequence) and messages else None
    content = last.get("content") if isinstance(last, Mapping) else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant" or last.get("tool_calls"):
        raise RequestError.about(
            "continue_final_message", "the last message is not an assistant's text, expected one to go on"
        )
    if not isinstance(content, str) or not content:
        raise RequestError.about("continue_final_message", "the last message has no text, expected some to go on from")
    content = content.replace(_END_OF_FINAL, "")
    words = content.rstrip()
    spaces = content[len(words) :]
    return [*messages[:-1], {**last, "content": words + _END_OF_FINAL + spaces}], spaces


class Tokenizer:
    """Text to token ids and back.

    kind           "bpe", "sentencepiece" or "tiktoken"
    vocab_size     one more than the largest id
    bos_token_id   beginning of text, or None
    adds_bos       whether encode() puts it before a text
    eos_token_ids  ids that end an answer
    special_ids    control tokens: never made from user text, shown as nothing
    """

    def __init__(self, parts: Parts, model_vocab_size: int | None = None) -> None:
        self.kind = parts.kind
        self._vocabulary = parts.vocabulary
        self._model = parts.model
        self._normalize = parts.normalizer or str  # a text as it is
        self._pre_tokenizer = parts.pre_tokenizer
        self._decoded = parts.decoded
        self._spaces, self._strip_space = parts.spaces, parts.strip_space
        self._before, self._after = list(parts.before), list(parts.after)
        self._template = parts.chat_template
        self.vocab_size = parts.size
        if model_vocab_size is not None and self.vocab_size > model_vocab_size:
            raise TokenizerError(
                f"tokenizer: {self.vocab_size} tokens, expected at most vocab_size {model_vocab_size} of the "
                "model's config; are these the files of one model?"
            )
        self._id_limit = max(self.vocab_size, model_vocab_size or 0)
        self._ids_of_added = {token.content: token.id for token in parts.added}
        self.special_ids = frozenset(token.id for token in parts.added if token.special and not token.shown)
        self.bos_token_id = parts.bos_token_id
        self.adds_bos = self.bos_token_id is not None and self.bos_token_id in self._before
        self.eos_token_ids = parts.eos_token_ids
        self._raw_added = AddedTokens(token for token in parts.added if not token.normalized)
        normalized = [token for token in parts.added if token.normalized]
        contents = {token.id: self._normalize(token.content) for token in normalized}
        contents |= parts.normalized_contents or {}
        self._normalized_added = AddedTokens(normalized, contents)
        self._spellings = tuple(token.content for token in parts.added if token.special)
        special = (token for token in normalized if token.special and token.content)
        self._normalized_special = sorted(special, key=lambda token: -len(token.content))
        self._normalized, self._normalized_contents = normalized, contents

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
        ids = self._ids_of(text, parse_special, None)
        return [*self._before, *ids, *self._after] if add_special_tokens else ids

    def _ids_of(self, text: str, parse_special: bool, marks: Marks | None) -> list[int]:
        """The ids of a text. marks: of a rendered chat, of whose control tokens only the template's count."""
        ids: list[int] = []
        found = self._raw_added.split(marks.plain(text) if marks else text, parse_special, text if marks else None)
        for index, stretch in enumerate(found):
            if isinstance(stretch, AddedToken):
                ids.append(stretch.id)
            elif marks is None:
                self._encode_stretch(stretch, index == 0, parse_special, ids)
            else:
                self._encode_marked_stretch(stretch, index == 0, marks, ids)
        return ids

    def _encode_marked_stretch(self, text: str, first: bool, marks: Marks, ids: list[int]) -> None:
        """Control tokens that are searched in normalized text are found before it is normalized, or what of a message
        normalizes to their spelling would be one. A character of their own holds their place meanwhile."""
        if not self._normalized_special:
            self._encode_stretch(marks.plain(text), first, False, ids)
            return
        taken = set(text)
        unused = (c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in taken)
        contents = dict(self._normalized_contents)
        for token, place in zip(self._normalized_special, unused):
            text = text.replace(token.content, place)
            own = contents[token.id] == self._normalize(token.content)
            contents[token.id] = self._normalize(place) if own else contents[token.id].replace(token.content, place)
        finder = AddedTokens(self._normalized, contents)
        self._encode_stretch(marks.plain(text), first, True, ids, finder)

    def _encode_stretch(
        self, text: str, first: bool, parse_special: bool, ids: list[int], finder: AddedTokens | None = None
    ) -> None:
        for stretch in (finder or self._normalized_added).split(self._normalize(text), parse_special):
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
        return token_id if 0 <= token_id < self.vocab_size else None

    @property
    def chat_template(self) -> str | None:
        """The text of the chat template, or None."""
        return None if self._template is None else self._template.source

    @property
    def template_nbytes(self) -> int:
        """Memory that rendering a chat takes outside of this process."""
        return 0 if self._template is None else self._template.process_nbytes

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The text of a chat, to look at. encode(..., add_special_tokens=False, parse_special=True) takes what the
        messages spell for control tokens; encode_chat() does not."""
        template = self._chat_template()
        return template.render(messages, **variables, tools=tools, add_generation_prompt=add_generation_prompt)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        parse_special: bool = False,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> list[int]:
        """The token ids of a chat. The template writes BOS itself, so none is added.

        continue_final_message  end where the content of the last message, an assistant's, ends: the answer goes on
                                from there
        parse_special  control tokens written out in messages, tools and variables count as such; without, they are
                       plain text there, and only the template makes control tokens

        Raises RequestError where the template refuses the messages, TokenizerError where it is bad itself.
        """
        given = {**variables, "tools": tools, "add_generation_prompt": add_generation_prompt}
        spellings = () if parse_special else self._spellings
        if continue_final_message:
            given["add_generation_prompt"] = False
            messages, spaces = _with_end_marked(messages)
        rendered = self._chat_template().render_adapted(messages, given, spellings)
        if continue_final_message:
            rendered = rendered.before(_END_OF_FINAL, spaces)
        if rendered.marks or spellings and self._normalized_special:
            return self._ids_of(str(rendered), True, rendered.marks)
        return self.encode(str(rendered), add_special_tokens=False, parse_special=True)

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            raise TokenizerError("this model has no chat template; give it a prompt instead of messages")
        return self._template
