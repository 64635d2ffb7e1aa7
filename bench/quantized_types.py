#!/usr/bin/env python3
"""A model and types to quantize it to -> docs/quantize.md's table: bytes, perplexity, KL divergence, rates on boards.

usage: quantized_types.py MODEL TEXT --types q8_0,q4_k_m [--chunks 16] [--context 512] [--folder DIR] [--memory 4G]
                          [--threads N]

Makes MODEL-TYPE.gguf in DIR for every type, with `pyllama quantize`, unless it is there. The text is scored as
`pyllama perplexity MODEL-TYPE.gguf TEXT --against MODEL --kv-dtype f32` scores it, but the source computes its logits
once for all types. Tokens a second on boards are `pyllama plan`'s, with all weights in memory. A line of JSON a type
goes to standard error as it comes, the table to standard output.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import pyllama
from pyllama.measure.perplexity import Estimate, estimates, text_tokens
from pyllama.measure.windows import Windows
from pyllama.printable import one_line

BOARDS = ("pi4", "pi5")


class Recorded:
    """A reference whose logits are computed once and kept in a file: what estimates() asks of a model, replayed.

    Every pass over it is to be the same as the first time.
    """

    def __init__(self, path: str, ids: np.ndarray, windows: Windows, folder: Path, threads: int | None):
        self._file = tempfile.TemporaryFile(dir=folder)
        with pyllama.load(path, context_length=windows.context, kv_dtype="f32", threads=threads) as model:
            self.nbytes = sum(tensor.nbytes for tensor in model.checkpoint.tensors.values())
            self.tokenizer, self.config = model.tokenizer, model.config
            extend = model.decoder.extend

            def record(*arguments: Any) -> tuple[np.ndarray, list[np.ndarray]]:
                logits, rows = extend(*arguments)
                self._file.write(logits.tobytes())
                return logits, rows

            model.decoder.extend = record  # type: ignore[method-assign]
            for result in estimates(model, ids, windows):
                note(f"source: {result.chunks}/{windows.count}, perplexity {result.perplexity:.4f}")
            self.result = result
            self.decoder = SimpleNamespace(max_pass_tokens=model.decoder.max_pass_tokens, extend=self._replay)

    def rewind(self) -> None:
        self._file.seek(0)

    def new_sequence(self) -> Any:
        return SimpleNamespace(close=lambda: None)

    def _replay(self, batch: Any, wanted: list[int]) -> tuple[np.ndarray, None]:
        shape = sum(wanted), self.config.vocab_size
        data = self._file.read(4 * shape[0] * shape[1])
        return np.frombuffer(data, np.float32).reshape(shape), None


def note(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def pyllama_command(*words: object) -> str:
    command = [sys.executable, "-m", "pyllama", *map(str, words)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def tok_s(path: Path | str, board: str, memory: str) -> float:
    report = json.loads(pyllama_command("plan", path, "--board", board, "--memory", memory, "--json"))
    if report["plan"]["streamed"]:
        raise SystemExit(f"quantized_types.py: --memory {memory}: {path} does not fit into it")
    return 1 / report["forecast"]["token_s"]


def row(name: str, nbytes: int, result: Estimate, path: Path | str, memory: str) -> dict[str, Any]:
    rates = {board: tok_s(path, board, memory) for board in BOARDS}
    return {"type": name, "nbytes": nbytes, **asdict(result), "tok_s": rates}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| type | MB | perplexity | over the source's | KL divergence | same best token | "
        + " | ".join(f"tok/s, {board}" for board in BOARDS)
        + " |",
        "|---|---|---|---|---|---|" + "---|" * len(BOARDS),
    ]
    for one in rows:
        against = one["against"]
        figures = (
            [
                f"{np.exp(against['log_ratio']) - 1:+.2%}",
                f"{against['kl']:.4f} +/- {against['kl_error']:.4f}",
                f"{against['same_best']:.1%}",
            ]
            if against
            else ["", "", ""]
        )
        cells = [
            f"`{one['type']}`" if against else one["type"],
            f"{one['nbytes'] / 1e6:.0f}",
            f"{one['perplexity']:.3f}",
            *figures,
            *(f"{rate:.1f}" for rate in one["tok_s"].values()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--types", required=True, help="of pyllama quantize, with commas between")
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--folder", type=Path, default=Path("."), help="where quantized files are, or are made")
    parser.add_argument("--memory", default="4G", help="of the boards")
    parser.add_argument("--threads", type=int, help="default: the physical cores")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with pyllama.load(args.model, context_length=8) as model:
        ids = text_tokens(model.tokenizer, args.text.read_text(encoding="utf-8").removesuffix("\n"))
    windows = Windows(len(ids), args.context, most=args.chunks)
    source = Recorded(args.model, ids, windows, args.folder, args.threads)
    rows = [row("source", source.nbytes, source.result, args.model, args.memory)]
    print(json.dumps(rows[0]), file=sys.stderr, flush=True)
    for name in args.types.split(","):
        path = args.folder / f"{Path(args.model).stem}-{name}.gguf"
        if not path.exists():
            pyllama_command("quantize", args.model, path, "--type", name, "--quiet")
        source.rewind()
        with pyllama.load(path, context_length=args.context, kv_dtype="f32", threads=args.threads) as model:
            for result in estimates(model, ids, windows, against=source):  # type: ignore[arg-type]
                note(f"{name}: {result.chunks}/{windows.count}, perplexity {result.perplexity:.4f}")
        note("")
        rows.append(row(name, path.stat().st_size, result, path, args.memory))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(table(rows))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except pyllama.PyllamaError as error:
        sys.exit(one_line(f"quantized_types.py: {error}"))
