"""A model folder's tokenizer -> GGUF's key/values of it, proven by reading them back.

GGUF has names for a part of what tokenizer files can say. What was written is given to the reader of GGUF files, and
its tokenizer must make of hard texts what the folder's own makes: what has no name is found so, and refused.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from pyllama.checkpoint import Checkpoint
from pyllama.errors import TokenizerError
from pyllama.quantizing.gguf_writer import Value, plain
from pyllama.quantizing.warning import QuantizeWarning
from pyllama.quantizing.words import Words, read_words
from pyllama.tokenizer import Tokenizer, folder, load_tokenizer
from pyllama.tokenizer.missing import MissingTokenizer
from pyllama.tokenizer.piece_types import CONTROL, UNKNOWN, UNUSED, USER_DEFINED
from pyllama.tokenizer.tokenizer import Parts

_NEW_SCORE = -1000.0  # of tokens that were added to a SentencePiece model: the last to be made, if ever
# Where a second and a third token that ends an answer can be named.
_MORE_ENDS = ("eot", "eom")

TEXTS = (
    "Hello world", " Hello", "  two   three    four     ", "\n\n\n", " \n \t\n", "a", "", " ", "      x",
    "don't I'LL we'Ve they'd'x 'tis 'S", "1 12 123 1234 12345 3.14159 1,000,000 007 a1b22c333",
    "camelCase HTTPServer snake_case CONSTANT-case", "a b\n\n\n  c\n \n d   ", "tabs\t\tand \r\n lines\r\r\n  end",
    "f(x[0]) -> {a: b}; /* c */ #include <x.h>\n\tif (a != b && !c)\r\n", "\u2581a \u2581\u2581b",
    "https://example.org/a?b=c&d=e#f user@host.tld C:\\dir\\x ./a/../b", "...!!!??? -- === \\\\ ;;; :) $5 100%",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01 123\u4e2a \u65e5\u672c\u8a9e\u3067\u3059\u3002 \ud55c\uad6d\uc5b4",
    "caf\u00e9 na\u00efve \u00dcber stra\u00dfe \u0130\u0131 \u01c5",
    "cafe\u0301 A\u030a o\u0302\u0301 \ufb01 \u212b",
    "\u043f\u0440\u0438\u0432\u0435\u0442 \u0393\u03b5\u03b9\u03ac \u05e9\u05dc\u05d5\u05dd",
    "\u0645\u0631\u062d\u0628\u0627\u060c \u0939\u093f\u0928\u094d\u0926\u0940 \u200b \u00a0 \u3000 z",
    "\U0001f600\U0001f389 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f x\U0001f600y",
    "<|im_start|>user\nHi<|im_end|>\n<s>[INST] x [/INST]</s>",
)  # fmt: skip


def tokenizer_values(checkpoint: Checkpoint, pre_tokenizer: str | None) -> dict[str, Value]:
    """The key/values of a folder's tokenizer.

    pre_tokenizer  the name for tokenizer.ggml.pre, instead of the one that the folder's steps have; what differs under
                   it is warned of and not refused

    Raises TokenizerError for what a GGUF file cannot say; warns (QuantizeWarning) of what its readers do otherwise.
    """
    own = load_tokenizer(checkpoint)
    if isinstance(own, MissingTokenizer):
        warnings.warn(f"{own.reason}: the file will have no tokenizer", QuantizeWarning, stacklevel=2)
        return {"tokenizer.ggml.model": "no_vocab"}
    meta = checkpoint.format == "meta"
    parts = (folder.read_meta if meta else folder.read_huggingface)(checkpoint.path, checkpoint.config)
    names = {} if meta else folder.special_names(checkpoint.path)
    words = read_words(checkpoint.path, parts.kind)
    _check_flags(parts)
    values = _lists(words, parts, checkpoint.config.vocab_size)
    if words.model == "gpt2":
        values["tokenizer.ggml.pre"] = pre_tokenizer or _known(words, checkpoint.path)
    elif pre_tokenizer is not None:
        raise TokenizerError(f"pre_tokenizer: {pre_tokenizer[:40]!r}, expected none: SentencePiece has none")
    values |= _around(parts, words, names)
    if parts.chat_template is not None:
        values["tokenizer.chat_template"] = parts.chat_template.source
    wrong: dict[bool, str | None] = {}
    for prefix in (True, False):
        if words.model == "llama":  # whether a space goes before a text: as its own tokenizer does it, whatever it says
            values["tokenizer.ggml.add_space_prefix"] = prefix
        written = _read(values, checkpoint)
        wrong[prefix] = _difference(own, written)
        if wrong[prefix] is None or words.model != "llama":
            break
    if wrong[prefix] is not None:
        what = f"{checkpoint.path}: a GGUF file's tokenizer would make other ids of {wrong[True]!r} than this model's"
        if pre_tokenizer is None:
            raise TokenizerError(what)
        warnings.warn(what, QuantizeWarning, stacklevel=2)
    _add_ends(values, own, written, checkpoint)
    _tell_spaces(own, _read(values, checkpoint))
    return values


def _known(words: Words, path: Path) -> str:
    if words.pre is None:
        raise TokenizerError(
            f"{path}: the pre-tokenizer of tokenizer.json has no name in GGUF; if it splits as one of those of "
            "docs/tokenizers.md (llama-bpe, qwen2, gpt-2, ...), name that by --pre-tokenizer"
        )
    return words.pre


def _check_flags(parts: Parts) -> None:
    for token in parts.added:
        for flag in ("lstrip", "rstrip", "single_word"):
            if getattr(token, flag):
                raise TokenizerError(f"added token {token.content[:40]!r}: {flag} has no name in a GGUF file")


def _lists(words: Words, parts: Parts, rows: int) -> dict[str, Value]:
    """Tokens, types, scores and merges: one of each for every row of the embedding."""
    texts = [*words.texts, *[None] * max(0, rows - len(words.texts))][:rows]
    types = np.full(rows, UNUSED, np.int32)
    types[: len(words.types)] = words.types[:rows]
    scores = np.full(rows, _NEW_SCORE, np.float32)
    if words.scores is not None:
        scores[: len(words.scores)] = words.scores[:rows]
    for token in parts.added:
        if token.id < rows:
            texts[token.id] = token.content.encode()
            if types[token.id] != UNKNOWN:
                types[token.id] = CONTROL if token.special else USER_DEFINED
    found: dict[str, Value] = {
        "tokenizer.ggml.model": words.model,
        "tokenizer.ggml.tokens": [b"[PAD%d]" % i if text is None else text for i, text in enumerate(texts)],
        "tokenizer.ggml.token_type": np.where([text is None for text in texts], UNUSED, types).astype(np.int32),
    }
    if words.scores is not None:
        found["tokenizer.ggml.scores"] = scores
    if words.merges is not None:
        found["tokenizer.ggml.merges"] = words.merges
    return found


def _around(parts: Parts, words: Words, names: dict[str, str]) -> dict[str, Value]:
    """Special ids, and what goes around a text."""
    ids = {token.content: token.id for token in parts.added}
    bos = parts.before[0] if parts.before else parts.bos_token_id
    eos = parts.after[0] if parts.after else next(iter(parts.eos_token_ids), None)
    unknown = words.unk_id if words.unk_id is not None else ids.get(names.get("unk_token", ""))
    found: dict[str, Value] = {
        f"tokenizer.ggml.{name}_token_id": np.uint32(token_id)
        for name, token_id in (("bos", bos), ("eos", eos), ("unknown", unknown),
                               ("padding", ids.get(names.get("pad_token", ""))))
        if token_id is not None
    }  # fmt: skip
    found["tokenizer.ggml.add_bos_token"] = bool(parts.before)
    found["tokenizer.ggml.add_eos_token"] = bool(parts.after)
    return found


def _read(values: dict[str, Value], checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that a reader of GGUF files makes of it."""
    written = load_tokenizer(
        SimpleNamespace(path=checkpoint.path, format="gguf", metadata=plain(values), config=checkpoint.config)
    )
    assert isinstance(written, Tokenizer)
    return written


def _difference(own: Tokenizer, written: Tokenizer) -> str | None:
    """The first text of which the two make different ids, or the first token that is other text; None for none."""
    for text in TEXTS:
        # Its first spaces are a matter of their own: _tell_spaces().
        first = own.kind == "sentencepiece" and text.startswith((" ", "\u2581"))
        if not first and own.encode(text) != written.encode(text):
            return text
    for token_id in range(own.vocab_size):
        told = own.token_bytes(token_id)
        if told and told != written.token_bytes(token_id):
            return told.decode("utf-8", "replace")
    return None


def _add_ends(values: dict[str, Value], own: Tokenizer, written: Tokenizer, checkpoint: Checkpoint) -> None:
    """Name the ends of an answer that the reader does not know by their texts."""
    missing = [token_id for token_id in own.eos_token_ids if token_id not in written.eos_token_ids]
    if len(missing) > len(_MORE_ENDS):
        raise TokenizerError(
            f"eos_token_id: {len(missing) + 1} tokens end an answer, a GGUF file can name {len(_MORE_ENDS) + 1}"
        )
    for name, token_id in zip(_MORE_ENDS, missing, strict=False):
        values[f"tokenizer.ggml.{name}_token_id"] = np.uint32(token_id)


def _tell_spaces(own: Tokenizer, written: Tokenizer) -> None:
    """A SentencePiece model's space goes before each stretch of text between control tokens, for GGUF's readers.

    In the folders of some models it goes only before a whole text, and not where there is a space already.
    """
    if own.kind != "sentencepiece":
        return
    special = next((t for t in sorted(own.special_ids) if own.token_bytes(t).startswith((b"<", b"["))), None)
    after = "" if special is None else own.token_bytes(special).decode("utf-8", "replace") + "text"
    if any(
        own.encode(text, parse_special=True) != written.encode(text, parse_special=True) for text in (" text", after)
    ):
        warnings.warn(
            "a space goes before each stretch of text between control tokens, and before one that has a space, for "
            "readers of GGUF files; this model's own tokenizer puts it before whole texts only",
            QuantizeWarning,
            stacklevel=3,
        )
