"""A GGUF file and a llama-bench program into the same rates pyllama_bench.py prints.

Its weights are read into its own memory, not mapped, as pyllama's are. Refuses to know how llama-bench was
built: the label its path is given with says so.
"""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path


@cache
def unmapped_option(program: Path) -> tuple[str, str]:
    """The option that turns mmap off was renamed in 2026."""
    text = subprocess.run([program, "--help"], capture_output=True, text=True, check=False).stdout
    return ("--load-mode", "none") if "--load-mode" in text else ("--mmap", "0")


def run(program: Path, model: Path, *, threads: int, lengths: list[int], decode: int, repeat: int) -> dict:
    """Raises RuntimeError with llama-bench's last line if it fails."""
    command = [program, "-m", model, "-t", threads, "-r", repeat, "-o", "json", *unmapped_option(program)]
    command += ["-p", ",".join(map(str, lengths)) or 0, "-n", decode]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{program.name}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    tests = json.loads(done.stdout)
    prefill = {str(test["n_prompt"]): test["avg_ts"] for test in tests if test["n_prompt"]}
    return {
        "prefill_tok_s": prefill,
        "decode_tok_s": next(test["avg_ts"] for test in tests if test["n_gen"]),
        "build": f"{tests[0]['build_commit']} ({tests[0]['build_number']})",
    }
