"""NEON kernels in, instructions per unit of work out: executed under emulation, so the same on any machine.

    python tools/count_instructions.py            fails where a kernel takes more than bench/neon_instructions.csv
    python tools/count_instructions.py --write    allows; writes the file with what was counted, ceilings 1% above

The count of a kernel is that of a second call, between two marks in the trace. Then the inner loops are looked through
for accumulators that were spilled. Needs the cross compiler and the emulator that tools/aarch64.sh installs; CC names
another cross compiler, such as "clang --target=aarch64-linux-gnu".
"""

import argparse
import ast
import csv
import itertools
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "bench" / "neon_instructions.csv"
CC = os.environ.get("CC", "aarch64-linux-gnu-gcc").split()
CPUS = {"neon": "cortex-a72", "dotprod": "cortex-a76"}  # a CPU on which this instruction set is the best
QUANTIZED = (
    "Q8_0",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
    "MXFP4",
)
# (instruction set, kernel, numbers of tokens); the elementwise ones cost the same for each.
KERNELS = [("neon", f"matmul_{dtype}", (1, 6)) for dtype in ("bf12", "BF16", "F16", "F32")]
KERNELS += [(isa, f"matmul_{dtype}", (1, 6)) for isa in CPUS for dtype in QUANTIZED]
KERNELS += [("neon", kernel, (1,)) for kernel in ("make_d16", "rmsnorm", "swiglu", "rope")]
KERNELS += [("neon", "attention_f16", (1, 6)), ("neon", "attention_f32", (1,))]


def flags() -> list[str]:
    """What setup.py compiles csrc/ with."""
    found, names = [], {"FLAGS", "RELEASE_FLAGS"} | ({"AARCH64_FLAGS"} if "gcc" in CC[0] else set())
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in names:
            found += ast.literal_eval(node.value)
    return found


def build(folder: Path) -> tuple[Path, list[Path]]:
    """(program, object files of the kernels)."""
    command = [*CC, *flags(), "-Wno-unknown-pragmas", "-I", ROOT / "pyllama" / "csrc", "-c"]

    def compile_one(source: Path) -> Path:
        subprocess.run([*command, source, "-o", folder / f"{source.stem}.o"], check=True)
        return folder / f"{source.stem}.o"

    sources = [Path(__file__).with_name("count_kernels.c"), *sorted(ROOT.glob("pyllama/csrc/*.c"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    subprocess.run([*CC, "-static", *objects, "-lm", "-o", folder / "count_kernels"], check=True)
    return folder / "count_kernels", [folder / f"kernels_{isa}.o" for isa in CPUS]


def executed(program: Path, isa: str, kernel: str, tokens: tuple[int, ...]) -> list[float]:
    """Instructions per unit of work, for each number of tokens."""
    command = ["qemu-aarch64-static", "-cpu", CPUS[isa], "-singlestep", "-d", "exec,nochain"]
    command += [program, kernel, *map(str, tokens)]
    with tempfile.TemporaryFile() as units:
        run = subprocess.Popen(command, stdout=units, stderr=subprocess.PIPE)
        marked = subprocess.run(["grep", "-n", r"^Trace.* mark$"], stdin=run.stderr, capture_output=True, text=True)
        if run.wait() != 0:
            raise SystemExit(f"count_kernels {kernel} {tokens}: exit {run.returncode}")
        units.seek(0)
        each = [int(line) for line in units]
    at = [int(line.partition(":")[0]) for line in marked.stdout.splitlines()]
    between = [b - a - 1 for a, b in itertools.pairwise(at) if b > a + 1]  # a mark may be several instructions
    calls = [between[i : i + 2] for i in range(0, len(between), 3)]  # the third is what prepares the next two
    if len(between) != 3 * len(tokens) - 1 or len(each) != len(tokens):
        raise SystemExit(f"count_kernels {kernel} {tokens}: {len(between)} runs between marks, {len(each)} lines")
    return [second / unit for (_, second), unit in zip(calls, each, strict=True)]


def count(program: Path) -> dict[tuple[str, str, int], float]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda kernel: executed(program, *kernel), KERNELS))
    return {
        (isa, kernel, n): instructions
        for (isa, kernel, tokens), counts in zip(KERNELS, found, strict=True)
        for n, instructions in zip(tokens, counts, strict=True)
    }


MULTIPLY = ("fmla", "sdot", "smlal", "smlal2")
LINE = re.compile(r"^ *([0-9a-f]+):\t(\S+)\s*(.*)$")
BRANCH = re.compile(r"(?:b|b\.\w+|cbn?z|tbn?z)$")
SPILL = re.compile(r"\b[qdsv]\d+(?:, [qdsv]\d+)?, \[sp\b")


def inner_loops(neon: Path) -> list[tuple[str, list[tuple[int, str, str]]]]:
    """(function, (address, operation, operands) of each instruction) of each innermost loop with multiply-adds."""
    objdump = ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", neon]
    listed = subprocess.run(objdump, capture_output=True, text=True, check=True).stdout
    found = []
    for function in listed.split("\n\n"):
        name = re.search(r"<([\w.]+)>:", function)
        lines = [(int(m[1], 16), m[2], m[3]) for m in map(LINE.match, function.splitlines()) if m]
        index = {address: i for i, (address, _, _) in enumerate(lines)}
        jumps, loops = {}, {}
        for i, (_, operation, operands) in enumerate(lines):
            target = re.search(r"\b([0-9a-f]+) <", operands)
            if BRANCH.match(operation) and target and int(target[1], 16) in index:
                jumps[i] = index[int(target[1], 16)]
                if jumps[i] <= i:  # by where it begins: several ways through one loop may each jump back
                    loops[jumps[i]] = i
        for first, last in loops.items():
            if not name or any(first < a and b <= last for a, b in loops.items()):
                continue
            turn = {first}  # what leads back to it: not the function's end, should it lie in between
            for i in range(last, first, -1):
                if jumps.get(i) in turn or (lines[i][1] not in ("b", "ret") and i + 1 in turn):
                    turn.add(i)
            body = [lines[i] for i in sorted(turn)]
            if any(operation in MULTIPLY for _, operation, _ in body):
                found.append((name[1], body))
    return found


def spills(neon: Path) -> dict[str, list[str]]:
    """Vector registers that an innermost loop with multiply-adds keeps on the stack, by function and loop."""
    found = {}
    for name, body in inner_loops(neon):
        # k_spin measures the machine's peak and computes nothing; k_conv has the inputs before on the stack by design,
        # a few rows of CONV_CHANNELS, and ends of rows go through it.
        if name in ("k_spin", "k_conv"):
            continue
        # A block's scales are put on the stack by design and loaded from there, and between sub-blocks a sum or two may
        # wait beside them: integer loops may store once for 8 products.
        multiplied = sum(operation in MULTIPLY for _, operation, _ in body)
        integer = name.startswith(("integer_", "tile_"))
        moves = ("str", "stp") if integer else ("str", "stp", "ldr", "ldp")
        spilled = [
            f"{operation} {operands}"
            for _, operation, operands in body
            if operation in moves and SPILL.search(operands)
        ]
        if len(spilled) > (multiplied // 8 if integer else 0):
            found[f"{name}+{body[0][0]:#x} ({len(body)} instructions, {multiplied} multiply)"] = spilled
    return found


def read_table() -> dict[tuple[str, str, int], float]:
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {(row["isa"], row["kernel"], int(row["tokens"])): float(row["ceiling"]) for row in rows}


def write_table(counted: dict[tuple[str, str, int], float]) -> None:
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["isa", "kernel", "tokens", "instructions", "ceiling"])
        for kernel, instructions in counted.items():
            table.writerow([*kernel, f"{instructions:.4f}", f"{instructions * 1.01:.4f}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        program, objects = build(Path(folder))
        spilled = {loop: found for each in objects for loop, found in spills(each).items()}
        counted = count(program)
    if write:
        write_table(counted)
    ceilings = read_table()
    failed = len(spilled)
    for kernel, instructions in counted.items():
        ceiling = ceilings.get(kernel, 0.0)
        over = instructions > ceiling
        failed += over
        print(
            f"{kernel[0]:8}{kernel[1]:14} T = {kernel[2]}: {instructions:.4f} instructions, ceiling {ceiling:.4f}",
            "EXCEEDED" if over else "",
        )
    for loop, operations in spilled.items():
        print(f"spilled in the inner loop {loop}: {len(operations)} times, {operations[0]} ...")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
