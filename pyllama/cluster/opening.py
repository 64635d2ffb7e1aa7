"""A model and boards in, a decoder on them out."""

import os
from collections.abc import Callable, Sequence

from pyllama.checkpoint import Checkpoint
from pyllama.checkpoint.digest import model_digest
from pyllama.cluster.dealing import deal
from pyllama.cluster.front import Asked, ClusterDecoder
from pyllama.cluster.hosts import Host
from pyllama.cluster.own_part import shares_by_place


def open_cluster(
    checkpoint: Checkpoint,
    boards: Sequence[Host],
    *,
    model: str,
    context_length: int,
    kv_dtype: str,
    threads: int | None,
    contexts: int,
    memory: int | None,
    front_nbytes: int,
    branches: int = 0,
    interface: str | None = None,
    on_layer: Callable[[int], None] | None = None,
) -> ClusterDecoder:
    """Arguments as of load(); model: what each board is to open, a path or a name.

    Raises RequestError for shares that make no sense, BoardError where a board does not come up and ClusterError where
    it has another model, another version or too little memory.
    """
    deal(checkpoint.config, shares_by_place(boards))  # complains before anything is started
    if os.path.exists(model):
        model = os.path.abspath(model)
    digest = model_digest(checkpoint, kv_dtype)
    asked = Asked(model, context_length, kv_dtype, threads, contexts, memory, front_nbytes, branches, digest)
    return ClusterDecoder(checkpoint.config, boards, asked, interface=interface, on_layer=on_layer)
