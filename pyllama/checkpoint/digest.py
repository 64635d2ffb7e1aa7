"""A checkpoint -> a name for all that it says, as far as a small read a tensor tells."""

import hashlib

from pyllama.checkpoint.checkpoint import Checkpoint
from pyllama.version import __version__


def model_digest(checkpoint: Checkpoint, kv_dtype: str) -> str:
    """Names all that a page's bits depend on besides its tokens.

    Of each tensor one row is read, not all: two models that differ nowhere there are one model retrained in no
    matrix. Cost: a small read a tensor.
    """
    about = f"{__version__} {kv_dtype} {checkpoint.rope_interleaved} {checkpoint.config} {weights_digest(checkpoint)}"
    return hashlib.sha256(about.encode()).hexdigest()[:32]


def weights_digest(checkpoint: Checkpoint) -> str:
    """Names the weights, also where they lie packed; a board's part of a model has the name of the whole."""
    if checkpoint.share is not None:
        return checkpoint.share.digest
    digest = hashlib.sha256()
    for name in sorted(checkpoint.tensors):
        tensor = checkpoint.tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tensor.shape} ".encode())
        digest.update(checkpoint.read_rows(tensor, tensor.rows // 2, 1).tobytes())
    return digest.hexdigest()[:32]
