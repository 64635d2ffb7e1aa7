"""Numbers that SentencePiece's files have for kinds of pieces, and GGUF's as well, and for ways to cut a text."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
