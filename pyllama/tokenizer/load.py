"""Which reader a checkpoint's tokenizer needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyllama.errors import TokenizerError
from pyllama.tokenizer import markers
from pyllama.tokenizer.tokenizer import Tokenizer


def load_tokenizer(checkpoint: Any, pre_tokenizer: str | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint: its `format`, `path`, `metadata` and `config` are looked at.

    A Hugging Face folder's tokenizer.json is preferred to its tokenizer.model: transformers does so, and where they
    differ (added tokens) it is the newer file. The memory is the same: both become the same arrays. Of a GGUF file
    only the metadata is needed. Raises TokenizerError; also when the tokenizer has more tokens than the model has
    rows (config.vocab_size).
    """
    path = Path(checkpoint.path)
    config = checkpoint.config
    rows = getattr(config, "vocab_size", None)
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
        if rows is not None:
            parts.drop_beyond(rows)
        limit = max(parts.size, rows or 0)
        parts.eos_token_ids = tuple(token_id for token_id in parts.eos_token_ids if 0 <= token_id < limit)
        if parts.bos_token_id is not None and not 0 <= parts.bos_token_id < limit:
            parts.bos_token_id = None
        markers.settle(parts)
        return Tokenizer(parts, rows)
    except MemoryError:
        raise TokenizerError(f"{path}: the tokenizer does not fit into memory") from None
