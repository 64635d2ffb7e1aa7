"""Models into GGUF files of fewer bits: mixtures of storage formats, importance of weights, a file others read."""

from pyllama.quantizing.quantize import quantize

__all__ = ["quantize"]
