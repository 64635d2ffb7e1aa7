"""Tokens of sequences in, passes made of them, rows of logits out. Who computes a pass, and where, is a subclass's
business: this process with its weights (decoder.py), or boards that share a model (pyllama/cluster).
"""

from collections.abc import Callable, Sequence

import numpy as np

from pyllama.architecture import Config
from pyllama.decoder.kv_cache import CachedSequence, KVCache
from pyllama.decoder.passes import Pass, Segment, build
from pyllama.decoder.weights import Watched
from pyllama.errors import RequestError


class Extender:
    """What is asked of a model that is ready to run: an ExclusiveDecoder (exclusive.py), or a ClusterDecoder of boards
    (cluster/front.py).

    config           the model's hyperparameters
    context_length   positions a sequence can hold
    max_pass_tokens  tokens that one pass takes at most; prefill() cuts longer prompts
    passes           passes over the weights so far
    on_layer         None, or called with the number of each layer before it runs; what it raises ends the pass
    cache            whose positions lie in which pages
    weights          as far as they may be watched from here
    """

    config: Config
    cache: KVCache
    weights: Watched
    context_length: int
    max_pass_tokens: int
    passes: int
    on_layer: Callable[[int], None] | None

    def run(self, planned: Pass, on_layer: Callable[[int], None] | None = None, hidden: bool = False) -> np.ndarray:
        """Logits of the rows that the pass asks for, float32 (R, vocab_size), the caller's to keep.

        on_layer  for this pass, besides the decoder's own
        hidden    what the head would make logits of, (R, hidden_size), in their place
        """
        raise NotImplementedError

    def new_sequence(self) -> CachedSequence:
        """An empty sequence; close() it to give its pages back."""
        return self.cache.new_sequence()

    def prefill(self, sequence: CachedSequence, token_ids: Sequence[int]) -> np.ndarray:
        """Append token_ids to the sequence in as few passes as possible; logits (vocab_size,) of the last."""
        if not len(token_ids):
            raise RequestError("prefill: no tokens, expected at least one")
        for start in range(0, len(token_ids), self.max_pass_tokens):
            part = token_ids[start : start + self.max_pass_tokens]
            logits, _ = self.extend([(sequence, part)], [start + len(part) == len(token_ids)])
        row: np.ndarray = logits[0]
        return row

    def forward(
        self, batch: Sequence[Segment], logits: str = "last", on_layer: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Append each segment's tokens to its sequence, all in one pass over the weights.

        batch     (sequence, token ids) segments, no sequence twice; at most max_pass_tokens tokens in all
        logits    "last": a row per segment, for its last token; "all": a row per token
        on_layer  for this pass, besides the decoder's own

        Returns float32 (rows, vocab_size), the caller's to keep. Raises ContextOverflowError for a sequence
        that cannot hold its tokens and RequestError for anything else amiss; then, and when a pass fails
        half-way, no sequence has changed its length.
        """
        if logits not in ("last", "all"):
            raise RequestError(f"logits: got {logits!r}, expected 'last' or 'all'")
        wanted = [1 if logits == "last" else len(ids) for _, ids in batch]
        out, rows = self.extend(batch, wanted, on_layer)
        return out if sum(wanted) == len(out) else out[np.concatenate(rows)]

    def extend(
        self,
        batch: Sequence[Segment],
        wanted: Sequence[int],
        on_layer: Callable[[int], None] | None = None,
        hidden: bool = False,
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """As forward(), with forks of one text welcome among the segments: what they have in common is computed once.

        wanted  how many of each segment's last tokens get a row of logits
        hidden  rows are the final hidden states, after the last norm, in place of logits

        Returns the logits, float32 (rows, vocab_size), or hidden states, (rows, hidden_size), one row a token however
        many forks share it, and for each segment the indices of its rows.
        """
        self._check(batch)
        planned, rows = build(self.cache, batch, wanted, self.max_pass_tokens)
        try:
            out = self.run(planned, on_layer, hidden)
        except BaseException:
            for sequence, _ in batch:
                sequence.release_unused()
            raise
        for sequence, ids in batch:
            sequence.advance(len(ids))
        return out, rows

    def _check(self, batch: Sequence[Segment]) -> None:
        """Raises, before anything has changed, where the pass cannot be run."""
        if not batch or not all(len(ids) for _, ids in batch):
            raise RequestError("forward: a segment without tokens, expected at least one token each")
        if len({id(sequence) for sequence, _ in batch}) != len(batch):
            raise RequestError("forward: a sequence appears twice in one pass")
        for _, ids in batch:
            for token_id in (min(ids), max(ids)):
                if not 0 <= token_id < self.config.vocab_size:
                    raise RequestError(f"token id {token_id}, expected 0 to {self.config.vocab_size - 1}")
