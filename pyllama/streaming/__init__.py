"""Weights larger than memory: from files to row blocks in execution order, through one small ring."""

from pyllama.streaming.weights import StreamedWeights

__all__ = ["StreamedWeights"]
