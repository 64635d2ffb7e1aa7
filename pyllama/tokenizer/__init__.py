"""Text to token ids and back, from whatever files a model comes with."""

from pyllama.tokenizer.load import load_tokenizer
from pyllama.tokenizer.tokenizer import Tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
