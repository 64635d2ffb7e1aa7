"""Captures errors.json: what ggml's quantizers leave of seeded weights, by type, kind of weights and importance.

    python tests/golden/quantizer/make_golden.py

Needs libgguf (x86_64 only), which wraps ggml's own quantizers. Nothing of pyllama takes part.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import libgguf

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "support"))

import heavy_tails

TYPES = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split()
ROWS, COLS, SEED = 64, 1024, 7


def main() -> None:
    importance = heavy_tails.importance(COLS, SEED)
    errors: dict[str, dict[str, list[float]]] = {}
    for dtype in TYPES:
        kind_of = libgguf.GGMLQuantizationType[dtype]
        errors[dtype] = {}
        for kind in heavy_tails.KINDS:
            x = heavy_tails.weights(kind, ROWS, COLS, SEED)
            errors[dtype][kind] = []
            for weight in (None, importance):
                stored = libgguf.quantize_rows(x, kind_of, weight)
                found = heavy_tails.squared_error(x, libgguf.dequantize_rows(stored, kind_of, COLS), weight)
                errors[dtype][kind].append(float(f"{found:.8g}"))
    rows = ",\n".join(f'    "{dtype}": {json.dumps(found)}' for dtype, found in errors.items())
    made = f'  "made_with": "libgguf {version("libgguf")}",\n  "rows": {ROWS},\n  "cols": {COLS},\n  "seed": {SEED},\n'
    (HERE / "errors.json").write_text(f'{{\n{made}  "errors": {{\n{rows}\n  }}\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
