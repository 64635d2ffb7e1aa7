"""Writes golden.npz: random blocks of every quantized format, and the float32 values the `gguf` package gives them.

Run with an interpreter that has `gguf` installed; no test needs it. Scales are kept finite and not tiny, all other
bits are random, so that every field takes values a quantizer would not write.
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

# name: where in a block its float16 scales lie
FORMATS = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,), "MXFP4": (),
}  # fmt: skip
COLS = 512


def main() -> None:
    random = np.random.default_rng(20)
    found = {}
    for name, scales in FORMATS.items():
        kind = GGMLQuantizationType[name]
        cols, nbytes = GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (COLS // cols, nbytes), np.uint8)
        for at in scales:
            values = random.standard_normal(len(blocks)).astype("<f2")
            blocks[:, at : at + 2] = values.reshape(-1, 1).view(np.uint8)
        found[f"{name}_stored"] = blocks.reshape(1, -1)
        found[f"{name}_values"] = dequantize(blocks.reshape(1, -1), kind).astype("<f4")
    np.savez_compressed(Path(__file__).with_name("golden.npz"), **found)


if __name__ == "__main__":
    main()
