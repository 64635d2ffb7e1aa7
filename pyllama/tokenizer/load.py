"""Which tokenizer files of a checkpoint are read, and by which reader."""

from __future__ import annotations

from typing import Any

from pyllama.errors import TokenizerError
from pyllama.tokenizer.tokenizer import Tokenizer


def load_tokenizer(checkpoint: Any) -> Tokenizer:
    """The tokenizer of an open checkpoint (its format, path, metadata and config are looked at)."""
    config = checkpoint.config
    if checkpoint.format == "gguf":
        from pyllama.tokenizer import gguf

        parts = gguf.read(checkpoint.metadata, str(checkpoint.path))
    else:
        raise TokenizerError(f"tokenizer: format {checkpoint.format!r} is not supported")
    return Tokenizer(parts, getattr(config, "vocab_size", None))
