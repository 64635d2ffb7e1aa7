"""The storage formats of weights: how many weights a block of bytes holds, nothing about their values.

Names are GGUF's. The kernels list what they read; a row is a whole number of blocks.
"""

from pyllama import _kernels
from pyllama._kernels import row_nbytes

__all__ = ["DTYPES", "PLAIN", "row_nbytes"]

PLAIN = ("F32", "F16", "BF16")  # what norms and biases are stored in, and all of safetensors and .pth

#: Name -> (weights in a block, bytes of a block). The kernels take plain weights four bytes at a time.
DTYPES = {
    name: (1, nbytes // cols) if name in PLAIN else (cols, nbytes) for name, (cols, nbytes) in _kernels.DTYPES.items()
}
