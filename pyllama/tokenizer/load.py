"""Which reader a checkpoint's tokenizer needs, and what holds for the tokenizers of all of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pyllama.errors import RequestError, TokenizerError
from pyllama.tokenizer import markers
from pyllama.tokenizer.missing import MissingTokenizer, NoTokenizerError
from pyllama.tokenizer.tokenizer import Parts, Tokenizer


def load_tokenizer(
    checkpoint: Any, pre_tokenizer: str | None = None, chat_template: str | os.PathLike[str] | None = None
) -> Tokenizer | MissingTokenizer:
    """The tokenizer of a checkpoint: its `format`, `path`, `metadata` and `config` are looked at.

    pre_tokenizer  how a GGUF file's model splits text, in place of tokenizer.ggml.pre
    chat_template  a file whose template takes the place of the model's own

    A Hugging Face folder's tokenizer.json is preferred to its tokenizer.model: transformers does so, and where they
    differ (added tokens) it is the newer file. The memory is the same: both become the same arrays. Of a GGUF file
    only the metadata is needed. A model without any gets a MissingTokenizer. Raises TokenizerError; also when the
    tokenizer has more tokens than the model has rows (config.vocab_size), added ones apart. RequestError for a
    pre_tokenizer where none is used.
    """
    path = Path(checkpoint.path)
    config = checkpoint.config
    if pre_tokenizer is not None:
        if not isinstance(pre_tokenizer, str) or not pre_tokenizer:
            raise RequestError(f"pre_tokenizer: {str(pre_tokenizer)[:40]!r}, expected a name such as llama-bpe")
        if checkpoint.format != "gguf":
            raise RequestError(
                f"pre_tokenizer: {pre_tokenizer[:40]!r}, expected none: only GGUF files leave it to a name "
                f"({path} has the rules themselves)"
            )
    try:
        if checkpoint.format == "gguf":
            from pyllama.tokenizer import gguf

            parts = gguf.read(checkpoint.metadata, path.name, pre_tokenizer)
        elif checkpoint.format in ("huggingface", "meta"):
            from pyllama.tokenizer import folder

            read = folder.read_huggingface if checkpoint.format == "huggingface" else folder.read_meta
            parts = read(path, config)
        else:
            raise TokenizerError(f"{path}: no tokenizer is known for the format {checkpoint.format!r}")
        if chat_template is not None:
            from pyllama.tokenizer.folder import read_template

            parts.chat_template = read_template(Path(chat_template), parts.special_texts)
        rows = getattr(config, "vocab_size", None)
        if rows is not None:
            parts.drop_beyond(rows)
        _drop_strange_ids(parts, max(parts.size, rows or 0))
        markers.settle(parts)
        return Tokenizer(parts, rows)
    except NoTokenizerError as error:
        return MissingTokenizer(str(error), config)
    except MemoryError:
        raise TokenizerError(f"{path}: the tokenizer does not fit into memory") from None


def _drop_strange_ids(parts: Parts, limit: int) -> None:
    """Special ids that name no token are as if absent."""
    parts.eos_token_ids = tuple(token_id for token_id in parts.eos_token_ids if 0 <= token_id < limit)
    if parts.bos_token_id is not None and not 0 <= parts.bos_token_id < limit:
        parts.bos_token_id = None
