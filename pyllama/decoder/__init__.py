"""The transformer: a Step of integers in, rows of logits out, one pass over the weights."""

from pyllama.decoder.decoder import MAX_PASS_TOKENS, Decoder
from pyllama.decoder.kv_cache import KVCache, Sequence
from pyllama.decoder.shape import Shape
from pyllama.decoder.step import Step

__all__ = ["MAX_PASS_TOKENS", "Decoder", "KVCache", "Sequence", "Shape", "Step"]
