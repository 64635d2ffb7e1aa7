"""Tokenizers out of a GGUF file's metadata: byte-level BPE ("gpt2"), SentencePiece ("llama") and Gemma 4's ("gemma4"),
whose pieces of text are merged by rank.

Takes the key/values of a file that was already read. Where GGUF has no word for a rule (flags of added tokens, the
pre-tokenizer's pattern), the rule is that of the model the key names. An id that names no token is as if absent:
converters write -1, also unsigned, and ids of tokens that the model has not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyllama.errors import RequestError, TokenizerError
from pyllama.tokenizer import pre_tokenizers, steps, token_bytes
from pyllama.tokenizer.added_tokens import AddedToken
from pyllama.tokenizer.bpe import ByteLevelModel
from pyllama.tokenizer.chat_template import ChatTemplate
from pyllama.tokenizer.missing import NoTokenizerError
from pyllama.tokenizer.piece_types import CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from pyllama.tokenizer.pre_tokenizers import PreTokenizer
from pyllama.tokenizer.sentencepiece import SentencePieceModel, byte_pieces
from pyllama.tokenizer.tokenizer import Parts
from pyllama.tokenizer.vocabulary import MAX_TOKENS, Vocabulary

# Where a file says that BOS goes before a text and not which token it is.
_BOS_NAMES = ("<|begin_of_text|>", "<s>", "<bos>", "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "[BOS]")
# What SentencePiece has if nobody says otherwise; and the type each must have to be believed.
_SENTENCEPIECE_IDS = {"unknown_token_id": (0, UNKNOWN), "bos_token_id": (1, CONTROL), "eos_token_id": (2, CONTROL)}
# The repository, file and padding tokens of fill-in-the-middle end what is filled in.
_ENDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
_MODELS = "'gpt2', 'llama' or 'gemma4'"
_MAX_ADDED = 1 << 16  # a Python object each; the most in a published model is 6,400


def read(metadata: Mapping[str, Any], where: str, pre_tokenizer: str | None = None) -> Parts:
    """The parts of the tokenizer a GGUF file describes.

    pre_tokenizer  in place of tokenizer.ggml.pre

    Raises TokenizerError; RequestError for a pre_tokenizer where none is used.
    """
    return _Reader(metadata, where, pre_tokenizer).parts()


class _Reader:
    def __init__(self, metadata: Mapping[str, Any], where: str, pre_tokenizer: str | None) -> None:
        self._metadata, self._where, self._given_pre = metadata, where, pre_tokenizer

    def _get(self, key: str, kind: type, default: Any = None) -> Any:
        value = self._metadata.get(f"tokenizer.{key}", default)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool) and kind is not bool):
            raise TokenizerError(
                f"tokenizer.{key}: {type(value).__name__}, expected {kind.__name__} (file {self._where})"
            )
        return value

    def _list(self, key: str) -> Sequence[Any]:
        value: Any = self._metadata.get(f"tokenizer.{key}")
        if value is None:
            raise TokenizerError(f"tokenizer.{key}: missing, expected a list (file {self._where})")
        is_list = isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes))
        if not is_list:
            raise TokenizerError(f"tokenizer.{key}: {type(value).__name__}, expected a list (file {self._where})")
        return value

    def _numbers(self, key: str, kinds: str) -> np.ndarray | None:
        """An array of the vocabulary's size."""
        size = len(self._tokens)
        if self._metadata.get(f"tokenizer.{key}") is None:
            return None
        values = self._list(key)
        try:
            numbers = np.asarray(values)
        except (ValueError, TypeError, OverflowError):
            numbers = np.zeros(0, object)
        if numbers.shape != (size,) or numbers.dtype.kind not in kinds:
            raise TokenizerError(
                f"tokenizer.{key}: {numbers.dtype} of shape {numbers.shape}, expected {size} numbers, one for each "
                f"token (file {self._where})"
            )
        return numbers

    def parts(self) -> Parts:
        model = self._get("ggml.model", str)
        if model in (None, "none", "no_vocab"):
            found = "missing" if model is None else repr(model)
            raise NoTokenizerError(f"tokenizer.ggml.model: {found}, expected {_MODELS} (file {self._where})")
        if model not in ("gpt2", "llama", "gemma4"):
            raise TokenizerError(
                f"tokenizer.ggml.model: {str(model)[:40]!r} is not supported, expected {_MODELS} (file {self._where})"
            )
        self._tokens = self._list("ggml.tokens")
        types = self._numbers("ggml.token_type", "iu")
        self._types = np.full(len(self._tokens), NORMAL) if types is None else types
        pre = pre_tokenizers.pre_tokenizer(self._pre(), self._where) if model == "gpt2" else None
        if pre is None and self._given_pre is not None:
            raise RequestError(
                f"pre_tokenizer: {self._given_pre[:40]!r}, expected none: a SentencePiece tokenizer has none "
                f"(file {self._where})"
            )
        parts = self._sentencepiece() if model == "llama" else self._merged(pre)
        self._add_ends(parts, pre is None or pre.add_bos)
        self._add_template(parts)
        return parts

    def _pre(self) -> str:
        pre = self._given_pre or self._get("ggml.pre", str)
        if not pre or pre == "default":
            found = "is 'default', which is no model's" if pre else "is missing"
            raise TokenizerError(
                f"tokenizer.ggml.pre {found}, so how text is split is not known; name it by --pre-tokenizer "
                f"(llama-bpe, qwen2, ...: the model's family) or load's pre_tokenizer (file {self._where})"
            )
        return pre

    def _added(self) -> tuple[AddedToken, ...]:
        ids = np.flatnonzero(np.isin(self._types, (CONTROL, UNKNOWN, USER_DEFINED)))
        if len(ids) > _MAX_ADDED:
            raise TokenizerError(
                f"tokenizer.ggml.token_type: {len(ids)} tokens are control or user-defined ones, expected at most "
                f"{_MAX_ADDED} (file {self._where})"
            )
        return tuple(
            AddedToken(
                token_id,
                token_bytes.text_of(self._tokens[token_id]),
                special=bool(self._types[token_id] != USER_DEFINED),
            )
            for token_id in ids.tolist()
        )

    def _merged(self, pre: PreTokenizer | None) -> Parts:
        """Merges by rank: of bytes; without a pre-tokenizer of characters, spaces as marks, and bytes where there is no
        character."""
        where = f"tokenizer.ggml.tokens (file {self._where})"
        byte_level = pre is not None
        added = self._added()
        chunks = token_bytes.packed(self._tokens, MAX_TOKENS, where)
        blob, lengths = token_bytes.token_table(chunks, in_byte_alphabet=byte_level)
        vocabulary = Vocabulary(blob, lengths)
        decoded = {token.id: token.content.encode("utf-8", "replace") for token in added}
        for token_id in np.flatnonzero(lengths < 0).tolist():
            decoded.setdefault(token_id, token_bytes.text_of(self._tokens[token_id]).encode("utf-8", "replace"))
        special = frozenset(token.id for token in added if token.special)
        where = f"tokenizer.ggml.merges (file {self._where})"
        chunks = token_bytes.packed(self._list("ggml.merges"), token_bytes.MAX_MERGES, where)
        halves = (chunk.halves(where) for chunk in chunks)
        table = token_bytes.merge_table(vocabulary, halves, special, in_byte_alphabet=byte_level, where=where)
        if pre is not None:
            where = f"tokenizer.ggml.pre (file {self._where})"
            bytes_model = ByteLevelModel(vocabulary, table, ignore_merges=pre.ignore_merges, forbidden=special)
            return Parts("bpe", vocabulary, bytes_model, added, decoded, *pre.steps(where))
        byte_ids = byte_pieces(vocabulary)
        unk_id = self._id("unknown_token_id")
        model = SentencePieceModel(
            vocabulary, table, byte_ids=byte_ids, unk_id=unk_id, fuse_unk=True, forbidden=special
        )
        decoded |= {token_id: bytes([byte]) for byte, token_id in enumerate(byte_ids or ())}
        prefix = self._get("ggml.add_space_prefix", bool, False)
        spaces = steps.replace(" ", steps.SPACE_MARK)
        normalizer = steps.in_turn([steps.prepend(" "), spaces]) if prefix else spaces
        return Parts(
            "sentencepiece", vocabulary, model, added, decoded, normalizer, None, spaces=True, strip_space=prefix
        )

    def _sentencepiece(self) -> Parts:
        from pyllama.tokenizer.pieces import from_pieces
        from pyllama.tokenizer.sentencepiece_model import Pieces

        where = f"tokenizer.ggml.tokens (file {self._where})"
        chunks = token_bytes.packed(self._tokens, MAX_TOKENS, where)
        vocabulary = Vocabulary(*token_bytes.token_table(chunks, in_byte_alphabet=False))
        scores = self._numbers("ggml.scores", "f")
        if scores is None:
            raise TokenizerError(
                f"tokenizer.ggml.scores: missing, expected a score for each token (file {self._where})"
            )
        unk_id = self._id("unknown_token_id")
        prefix = self._get("ggml.add_space_prefix", bool, True)
        collapse = self._get("ggml.remove_extra_whitespaces", bool, False)
        return from_pieces(Pieces(vocabulary, scores, self._types, unk_id, prefix, collapse), where)

    def _id(self, name: str) -> int | None:
        """A special token's id; None where the file has none, or one that names no token (-1, stored unsigned)."""
        value = self._get(f"ggml.{name}", int)
        count = len(self._types)
        if value is not None and 0 <= value < count:
            return value
        usual, kind = _SENTENCEPIECE_IDS.get(name, (count, CONTROL))
        sentencepiece = self._metadata.get("tokenizer.ggml.model") == "llama"
        return usual if sentencepiece and usual < count and self._types[usual] == kind else None

    def _add_ends(self, parts: Parts, add_bos: bool) -> None:
        bos, eos = self._id("bos_token_id"), self._id("eos_token_id")
        ends = [self._id(f"{name}_token_id") for name in _ENDS]
        parts.eos_token_ids = tuple(dict.fromkeys(end for end in ends if end is not None))
        if self._get("ggml.add_bos_token", bool, add_bos):
            if bos is None:
                ids = {token.content: token.id for token in parts.added if token.special}
                bos = next((ids[name] for name in _BOS_NAMES if name in ids), None)
            if bos is not None:
                parts.before = (bos,)
        parts.bos_token_id = bos
        if self._get("ggml.add_eos_token", bool, False) and eos is not None:
            parts.after = (eos,)

    def _add_template(self, parts: Parts) -> None:
        template = self._get("chat_template", str)
        ids = {
            "bos_token": parts.bos_token_id,
            "eos_token": self._id("eos_token_id"),
            "unk_token": self._id("unknown_token_id"),
            "pad_token": self._id("padding_token_id"),
        }
        variables = {name: token_bytes.text_of(self._tokens[i]) for name, i in ids.items() if i is not None}
        parts.special_texts = variables
        if template is not None:
            parts.chat_template = ChatTemplate(template, variables, self._where)
