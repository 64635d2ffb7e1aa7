#!/usr/bin/env python3
"""A mixture of true sizes on a small disk, and seconds a token from a budget beside what the disk gives.

usage: mixture.py make DST [--skew]     a Qwen3-30B-A3B, packed: one layer's file under 48 names (2.7 GB)
       mixture.py run DST --memory 1G [--tokens N] [--warm N] [--prompt N] [--no-guesses] [--reads]
                                        DST: that, or a GGUF file
       mixture.py predicted FILE.jsonl NAME=DST ...     each line's seconds beside what the plan says now
       mixture.py cells NAME=DST ... --board board.py [--memory 1G,4G] [--disk 450e6] [--llama PYTHON] --out FILE.jsonl

`cells` runs each model in each of so much memory (a fresh control group, page cache included; pyllama gets 15/16 of it)
with the disk held to so many bytes a second, and a GGUF file in llama.cpp as well, mapped, with the Python that has
xllamacpp. A cell that stands in the file already is not run again. board.py: see streamed.py.

Weights are seeded noise with trained-like exponents, so tokens go to all experts alike; --skew scales rows of the
routers so that 13 % of the experts get about 60 % of them. `run` prints one line of JSON: seconds a token (mean), bytes
read, the rate of plain direct reads of the same file just before and after, hits, and peak memory; with --reads too
for how long a token is before a layer knows its experts, among these, in the head and between passes, and for how much
of that no read was in flight. Every layer's file
has a name of its own, but the bytes are one file's on the disk: reads go past the page cache, so they are as many.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from mixture_gguf import ATTENTION, EMBEDDING, SHAPES
from streamed import direct_rate

from pyllama.architecture.tensors import tensor_shapes
from pyllama.checkpoint import Checkpoint, open_checkpoint
from pyllama.checkpoint.files import InputFile
from pyllama.packing.pack import pack

DIRECT_NBYTES = 1 << 30
FIRST_NBYTES = 1 << 29  # a throttle lets some of the first bytes after a pause pass at once: these are not timed
DRAM_NBYTES = 256 << 20
LAYERS = 48
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144,
    "num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 40960, "tie_word_embeddings": False,
    "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True,
    "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
}  # fmt: skip
FAVOURED, SCALE = SHAPES["qwen3-30b-a3b"].favoured, SHAPES["qwen3-30b-a3b"].favour


def make(folder: Path, skew: bool) -> None:
    """folder/one: the packed model with one layer; folder/layer-NNNNN.safetensors: links to its file."""
    from pyllama.checkpoint.huggingface_config import huggingface_config

    source = folder / "source"
    source.mkdir(parents=True)
    (source / "config.json").write_text(json.dumps(CONFIG))
    random = np.random.default_rng(1)
    shapes = tensor_shapes(huggingface_config(CONFIG))
    header, position = {}, 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, position + nbytes]}
        position += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (source / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            values = random.standard_normal(shape, dtype=np.float32)
            values = 1 + 0.1 * values if len(shape) == 1 else values * np.float32(random.uniform(0.6, 1.4) * 0.02)
            if name.endswith(("embed_tokens.weight", "o_proj.weight")):
                values *= np.float32(EMBEDDING if "embed" in name else ATTENTION)
            if skew and name.endswith("mlp.gate.weight"):
                values[random.permutation(128)[:FAVOURED]] *= np.float32(SCALE)
            file.write((values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes())
    pack(source, folder / "one")
    (source / "model.safetensors").unlink()
    for i in range(LAYERS):
        os.link(folder / "one/model.safetensors", folder / f"layer-{i:05}.safetensors")


def open_shared(folder: Path) -> Checkpoint:
    """The folder as a checkpoint of 48 layers, each read from its own name."""
    with open_checkpoint(folder / "one") as one:
        config = dataclasses.replace(
            one.config,
            num_hidden_layers=LAYERS,
            layer_windows=(None,) * LAYERS,
            mixture=one.config.mixture._replace(layers=(True,) * LAYERS),
        )
        stored = one.tensors
    files = {}
    tensors = {}
    for name in tensor_shapes(config):
        words = name.split(".")
        path, like = folder / "one/model.safetensors", name
        if name.startswith("model.layers."):
            path, like = folder / f"layer-{int(words[2]):05}.safetensors", ".".join([*words[:2], "0", *words[3:]])
        if path not in files:
            files[path] = InputFile(path)
        blocks = tuple(block._replace(file=path) for block in stored[like].blocks)
        tensors[name] = stored[like]._replace(name=name, blocks=blocks)
    return Checkpoint(folder, "huggingface", config, tensors, files, packed=True)


class Reads:
    """What experts' reads are in flight in which part of a pass.

    disk  bytes a second of a disk that does one read after the other, or 0: of the disk as it is. A throttle by control
          group gives back, in the next tenth of a second, what was left unread; a disk that was idle has lost it
    """

    def __init__(self, decoder: Any, disk: float):
        self.reads: list[tuple[float, float, int]] = []
        self.marks: list[tuple[float, str]] = []  # when a part begins
        weights = decoder.weights
        read, experts = weights._experts._read, weights.experts
        lock, free = threading.Lock(), [0.0]

        def timed(span: Any, memory: np.ndarray) -> np.ndarray:
            started = time.perf_counter()
            if disk:
                with lock:
                    free[0] = ready = max(free[0], started) + span.nbytes / disk
            found = read(span, memory)
            if disk:
                time.sleep(max(0.0, ready - time.perf_counter()))
            self.reads.append((started, time.perf_counter(), span.nbytes))
            return found

        def asked(*of: Any) -> Any:
            self.mark("experts")
            return self._taken(experts(*of))

        weights._experts._read, weights.experts = timed, asked
        decoder.on_layer = lambda layer: self.mark("before")

    def _taken(self, coming: Any) -> Any:
        yield from coming
        self.mark("head")  # unless another layer begins

    def mark(self, part: str) -> None:
        self.marks.append((time.perf_counter(), part))

    def parts(self, since: float, tokens: int) -> dict[str, dict[str, float]]:
        """Seconds a token of each part, and those in which nothing was read; reads in flight, on the mean."""
        found = {part: {"s": 0.0, "idle_s": 0.0} for part in ("before", "experts", "head", "between")}
        busy: list[list[float]] = []
        for begin, end, _ in sorted(self.reads):
            if busy and begin <= busy[-1][1]:
                busy[-1][1] = max(busy[-1][1], end)
            else:
                busy.append([begin, end])
        marks = [mark for mark in self.marks if mark[0] >= since]
        for (begin, part), (end, _) in itertools.pairwise(marks):
            of = found[part]
            of["s"] += end - begin
            of["idle_s"] += end - begin - sum(max(0.0, min(end, b) - max(begin, a)) for a, b in busy)
        reads = [of for of in self.reads if of[0] >= since]
        sums = {part: {name: round(value / tokens, 4) for name, value in of.items()} for part, of in found.items()}
        span = max(1e-9, marks[-1][0] - since)
        return {
            **sums,
            "in_flight": round(sum(end - begin for begin, end, _ in reads) / span, 2),
            "read_mb": round(sum(nbytes for *_, nbytes in reads) / tokens / 1e6, 1),
        }


def sustained_rate(path: str) -> float:
    direct_rate(path, FIRST_NBYTES)
    return direct_rate(path, DIRECT_NBYTES)


def run(args: argparse.Namespace) -> None:
    from pyllama import _kernels
    from pyllama.loading import assemble
    from pyllama.machine.memory import parse_size, peak_resident_nbytes, resident_nbytes
    from pyllama.machine.threads import default_threads
    from pyllama.measure.ceilings import Ceilings
    from pyllama.planning.time import Rates, pass_seconds
    from pyllama.tokenizer import load_tokenizer

    _kernels.set_num_threads(default_threads())
    whole = args.folder.is_file()
    checkpoint = open_checkpoint(args.folder) if whole else open_shared(args.folder)
    some = str(args.folder if whole else args.folder / "one/model.safetensors")
    before = sustained_rate(some)
    dram = Ceilings(DRAM_NBYTES).read_gb_s(default_threads())
    tokenizer = load_tokenizer(checkpoint)
    model = assemble(
        checkpoint,
        tokenizer,
        parse_size(args.memory),
        interpreter=resident_nbytes(),
        context_length=256,
        kv_dtype="f16",
    )
    decoder, weights = model.decoder, model.decoder.weights
    if args.no_guesses:
        weights.guess = lambda layer, experts: None
    log = Reads(decoder, args.as_disk) if args.reads else None
    random = np.random.default_rng(5)
    ids = random.integers(3, checkpoint.config.vocab_size, args.prompt + args.warm + args.tokens).tolist()
    digest, times = hashlib.sha256(), []
    with decoder.new_sequence() as sequence:
        started = time.perf_counter()
        digest.update(decoder.prefill(sequence, ids[: args.prompt]).tobytes())
        prompt_s = time.perf_counter() - started
        for number, token in enumerate(ids[args.prompt :]):
            if number == args.warm:
                read, counted = weights.bytes_read, weights.expert_counters
                waited = weights.waited_s
                since = time.perf_counter()
            started = time.perf_counter()
            logits = decoder.forward([(sequence, [token])])
            times.append(time.perf_counter() - started)
            if log:
                log.mark("between")
            digest.update(logits.tobytes())
    times = times[args.warm :]
    read = (weights.bytes_read - read) / len(times)
    after = sustained_rate(some)
    token_s = sum(times) / len(times)
    experts = weights.expert_counters.as_dict(counted)
    rates = Rates((before + after) / 2e9, dram, 1e6, 1.0)
    hits = (experts["hits"] - experts["guesses_used"]) / experts["asked"]  # what a guess brought was read as well
    predicted, bound = pass_seconds(checkpoint, model.plan, rates, 1, 128, hits=hits)
    kept = ("pinned", "weights", "streamed", "expert_slots", "expert_room", "experts_share", "max_pass_tokens")
    result = {
        "budget": args.memory,
        "plan": {name: getattr(model.plan, name) for name in kept},
        "prompt_tokens": args.prompt,
        "prompt_s": round(prompt_s, 3),
        "token_s": round(token_s, 4),
        "bytes_token": round(read),
        "rate_mb_s": round(read / token_s / 1e6),
        "direct_mb_s": [round(before / 1e6), round(after / 1e6)],
        "dram_gb_s": round(dram, 1),
        "experts": experts,
        "waited_s": round((weights.waited_s - waited) / len(times), 4),
        "predicted_s": round(predicted, 4),
        "bound": bound,
        "peak_rss": peak_resident_nbytes(),
        "fingerprint": digest.hexdigest()[:16],
        **({"reads": log.parts(since, len(times))} if log else {}),
    }
    print(json.dumps(result), flush=True)
    weights._counts = None  # of a made-up model
    model.close()


def cells(args: argparse.Namespace) -> None:
    """Each cell once, its line added to the file as soon as it is there."""
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    for name, path in (model.split("=", 1) for model in args.models):
        engines = ["pyllama", "llama.cpp"] if args.llama and Path(path).is_file() else ["pyllama"]
        for disk in map(float, args.disk.split(",")):
            for memory in args.memory.split(","):
                for engine in engines:
                    cell = {"model": name, "engine": engine, "memory": memory, "disk": disk}
                    if not any(cell.items() <= line.items() and "error" not in line for line in done):
                        with args.out.open("a") as out:
                            out.write(json.dumps(one_cell(args, engine, path, memory, disk) | cell) + "\n")


def predicted(args: argparse.Namespace) -> None:
    """A line of Markdown for each of pyllama's lines of these models: measured, and predicted by the code as it is."""
    from pyllama.planning.memory import make_plan
    from pyllama.planning.time import Rates, pass_seconds

    lines = [json.loads(line) for line in args.results.read_text().splitlines()]
    for name, path in (model.split("=", 1) for model in args.models):
        checkpoint = open_checkpoint(path) if Path(path).is_file() else open_shared(Path(path))
        for line in lines:
            if line["model"] != name or "predicted_s" not in line:
                continue
            plan = make_plan(checkpoint, int(line["budget"]), context_length=256, kv_dtype="f16")
            kept = {key: line["plan"][key] for key in ("pinned", "weights", "expert_slots", "experts_share")}
            plan = dataclasses.replace(plan, **kept)
            of = line["experts"]
            hits = (of["hits"] - of["guesses_used"]) / of["asked"]
            rates = Rates(sum(line["direct_mb_s"]) / 2e3, line.get("dram_gb_s", args.dram), 1e6, 1.0)
            seconds, bound = pass_seconds(checkpoint, plan, rates, 1, 128, hits=hits)
            measured = line["token_s"]
            print(
                f"| {name} | {line['memory']} | {line['disk'] / 1e6:.0f} | {line.get('run')} | {of['hit_rate']:.2f} "
                f"| {line['bytes_token'] / 1e6:.0f} | {measured:.3f} | {line['rate_mb_s'] / line['disk'] * 1e6:.2f} "
                f"| {seconds:.3f} | {100 * (seconds / measured - 1):+.0f}% | {bound} |"
            )


def one_cell(args: argparse.Namespace, engine: str, path: str, memory: str, disk: float) -> dict[str, Any]:
    from pyllama.machine.memory import parse_size

    here = Path(__file__).resolve().parent
    tokens, warm = (args.tokens, args.warm) if engine == "pyllama" else (args.llama_tokens, args.llama_warm)
    counts = ["--tokens", str(tokens), "--warm", str(warm)]
    if engine == "pyllama":
        command = [sys.executable, str(here / "mixture.py"), "run", path, *counts]
        command += ["--memory", str(parse_size(memory) * 15 // 16)]
    else:
        command = [args.llama, str(here / "llama_once.py"), path, *counts]
    limits = [sys.executable, args.board, "--memory", memory, "--disk", str(disk), "--evict", path, "--"]
    ended = subprocess.run(limits + command, capture_output=True, text=True)
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    result = {"used": lines[-1] if lines else None, **(lines[0] if len(lines) > 1 else {})}
    if len(lines) < 2:
        result["error"] = (ended.stderr.strip().splitlines() or ["no output"])[-1][:300]
    print(engine, path, memory, disk, result.get("token_s"), result.get("error"), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making, running = commands.add_parser("make"), commands.add_parser("run")
    making.add_argument("folder", type=Path)
    making.add_argument("--skew", action="store_true")
    running.add_argument("folder", type=Path)
    running.add_argument("--memory", default="1G")
    running.add_argument("--tokens", type=int, default=8)
    running.add_argument("--warm", type=int, default=4)
    running.add_argument("--prompt", type=int, default=1)
    running.add_argument("--no-guesses", action="store_true")
    running.add_argument("--reads", action="store_true", help="log them")
    running.add_argument("--as-disk", type=float, default=0, help="with --reads: bytes a second")
    several = commands.add_parser("cells")
    several.add_argument("models", nargs="+", metavar="NAME=DST")
    several.add_argument("--board", required=True)
    several.add_argument("--memory", default="1G,2G,4G,8G")
    several.add_argument("--disk", default="450e6,850e6")
    several.add_argument("--tokens", type=int, default=8)
    several.add_argument("--warm", type=int, default=24)
    several.add_argument("--llama", help="a Python that has xllamacpp")
    several.add_argument("--llama-tokens", type=int, default=4)  # where it is slow, as many would take an hour
    several.add_argument("--llama-warm", type=int, default=4)
    several.add_argument("--out", type=Path, required=True)
    again = commands.add_parser("predicted")
    again.add_argument("results", type=Path)
    again.add_argument("models", nargs="+", metavar="NAME=DST")
    again.add_argument("--dram", type=float, default=25, help="GB/s, for lines that do not tell it")
    args = parser.parse_args()
    if args.command == "make":
        make(args.folder, args.skew)
    elif args.command == "cells":
        cells(args)
    elif args.command == "predicted":
        predicted(args)
    else:
        run(args)


if __name__ == "__main__":
    main()
