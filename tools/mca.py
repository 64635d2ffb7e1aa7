"""Hot NEON loops in, modelled cycles per 16 weights out: llvm-mca's account of what two cores make of them.

    python tools/mca.py

Neoverse-N1 stands for the Cortex-A76 it is derived from, Cortex-A57 for the A72; LLVM has no model of those two.
Quantized weights take SDOT on the first, plain NEON on the second. The model knows no caches: every load hits. A guide
within one LLVM version, which is printed, and never a gate.
Needs the cross compiler that tools/aarch64.sh installs, and llvm-mca (Debian's llvm-19); LLVM_MCA names another.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path

from count_instructions import QUANTIZED, build, inner_loops

LLVM_MCA = os.environ.get("LLVM_MCA", "llvm-mca-19")
CORES = {"neoverse-n1": "A76", "cortex-a57": "A72"}
ITERATIONS = 1000
# What products of whole numbers use there, and rows that a turn of the loop over blocks of 256 columns takes.
INTEGER = {"neoverse-n1": ("dotprod", 16), "cortex-a57": ("neon", 8)}
# (title, function, multiply-adds a turn, weights a turn); of a function's loops, the one with that many
LOOPS = [
    ("bf16, T = 1", "product_bf16", 16, 64),
    ("packed, T = 1", "product_packed", 16, 64),
    ("f16, T = 1", "product_f16", 16, 64),
    ("widened tile, T = 6", "product", 24, 16),
]


def hot_path(body: list[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    """The way through a loop with the most multiply-adds: a turn, but for the last one of an odd width."""
    index = {address: i for i, (address, _, _) in enumerate(body)}

    def walk(i: int) -> list[tuple[int, str, str]]:
        address, operation, operands = body[i]
        target = re.search(r"\b([0-9a-f]+) <", operands)
        onward = [] if operation == "b" else [index.get(address + 4)]
        if target:
            onward.append(index.get(int(target[1], 16)))
        if 0 in onward:
            return [body[i]]
        return [body[i], *max((walk(j) for j in onward if j is not None), key=multiply_adds)]

    return walk(0)


def multiply_adds(path: list[tuple[int, str, str]]) -> int:
    return sum(operation == "fmla" for _, operation, _ in path)


def cycles(path: list[tuple[int, str, str]], core: str) -> float:
    """Of one turn, of many in a row."""
    # Where a branch leads means nothing to the model; a comment of objdump's would not assemble.
    operands = [re.sub(r"[0-9a-f]+ <.*", ".", re.sub(r"\s*//.*", "", text)) for _, _, text in path]
    source = "".join(f"{operation} {text}\n" for (_, operation, _), text in zip(path, operands, strict=True))
    command = [LLVM_MCA, "-mtriple=aarch64", f"-mcpu={core}", f"-iterations={ITERATIONS}"]
    ran = subprocess.run(command, input=source, capture_output=True, text=True)
    total = re.search(r"^Total Cycles: +(\d+)$", ran.stdout, re.MULTILINE)
    if ran.returncode or not total:
        raise SystemExit(f"{' '.join(command)}: {ran.stderr.strip()}")
    return int(total[1]) / ITERATIONS


def integer_loops(objects: list[Path]) -> dict[tuple[str, str], float]:
    """(core, type) -> cycles per 16 weights of the loop over blocks for one token, which has no branch but its own."""
    found = {}
    for core, (isa, rows) in INTEGER.items():
        loops = inner_loops(next(path for path in objects if path.stem == f"kernels_{isa}"))
        for dtype in QUANTIZED:
            bodies = [body for function, body in loops if function.split(".")[0] == f"integer_DT_{dtype}_few_1"]
            turn = 8 if dtype in ("Q4_K", "Q5_K") else rows  # two runs of columns of half as many rows
            weights = 256 * turn if "_K" in dtype or dtype == "IQ4_XS" else 32 * 16
            found[core, dtype] = cycles(max(bodies, key=len), core) * 16 / weights  # tiles' loops are short
    return found


def main() -> None:
    version = subprocess.run([LLVM_MCA, "--version"], capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        # GCC adds .isra.0 and the like to the name of a function whose arguments it changed.
        objects = build(Path(folder))[1]
        neon = next(path for path in objects if path.stem == "kernels_neon")
        loops = [(function.split(".")[0], body) for function, body in inner_loops(neon)]
        wanted = {function for _, function, _, _ in LOOPS}
        found = [(function, hot_path(body)) for function, body in loops if function in wanted]
        integer = integer_loops(objects)
    print("llvm-mca", re.search(r"LLVM version (\S+)", version)[1])
    print(f"{'cycles per 16 weights':22}", *(f"{f'{board} ({core})':>18}" for core, board in CORES.items()))
    for title, function, multiplied, weights in LOOPS:
        paths = [path for name, path in found if name == function and multiply_adds(path) == multiplied]
        if len(paths) != 1:
            raise SystemExit(f"{function}: {len(paths)} loops of {multiplied} multiply-adds, expected 1")
        print(f"{title:22}", *(f"{cycles(paths[0], core) * 16 / weights:18.1f}" for core in CORES))
    for dtype in QUANTIZED:
        print(f"{dtype + ', T = 1':22}", *(f"{integer[core, dtype]:18.1f}" for core in CORES))


if __name__ == "__main__":
    main()
