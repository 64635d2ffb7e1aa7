"""Tokenizers out of a GGUF file's metadata: byte-level BPE ("gpt2") and SentencePiece ("llama").

Takes the key/values of a file that was already read. Where GGUF has no word for a rule (flags of added tokens, the
pre-tokenizer's pattern), the rule is that of the model the key names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyllama.errors import TokenizerError
from pyllama.tokenizer import pattern as patterns
from pyllama.tokenizer import steps, token_bytes
from pyllama.tokenizer.added_tokens import AddedToken
from pyllama.tokenizer.bpe import ByteLevelModel
from pyllama.tokenizer.chat_template import ChatTemplate
from pyllama.tokenizer.missing import NoTokenizerError
from pyllama.tokenizer.pieces import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, from_pieces
from pyllama.tokenizer.tokenizer import Parts
from pyllama.tokenizer.vocabulary import MAX_TOKENS, Vocabulary

# tokenizer.ggml.pre: the steps before BPE. A name that is not here is refused: another pattern would run, give
# plausible ids, and make the model quietly worse.
_GPT2 = ("gpt-2", "gpt2", "olmo", "phi-2", "exaone4")
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx", "falcon3")
_QWEN2 = ("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez")
_SMOLLM = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_TEKKEN = ("tekken",)
_IGNORE_MERGES = {*_LLAMA3, *_TEKKEN} - {"smaug-bpe", "dbrx"}
_ADD_BOS = {"llama-bpe", "llama3", "llama-v3", "falcon3", "tekken"}
_MAX_ADDED = 1 << 16  # a Python object each; the most in a published model is 6,400
_NFC = {"qwen2", "deepseek-r1-qwen"}


def read(metadata: Mapping[str, Any], where: str) -> Parts:
    """The parts of the tokenizer a GGUF file describes. Raises TokenizerError."""
    return _Reader(metadata, where).parts()


class _Reader:
    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self._metadata, self._where = metadata, where

    def _get(self, key: str, kind: type, default: Any = None) -> Any:
        value = self._metadata.get(f"tokenizer.{key}", default)
        if value is not None and (
            not isinstance(value, kind) or isinstance(value, bool) and kind is not bool
        ):
            raise TokenizerError(
                f"tokenizer.{key}: {type(value).__name__}, expected {kind.__name__} (file {self._where})"
            )
        return value

    def _list(self, key: str) -> Sequence[Any]:
        value: Any = self._metadata.get(f"tokenizer.{key}")
        if value is None:
            raise TokenizerError(f"tokenizer.{key}: missing, expected a list (file {self._where})")
        if isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or not hasattr(value, "__iter__"):
            raise TokenizerError(
                f"tokenizer.{key}: {type(value).__name__}, expected a list (file {self._where})"
            )
        return value

    def _numbers(self, key: str, size: int, kinds: str) -> np.ndarray | None:
        """An array of the vocabulary's size."""
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
            raise NoTokenizerError(f"tokenizer.ggml.model: {found}, expected 'gpt2' or 'llama' (file {self._where})")
        if model not in ("gpt2", "llama"):
            raise TokenizerError(
                f"tokenizer.ggml.model: {str(model)[:40]!r} is not supported, expected 'gpt2' or 'llama' "
                f"(file {self._where})"
            )
        tokens = self._list("ggml.tokens")
        types = self._numbers("ggml.token_type", len(tokens), "iu")
        if types is None:
            types = np.full(len(tokens), NORMAL)
        parts = self._byte_level(tokens, types) if model == "gpt2" else self._sentencepiece(tokens, types)
        self._add_ends(parts, self._get("ggml.pre", str, "") in _ADD_BOS or model == "llama")
        self._add_template(parts, tokens)
        return parts

    def _added(self, tokens: Sequence[str], types: np.ndarray) -> tuple[AddedToken, ...]:
        ids = np.flatnonzero(np.isin(types, (CONTROL, UNKNOWN, USER_DEFINED)))
        if len(ids) > _MAX_ADDED:
            raise TokenizerError(
                f"tokenizer.ggml.token_type: {len(ids)} tokens are control or user-defined ones, expected at most "
                f"{_MAX_ADDED} (file {self._where})"
            )
        return tuple(
            AddedToken(token_id, _text(tokens[token_id]), special=bool(types[token_id] != USER_DEFINED))
            for token_id in ids.tolist()
        )

    def _byte_level(self, tokens: Sequence[str], types: np.ndarray) -> Parts:
        pre = self._get("ggml.pre", str, "default")
        normalizer, pre_tokenizer = self._steps(pre)
        added = self._added(tokens, types)
        where = f"tokenizer.ggml.tokens (file {self._where})"
        chunks = token_bytes.packed(map(_text, tokens), MAX_TOKENS, where)
        blob, lengths = token_bytes.token_table(chunks, in_byte_alphabet=True)
        vocabulary = Vocabulary(blob, lengths)
        decoded = {token.id: token.content.encode("utf-8", "replace") for token in added}
        for token_id in np.flatnonzero(lengths < 0).tolist():
            decoded.setdefault(token_id, _text(tokens[token_id]).encode("utf-8", "replace"))
        where = f"tokenizer.ggml.merges (file {self._where})"
        reader = token_bytes.MergeReader(vocabulary, in_byte_alphabet=True, where=where)
        for chunk in token_bytes.packed(map(_text, self._list("ggml.merges")), token_bytes.MAX_MERGES, where):
            reader.add_spaced(chunk)
        special = frozenset(token.id for token in added if token.special)
        model = ByteLevelModel(
            vocabulary, reader.table(special), ignore_merges=pre in _IGNORE_MERGES, forbidden=special
        )
        return Parts("bpe", vocabulary, model, added, decoded, normalizer, pre_tokenizer)

    def _steps(self, pre: str) -> tuple[steps.Normalizer | None, steps.PreTokenizer]:
        where = f"tokenizer.ggml.pre {pre!r}"
        normalizer = steps.unicode_form("NFC") if pre in _NFC else None

        def split(pattern: str) -> steps.PreTokenizer:
            return steps.split_isolated(patterns.compile_pattern(pattern, where))

        if pre in _SMOLLM:
            digits = steps.split_isolated(patterns.compile_class("NUMERIC"))
            return normalizer, steps.one_after_another([digits, split(patterns.GPT2)])
        for names, pattern in (
            (_GPT2, patterns.GPT2),
            (_LLAMA3, patterns.LLAMA3),
            (_QWEN2, patterns.QWEN2),
            (_TEKKEN, patterns.TEKKEN),
        ):
            if pre in names:
                return normalizer, split(pattern)
        raise TokenizerError(
            f"tokenizer.ggml.pre: pre-tokenizer {pre[:40]!r} is not supported, expected one of "
            f"{', '.join((*_GPT2[:1], *_LLAMA3[:1], *_QWEN2[:1], *_SMOLLM[:1], *_TEKKEN))} (file {self._where})"
        )

    def _sentencepiece(self, tokens: Sequence[str], types: np.ndarray) -> Parts:
        where = f"tokenizer.ggml.tokens (file {self._where})"
        chunks = token_bytes.packed(map(_text, tokens), MAX_TOKENS, where)
        vocabulary = Vocabulary(*token_bytes.token_table(chunks, in_byte_alphabet=False))
        scores = self._numbers("ggml.scores", len(tokens), "f")
        if scores is None:
            raise TokenizerError(
                f"tokenizer.ggml.scores: missing, expected a score for each token (file {self._where})"
            )
        prefix = self._get("ggml.add_space_prefix", bool, True)
        return from_pieces(
            vocabulary,
            types,
            scores,
            unk_id=self._id("unknown_token_id", len(tokens)),
            space_prefix=prefix,
            collapse_spaces=self._get("ggml.remove_extra_whitespaces", bool, False),
            where=where,
        )

    def _id(self, name: str, size: int) -> int | None:
        value = self._get(f"ggml.{name}", int)
        if value is not None and not 0 <= value < size:
            raise TokenizerError(
                f"tokenizer.ggml.{name}: {value}, expected 0 to {size - 1} (file {self._where})"
            )
        return value

    def _add_ends(self, parts: Parts, add_bos: bool) -> None:
        size = parts.vocabulary.size
        bos, eos = self._id("bos_token_id", size), self._id("eos_token_id", size)
        ends = [eos, self._id("eot_token_id", size), self._id("eom_token_id", size)]
        parts.bos_token_id = bos
        parts.eos_token_ids = tuple(dict.fromkeys(end for end in ends if end is not None))
        if self._get("ggml.add_bos_token", bool, add_bos) and bos is not None:
            parts.before = (bos,)
        if self._get("ggml.add_eos_token", bool, False) and eos is not None:
            parts.after = (eos,)

    def _add_template(self, parts: Parts, tokens: Sequence[str]) -> None:
        template = self._get("chat_template", str)
        variables = {}
        for name in ("bos", "eos", "unknown", "padding"):
            token_id = self._id(f"{name}_token_id", len(tokens))
            if token_id is not None:
                short = {"unknown": "unk", "padding": "pad"}.get(name, name)
                variables[f"{short}_token"] = _text(tokens[token_id])
        if template is not None:
            parts.chat_template = ChatTemplate(template, variables, self._where)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if not isinstance(value, str):
        raise TokenizerError(f"tokenizer: a token is {type(value).__name__}, expected a string")
    return value
