"""The storage formats of weights: how many weights a block of bytes holds, nothing about their values.

Names are GGUF's. The numbers are the sizes of the C structures of the ggml format definition.
"""

from __future__ import annotations

# name: (weights in a block, bytes of a block); a row is a whole number of blocks
DTYPES: dict[str, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),  # f16 scale, 16 bytes of 4-bit
    "Q4_1": (32, 20),  # f16 scale and minimum, 16 bytes of 4-bit
    "Q5_0": (32, 22),  # f16 scale, 4 bytes of high bits, 16 bytes of 4-bit
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),  # f16 scale, 32 signed bytes
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ4_NL": (32, 18),  # f16 scale, 16 bytes of 4-bit codes of 16 uneven levels
    "IQ4_XS": (256, 136),  # the same with 6-bit scales of 32
}

PLAIN = ("F32", "F16", "BF16")  # what norms and biases are stored in, and all of safetensors and .pth


def row_nbytes(dtype: str, cols: int) -> int:
    """Bytes of a row of `cols` weights; `cols` must be a multiple of the block."""
    block_cols, block_nbytes = DTYPES[dtype]
    return cols // block_cols * block_nbytes
