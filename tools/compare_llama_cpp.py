#!/usr/bin/env python3
"""A tiny random model of every family as a GGUF file in F32: next-token log-probabilities here and in llama.cpp.

    python -P tools/compare_llama_cpp.py [--only NAME]

Needs xllamacpp beside pyllama. Each model is written as a Hugging Face folder, made a GGUF file by `pyllama quantize
--type f32`, and asked for the token after prompts of several lengths, past its windows too; both keep keys and values
in float32. A line a family: the largest difference of a log-probability, or what llama.cpp says that it does not know.
The folder must give the very logits of the file, but for Qwen3.5. Ends with 1 if a difference is above --bound.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE / "tests"))
sys.path.insert(0, str(HERE / "tests" / "support"))
VOCAB = 269  # of the tokenizer that tests give tiny models
LENGTHS = (1, 2, 7, 15, 33, 60)


def prompts() -> list[list[int]]:
    return [[(7 * i * i + 3 * i + length) % 97 + 1 for i in range(length)] for length in LENGTHS]


def llama_cpp(path: str, size: int) -> None:
    """Prints (prompts, size) log-probabilities as JSON; run in a process of its own, for its threads stay."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel = 256, 1
    params.warmup = params.fit_params = False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity = -1
    server = xllamacpp.Server(params)
    rows = []
    for ids in prompts():
        asked = {"prompt": ids, "n_predict": 1, "n_probs": size, "temperature": 0, "cache_prompt": False}
        asked["logit_bias"] = [[ord("a"), 1000.0]]  # of half a character it tells no probabilities; these are before it
        answer = server.handle_completions(asked)
        answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
        row = [None] * size
        for one in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            row[one["id"]] = one["logprob"]
        rows.append(row)
    print("\n" + json.dumps(rows), flush=True)
    os._exit(0)


def ours(path: Path) -> np.ndarray:
    import pyllama

    with pyllama.load(path, context_length=256, kv_dtype="f32", threads=1) as model:
        logits = np.stack([model.forward(ids)[-1] for ids in prompts()]).astype(np.float64)
    return logits


def compared(kind: dict, folder: Path) -> tuple[float, float] | str:
    """The largest difference, and the largest log-probability's size; or what stands in the way."""
    import conftest

    from pyllama.quantizing import quantize

    path = conftest.write_model(folder / "model", **kind)
    config = json.loads((path / "config.json").read_text())
    file = folder / "model.gguf"
    quantize(path, file, "f32")
    logits = ours(file)
    apart = np.abs(logits - ours(path)).max()
    if apart > (1e-4 if "linear_num_value_heads" in config else 0.0):  # whose heads have another order in the file
        raise SystemExit(f"compare_llama_cpp.py: {kind}: the file's logits are {apart:.1e} from the folder's")
    logprobs: np.ndarray = logits - logits.max(-1, keepdims=True)
    logprobs -= np.log(np.exp(logprobs).sum(-1, keepdims=True))
    command = [sys.executable, "-P", __file__, "--file", str(file), "--size", str(logits.shape[1])]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if run.returncode:
        words = (run.stderr + run.stdout).strip().splitlines()
        return next((line for line in words if "unknown" in line or "error" in line), words[-1] if words else "ends")
    found = json.loads(run.stdout.splitlines()[-1])
    theirs = np.array([[np.nan if value is None else value for value in row] for row in found])
    apart = np.abs(theirs - logprobs)
    if np.isnan(theirs).any():
        apart = apart[~np.isnan(theirs)]
    return float(apart.max()), float(np.abs(logprobs).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="families with this in their name")
    parser.add_argument("--bound", type=float, default=5e-3, help="what differences may be; default %(default)s")
    parser.add_argument("--file", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.file:
        llama_cpp(args.file, args.size)
    import tiny

    kinds: dict[str, dict] = {family: {"model_type": family} for family in tiny.FAMILIES}
    kinds["granite 4, unrotated"] = {"model_type": "granitemoehybrid", "position_embedding_type": "nope"}
    kinds["gemma4_mixture"] = dict(tiny.GEMMA4_MIXTURE)
    kinds["mistral"]["sliding_window"] = None  # llama.cpp runs Mistral as llama, without its window
    kinds["qwen3_5_text"]["linear_key_head_dim"] = 16  # as that of values, or it fails to begin
    for kind in kinds.values():
        if "vocab_size_per_layer_input" in tiny.OWN.get(kind["model_type"], ()):
            kind["vocab_size_per_layer_input"] = VOCAB
    wrong = False
    for name, kind in kinds.items():
        if args.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = compared(kind, Path(folder))
            except Exception as error:  # the next family is looked at all the same
                found = f"{type(error).__name__}: {error}"
        if isinstance(found, str):
            print(f"{name}: {found[:200]}", flush=True)
            continue
        wrong |= found[0] > args.bound
        print(f"{name}: {found[0]:.1e} of {found[1]:.3g}", flush=True)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
