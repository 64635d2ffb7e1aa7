"""The transformer: a Pass of integers in, rows of logits out, once over the weights."""

from pyllama.decoder.decoder import MAX_PASS_TOKENS, Decoder
from pyllama.decoder.kv_cache import CachedSequence, KVCache
from pyllama.decoder.passes import Pass
from pyllama.decoder.shape import Shape

__all__ = ["MAX_PASS_TOKENS", "CachedSequence", "Decoder", "KVCache", "Pass", "Shape"]
