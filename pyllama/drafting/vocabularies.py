"""Whether two models' token ids mean the same: what a drafter and its model must have in common."""

from typing import Any

from pyllama.errors import UnsupportedError


def check_same(target: Any, drafter: Any, name: str) -> None:
    """Whether a drafter's tokenizer numbers tokens as the target's does.

    Ids that only one of them has are padding or added tokens: they are never proposed, or never come true.

    Raises UnsupportedError, naming the drafter and the first token that differs.
    """
    for token_id in range(min(target.vocab_size, drafter.vocab_size)):
        ours, theirs = target.token_bytes(token_id), drafter.token_bytes(token_id)
        if ours != theirs:
            raise UnsupportedError(
                f"draft: {name} has another vocabulary: its token {token_id} is {_shown(theirs)}, this model's is"
                f" {_shown(ours)}; a drafter needs the same tokenizer"
            )
    small, large = sorted((target.vocab_size, drafter.vocab_size))
    if small < large - _most_padding(large):
        raise UnsupportedError(
            f"draft: {name} has {drafter.vocab_size} tokens, this model {target.vocab_size}; a drafter needs the same"
            " tokenizer"
        )


def _most_padding(vocab_size: int) -> int:
    """Ids that one of two models of a family may have beyond the other's."""
    return max(1024, vocab_size // 50)


def _shown(token: bytes) -> str:
    text = token.decode("utf-8", "replace")
    return repr(text if len(text) <= 24 else text[:23] + "…")
