"""Measurements -> the report of `pyllama bench`: what was measured on, each figure beside its ceiling.

measure() runs everything and returns what `bench --json` prints; what a person reads is made of it by
report_lines.py, the plot by plot.py.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pyllama import _kernels
from pyllama.checkpoint import open_checkpoint
from pyllama.errors import PyllamaError, RequestError
from pyllama.hub import resolve
from pyllama.machine.memory import available_nbytes, default_budget, resident_nbytes
from pyllama.measure import disk, drafting, kernels, work
from pyllama.measure.advice import advice
from pyllama.measure.ceilings import SPIN_ROUNDS, Ceilings
from pyllama.measure.condition import condition
from pyllama.measure.machine import describe
from pyllama.measure.model import CONTEXT
from pyllama.measure.others import Others
from pyllama.measure.own_process import in_own_process
from pyllama.measure.rates import cache_folders, nearest
from pyllama.measure.storage import storage
from pyllama.planning.memory import SLACK, make_plan
from pyllama.planning.time import enough

#: Of the weights, what stays in the streamed run when nobody says how much memory to use.
KEPT = 0.25
#: What a process that drafts holds before it plans, beyond one that does not, and some room.
_DRAFTING_NBYTES = 4 << 20


def measure(
    model: str | None = None,
    *,
    memory: int | None = None,
    file: Path | None = None,
    threads: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    file_nbytes: int = disk.FILE_NBYTES,
    buffer_nbytes: int | None = None,
    seconds: float = 4.0,
    spin_rounds: int = SPIN_ROUNDS,
    positions: int = 2048,
    prompts: tuple[int, ...] = (64, 512),
    decode: int = 16,
    most_s: float = 60.0,
    draft: str | None = None,
    text: str | None = None,
    drafted_tokens: int = drafting.WITH,
) -> dict[str, Any]:
    """Ceilings and kernels, and with a model also prompts and decoding, resident and streamed.

    say            told what is going on
    memory         budget of the streamed run; default: what keeps a quarter of the weights
    file           a file to measure the disk with; default: the model's largest, else one made for it
    draft          measure what a drafter's proposals are worth, too: who it is, as load() takes it
    text           what the model then continues; default: short ones of several kinds
    file_nbytes and what follows: how much of everything, for boards and tests with little patience
    """
    if threads is not None:
        _kernels.set_num_threads(threads)
    threads = _kernels.num_threads()
    path = resolve(model) if model is not None else None
    files: list[Path] = []
    if path is not None:
        with open_checkpoint(path) as checkpoint:
            files = list(checkpoint.files)
            if memory is not None:  # too little is told before minutes are spent
                context = min(CONTEXT, checkpoint.config.max_position_embeddings)
                make_plan(checkpoint, memory, context_length=context, interpreter=resident_nbytes())
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
        "machine": describe(),
        "threads": threads,
    }
    states = [condition()]
    others = Others()

    say("memory and arithmetic")
    ceilings = Ceilings(buffer_nbytes)
    before = {n: ceilings.measure(n, rounds=spin_rounds) for n in dict.fromkeys((1, threads))}
    read_nbytes = ceilings.buffer.nbytes
    del ceilings
    say("disk")
    report["disk"], lies_on = _disk(file, files, file_nbytes, seconds, say)
    say("kernels")
    nbytes = min(read_nbytes, available_nbytes() // 6)  # in three layouts at once
    report["kernels"] = kernels.measure(threads, nbytes, positions=positions, seconds=min(0.3, seconds / 8))
    report["models"] = []
    if path is not None:
        options = {"threads": threads, "prompts": prompts, "decode": decode, "most_s": most_s}
        report["models"] = _models(path, memory, options, say)
        if draft is not None:
            options = {"threads": threads, "text": text, "tokens": drafted_tokens, "most_s": most_s}
            report["drafting"] = _drafting(path, draft, memory, report["models"], options, say)
    say("memory and arithmetic, again")
    after = Ceilings(buffer_nbytes).measure(threads, rounds=spin_rounds)
    # On all threads the mean of before and after: a machine that warms up meets the figures in between.
    before[threads] = {name: (rate + after[name]) / 2 for name, rate in before[threads].items()}
    report["ceilings"] = {"buffer_nbytes": read_nbytes} | {str(n): rates for n, rates in before.items()}
    states.append(condition())
    report["others"] = others.share()
    report["condition"] = {"before": states[0], "after": states[1]}
    report["advice"] = [asdict(item) for item in advice(lies_on, None, states)]
    _beside(report)
    return report


def _disk(
    file: Path | None, model_files: list[Path], file_nbytes: int, seconds: float, say: Callable[[str], None]
) -> tuple[dict[str, Any], Any]:
    """One and three reads in flight, of a given file, of the model's largest, or of one made for it."""
    if file is not None and not file.is_file():
        raise RequestError(f"--file: {file} is no file")
    file = file or disk.largest(model_files)
    if file is not None:
        return _read(file, seconds, f"{file.stat().st_size / 1e6:.0f} MB of an existing file")
    written = [0]

    def advance(count: int) -> None:
        written[0] += count
        say(f"disk: writing a file to read, {min(100, 100 * written[0] // file_nbytes)}%")

    with disk.temporary_file(nearest(cache_folders()[0]), file_nbytes, advance) as path:
        say("disk: reading")
        return _read(path, seconds, f"a file of {file_nbytes / 1e6:.0f} MB made for it")


def _read(path: Path, seconds: float, what: str) -> tuple[dict[str, Any], Any]:
    one = disk.read_rate(path, in_flight=1, seconds=seconds)
    three = disk.read_rate(path, in_flight=3, seconds=seconds)
    where = storage(path)
    found = {"file": what, "direct": three.direct, "storage": asdict(where), "described": str(where),
             "read_gb_s": {"1": one.gb_s, "3": three.gb_s}}  # fmt: skip
    return found, where


def _models(path: Path, memory: int | None, options: dict[str, Any], say: Callable[[str], None]) -> list[dict]:
    """The resident run, if memory allows one, and the streamed run; of each what it gave, or why it was "skipped"."""

    def run(kind: str, budget: dict[str, Any]) -> dict[str, Any]:
        if "skipped" in budget:
            return budget
        say(f"{path.name}, {kind}")
        try:
            found = in_own_process("model", path, **budget, **options)
        except PyllamaError as error:
            if "keep" not in budget:
                raise
            return {"skipped": str(error).removeprefix("bench: ")}
        if kind == "streamed" and not found["streamed_nbytes"]:
            return {"skipped": "all of the model fits the budget"}
        with open_checkpoint(path) as checkpoint:
            costs = {
                "decode_nbytes": work.decode_nbytes(checkpoint),
                "prefill_flop": {str(n): work.prefill_flop(checkpoint, n) for n in (64, 512)},
            }
        return {"model": path.name} | costs | found

    budgets = {"resident": _to_keep_all(path), "streamed": {"memory": memory} if memory else {"keep": KEPT}}
    return [{"kind": kind} | run(kind, budget) for kind, budget in budgets.items()]


def _drafting(
    path: Path, draft: str, memory: int | None, runs: list[dict], options: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Under the budget of the streamed run, and a little more if nobody chose it: this one holds more code.

    Where there is none, under what is available.
    """
    budget = next((run["budget"] for run in runs if run["kind"] == "streamed" and "budget" in run), memory)
    if budget is not None and memory is None:
        budget += _DRAFTING_NBYTES
    say(f"{path.name}, drafted")
    run = partial(in_own_process, "drafting", path, memory=budget)
    return {"budget": budget, **drafting.compared(run, draft, **options)}


def _to_keep_all(path: Path) -> dict[str, Any]:
    """The budget of the resident run, or why it is "skipped"."""
    with open_checkpoint(path) as checkpoint:
        context = min(CONTEXT, checkpoint.config.max_position_embeddings)
        # The process that measures is about as large as this one.
        need = enough(checkpoint, context_length=context, interpreter=resident_nbytes()) + SLACK
    available = default_budget()
    if need > available:
        return {"skipped": f"needs {need / 1e9:.2f} GB, {available / 1e9:.2f} available"}
    return {"memory": available}


def _beside(report: dict[str, Any]) -> None:
    """Put beside each figure its ceiling and the fraction of it that was reached."""
    rates = report["ceilings"][str(report["threads"])]
    read, peak, disk_gb_s = rates["read_gb_s"], rates["peak_gflop_s"], report["disk"]["read_gb_s"]["3"]
    for kernel in report["kernels"]:
        kernel["ceiling"] = read if kernel["beside"] == "read" else peak
        kernel["of_ceiling"] = kernel["value"] / kernel["ceiling"]
    for run in report["models"]:
        if "skipped" in run:
            continue
        # Bytes a pass moves: what is kept is read once; what is streamed crosses the bus in and out.
        memory_s = (run["pinned_nbytes"] + 2 * run["streamed_nbytes"]) / (read * 1e9)
        disk_s = run["streamed_nbytes"] / (disk_gb_s * 1e9)
        decode = run["decode"]
        decode |= _fraction(decode["seconds"] / decode["tokens"], disk=disk_s, memory=memory_s)
        decode["gb_s"] = decode["tok_s"] * run["decode_nbytes"] / 1e9
        for length, prompt in run["prefill"].items():
            flop = run["prefill_flop"].get(length)
            if flop:
                prompt["gflop_s"] = flop / 1e9 / prompt["seconds"]
                prompt |= _fraction(prompt["seconds"], disk=disk_s, memory=memory_s, compute=flop / (peak * 1e9))


def _fraction(seconds: float, **least_s: float) -> dict[str, Any]:
    bound = max(least_s, key=lambda name: least_s[name])
    return {"ceiling_s": least_s[bound], "bound": bound, "of_ceiling": least_s[bound] / seconds}
