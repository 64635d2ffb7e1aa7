"""What stands in for the tokenizer of a model that came without one: token ids work, and text is refused.

Checkpoints of experiments are config.json and weights, and a GGUF file need not hold a vocabulary. What their tokens
say is not known, so their text is empty; what asks for text, or for a chat template, learns why there is none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from pyllama.errors import TokenizerError
from pyllama.tokenizer.detokenizer import StreamDecoder


class NoTokenizerError(TokenizerError):
    """A model's files hold no tokenizer at all; a damaged one is a TokenizerError."""


class MissingTokenizer:
    """Looks like a Tokenizer; whatever takes text raises TokenizerError.

    kind           "none"
    vocab_size     0: no token has a text
    eos_token_ids  from the model's config
    adds_bos       False: there is no text to put it before
    special_ids    none
    reason         why there is no tokenizer, and what to do
    """

    kind = "none"
    vocab_size = 0
    template_nbytes = 0
    adds_bos = False
    special_ids: frozenset[int] = frozenset()

    def __init__(self, reason: str, config: Any) -> None:
        self.reason = reason
        size = getattr(config, "vocab_size", 0)
        bos = getattr(config, "bos_token_id", None)
        self.bos_token_id = bos if bos is not None and bos < size else None
        self.eos_token_ids = tuple(i for i in getattr(config, "eos_token_ids", ()) if i < size)

    def __repr__(self) -> str:
        return "<MissingTokenizer>"

    def refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TokenizerError(f"no tokenizer, so no text, only token ids: {self.reason}")

    encode = apply_chat_template = encode_chat = id_of = refuse

    @property
    def chat_template(self) -> str | None:
        """Raises TokenizerError: whether there is one does not matter where no text can be encoded."""
        self.refuse()

    def token_bytes(self, token_id: int) -> bytes:
        return b""

    def stream(self, *, skip_special_tokens: bool = True, continuation: bool = False) -> StreamDecoder:
        """A decoder that shows nothing."""
        return StreamDecoder(self.token_bytes, strip_space=False, replace_each=False)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        return ""
