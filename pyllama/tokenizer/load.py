"""Which reader a checkpoint's tokenizer needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyllama.errors import TokenizerError
from pyllama.tokenizer.missing import MissingTokenizer, NoTokenizerError
from pyllama.tokenizer.tokenizer import Tokenizer


def load_tokenizer(checkpoint: Any) -> Tokenizer | MissingTokenizer:
    """The tokenizer of a checkpoint: its `format`, `path`, `metadata` and `config` are looked at.

    A Hugging Face folder's tokenizer.json is preferred to its tokenizer.model: transformers does so, and where they
    differ (added tokens) it is the newer file. The memory is the same: both become the same arrays. Of a GGUF file
    only the metadata is needed. A model without any gets a MissingTokenizer. Raises TokenizerError; also when the
    tokenizer has more tokens than the model has rows (config.vocab_size).
    """
    path = Path(checkpoint.path)
    config = checkpoint.config
    try:
        if checkpoint.format == "gguf":
            from pyllama.tokenizer import gguf

            parts = gguf.read(checkpoint.metadata, path.name)
        elif checkpoint.format in ("huggingface", "meta"):
            from pyllama.tokenizer import folder

            read = folder.read_huggingface if checkpoint.format == "huggingface" else folder.read_meta
            parts = read(path, config)
        else:
            raise TokenizerError(f"{path}: no tokenizer is known for the format {checkpoint.format!r}")
        return Tokenizer(parts, getattr(config, "vocab_size", None))
    except NoTokenizerError as error:
        return MissingTokenizer(str(error), config)
    except MemoryError:
        raise TokenizerError(f"{path}: the tokenizer does not fit into memory") from None
