"""Which pulled models may draft for one: smaller, and with the same tokenizer. Headers and vocabularies are read, no
weights, and no network is used.
"""

import operator
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyllama.checkpoint import open_checkpoint
from pyllama.drafting.vocabularies import check_same
from pyllama.errors import PyllamaError
from pyllama.hub.installed import installed
from pyllama.tokenizer import load_tokenizer

#: Of the model's bytes: what a drafter has at most, and what the first to be tried has at least. One much smaller is
#: wrong too often.
MOST, LEAST = 1 / 2, 1 / 40
_KIND, _TOKENS = "tokenizer.ggml.model", "tokenizer.ggml.tokens"


def siblings(checkpoint: Any, tokenizer: Any) -> Iterator[tuple[str, Path]]:
    """(name, path) of each pulled model that may draft for this one, the best guess first.

    checkpoint  the model: a Checkpoint or an Outline
    tokenizer   its own

    First the smallest of at least a fortieth of its bytes, then larger ones, then the largest of those below. A
    candidate's vocabulary is read when its turn comes, which takes a second or two: whoever wants one takes one.
    Damaged models, and those that pyllama does not run, are passed over.
    """
    most, least = checkpoint.nbytes * MOST, checkpoint.nbytes * LEAST
    found = [model for model in installed() if model.whole and 0 < model.nbytes <= most]
    found.sort(key=lambda model: (model.nbytes < least, model.nbytes if model.nbytes >= least else -model.nbytes))
    for model in found:
        if is_sibling(checkpoint, tokenizer, model.path):
            yield model.name, model.path


def is_sibling(checkpoint: Any, tokenizer: Any, path: Path) -> bool:
    """Whether the model at a path is sound and numbers tokens as this one does."""
    try:
        with open_checkpoint(path) as other:
            small, large = sorted((checkpoint.config.vocab_size, other.config.vocab_size))
            if small < 0.9 * large:  # more than padding and added tokens
                return False
            if _TOKENS in checkpoint.metadata and _TOKENS in other.metadata:
                return _same_in_gguf(checkpoint.metadata, other.metadata)
            theirs = load_tokenizer(other)
            if theirs.kind == "none" or tokenizer.kind == "none":
                return False
            check_same(tokenizer, theirs, path.name)
    except PyllamaError:
        return False
    return True


def _same_in_gguf(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """The same without merges, which take longest to read."""
    if ours.get(_KIND) != theirs.get(_KIND):
        return False
    return all(map(operator.eq, ours[_TOKENS], theirs[_TOKENS]))  # as far as both go
