"""Hot NEON loops in, modelled cycles per 16 weights out: llvm-mca's account of what two cores make of them.

    python tools/mca.py
    python tools/mca.py --list        the loops and what a turn of each multiplies; needs no llvm-mca

Neoverse-N1 stands for the Cortex-A76 it is derived from, Cortex-A57 for the A72; LLVM has no model of those two.
Quantized weights take SDOT on the first, plain NEON on the second. The model knows no caches: every load hits. A guide
within one LLVM version, which is printed, and never a gate; that each loop is found is one (.ci/beside).
Needs the cross compiler that tools/aarch64.sh installs, and llvm-mca (Debian's llvm-19); LLVM_MCA names another.
"""

import argparse
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from count_instructions import BRANCH, QUANTIZED, build, inner_loops

LLVM_MCA = os.environ.get("LLVM_MCA", "llvm-mca-19")
CORES = {"neoverse-n1": "A76", "cortex-a57": "A72"}
ISAS = {"neoverse-n1": "dotprod", "cortex-a57": "neon"}  # for products of whole numbers
ITERATIONS = 1000

Instructions = list[tuple[int, str, str]]  # (address, operation, operands) of each

# (title, functions a compiler may have put it into, its multiply-adds, whether it widens float16, tokens)
FLOATS = [
    ("bf16, T = 1", ("product_bf16", "product_columns"), 16, False, 1),
    ("f16, T = 1", ("product_f16", "product_columns"), 16, True, 1),
    ("packed, T = 1", ("product_packed", "product_panel"), 16, False, 1),
    ("widened tile, T = 6", ("product",), 24, False, 6),
]
# Likewise, for many tokens: (types that share a loop, functions it may be in).
TILES = [
    ("Q8_0, Q4_0, Q5_0, IQ4_NL, MXFP4", ("tile_small",)),
    ("Q4_1, Q5_1", ("tile_small_minima",)),
    ("IQ4_XS", ("tile_large", "integer_DT_IQ4_XS_many")),
    ("Q4_K, Q5_K", ("tile_large_minima",)),
    ("Q3_K, Q6_K", ("tile_large_narrow",)),
    ("Q2_K", ("tile_large_narrow_minima", "integer_DT_Q2_K_many")),
]
TILE_TOKENS = {"dotprod": 3, "neon": 4}  # MANY_TOKENS
FEW_TOKENS = {"dotprod": (1, 2, 3), "neon": (1,)}
# Weights times tokens that one instruction multiplies: half of its products of bytes, for activations are two planes of
# bytes; all of them where codes and activations have 16 bits, in the tiles of ARMv8.0.
LONG = ("smull", "smull2", "smlal", "smlal2")
IN_BYTES = {"sdot": 8} | dict.fromkeys(LONG, 4)
IN_WORDS = dict.fromkeys(LONG, 4)


@dataclass(frozen=True, slots=True)
class Loop:
    """A way through a loop, and the weights that a turn of it multiplies, each with `tokens` activations."""

    turn: Instructions
    weights: int
    tokens: int


def hot_path(body: Instructions) -> Instructions:
    """The way through a loop with the most multiply-adds: a turn, but for the last one of an odd width."""
    index = {address: i for i, (address, _, _) in enumerate(body)}

    def walk(i: int) -> Instructions:
        """From there to the loop's begin; nothing where no way leads to it."""
        address, operation, operands = body[i]
        target = re.search(r"\b([0-9a-f]+) <", operands)
        onward = [] if operation in ("b", "ret") else [index.get(address + 4)]
        if target:
            onward.append(index.get(int(target[1], 16)))
        if 0 in onward:
            return [body[i]]
        rest = max((walk(j) for j in onward if j is not None and j > i), key=multiply_adds, default=[])
        return [body[i], *rest] if rest else []

    return walk(0)


def multiply_adds(path: Instructions) -> int:
    return sum(operation == "fmla" for _, operation, _ in path)


def float_loop(
    title: str, loops: list[tuple[str, Instructions]], names: tuple[str, ...], wanted: int, halves: bool, tokens: int
) -> Loop:
    paths = [hot_path(body) for function, body in loops if function in names and multiply_adds(body) >= wanted]
    found = [
        path
        for path in paths
        if multiply_adds(path) == wanted and halves == any(operation == "fcvtl" for _, operation, _ in path)
    ]
    if len(found) != 1:
        raise SystemExit(f"{title}: {len(found)} loops of {wanted} multiply-adds, expected 1")
    return Loop(found[0], 4 * wanted // tokens, tokens)


def integer_loop(
    title: str, loops: list[tuple[str, Instructions]], names: tuple[str, ...], lanes: dict[str, int], tokens: int
) -> Loop:
    """The one with most products of those without a branch inside: others do what is left of a tile, or of tokens."""
    best = Loop([], 0, tokens)
    for function, body in loops:
        if function in names and sum(bool(BRANCH.match(operation)) for _, operation, _ in body) == 1:
            # SMULL of two whole registers is an address.
            multiplied = sum(lanes.get(operation, 0) for _, operation, operands in body if operands.startswith("v"))
            if multiplied > best.weights * tokens:
                best = Loop(body, multiplied // tokens, tokens)
    if best.weights == 0 or best.weights % 128:  # 8 or 16 rows, runs of 16 or 32 columns
        raise SystemExit(f"{title}: {best.weights} weights a turn, expected a multiple of 128")
    return best


def cycles(loop: Loop, core: str) -> float:
    """Of 16 weights times all tokens, in one of many turns."""
    # Where a branch leads means nothing to the model; a comment of objdump's would not assemble.
    operands = [re.sub(r"[0-9a-f]+ <.*", ".", re.sub(r"\s*//.*", "", text)) for _, _, text in loop.turn]
    source = "".join(f"{operation} {text}\n" for (_, operation, _), text in zip(loop.turn, operands, strict=True))
    command = [LLVM_MCA, "-mtriple=aarch64", f"-mcpu={core}", f"-iterations={ITERATIONS}"]
    ran = subprocess.run(command, input=source, capture_output=True, text=True)
    total = re.search(r"^Total Cycles: +(\d+)$", ran.stdout, re.MULTILINE)
    if ran.returncode or not total:
        raise SystemExit(f"{' '.join(command)}: {ran.stderr.strip()}")
    return int(total[1]) / ITERATIONS * 16 / loop.weights


def find_loops(objects: dict[str, Path]) -> list[tuple[str, dict[str, Loop]]]:
    """(title, core -> loop) of each row of the table. objects: those of the kernels, by instruction set."""
    # GCC adds .isra.0 and the like to the name of a function whose arguments it changed.
    loops = {
        isa: [(function.split(".")[0], body) for function, body in inner_loops(path)] for isa, path in objects.items()
    }
    found = []
    for title, names, wanted, halves, tokens in FLOATS:
        found.append((title, dict.fromkeys(CORES, float_loop(title, loops["neon"], names, wanted, halves, tokens))))
    for tokens in FEW_TOKENS["dotprod"]:
        for dtype in QUANTIZED:
            title, name = f"{dtype}, T = {tokens}", f"integer_DT_{dtype}_few_{tokens}"
            having = [core for core, isa in ISAS.items() if tokens in FEW_TOKENS[isa]]
            found.append(
                (title, {core: integer_loop(title, loops[ISAS[core]], (name,), IN_BYTES, tokens) for core in having})
            )
    for types, names in TILES:
        row = {}
        for core, isa in ISAS.items():
            lanes = IN_BYTES if isa == "dotprod" else IN_WORDS
            row[core] = integer_loop(f"tile: {types}", loops[isa], names, lanes, TILE_TOKENS[isa])
        found.append((f"tile: {types}", row))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="find the loops, model nothing")
    only_list = parser.parse_args().list
    with tempfile.TemporaryDirectory() as folder:
        objects = build(Path(folder))[1]
        found = find_loops({path.stem.removeprefix("kernels_"): path for path in objects})
    if not only_list:
        version = subprocess.run([LLVM_MCA, "--version"], capture_output=True, text=True, check=True).stdout
        print("llvm-mca", re.search(r"LLVM version (\S+)", version)[1])
    print(
        f"{'' if only_list else 'cycles per 16 weights':40}",
        *(f"{f'{board} ({core})':>24}" for core, board in CORES.items()),
    )
    for title, row in found:
        cells = []
        for core in CORES:
            loop = row.get(core)
            if loop is None:
                cells.append("")
            elif only_list:
                cells.append(f"{len(loop.turn)} for {loop.weights} x {loop.tokens}")
            else:
                cells.append(f"{cycles(loop, core):.1f} for T = {loop.tokens}")
        print(f"{title:40}", *(f"{cell:>24}" for cell in cells))


if __name__ == "__main__":
    main()
