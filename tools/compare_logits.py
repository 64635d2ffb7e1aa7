#!/usr/bin/env python3
"""Logits of a real GGUF file beside those of transformers in float32 on the same weights, dequantized.

usage: compare_logits.py write MODEL.gguf TEXT OUT.npz [--kv-dtype f32] [--positions 300] [--greedy 100]
       compare_logits.py compare MODEL.gguf OUT.npz...

`write` runs with the Python that has pyllama: logits of the text's first tokens, and a greedy continuation of its first
32. `compare` runs with one that has transformers, torch and gguf, which dequantizes; of several files the tokens must
be the same. It prints, for each, the largest and the mean difference of the logits, at how many positions another token
is the most probable one and how far transformers' two best are apart there, and whether the greedy text is what
transformers would write, as far as its two best are more than 1e-2 apart. It ends with 1 if a best token differs where
these are, else with 0. Run by hand: models are not in the tree.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

PROMPT = 32  # tokens that the greedy text goes on from
TIE = 1e-2  # float32 in another order may choose the other one of two logits that are this near


def write(args: argparse.Namespace) -> int:
    import pyllama
    from pyllama import _kernels
    from pyllama.measure.perplexity import text_tokens

    text = args.text.read_text(encoding="utf-8")
    context = max(args.positions, PROMPT + args.greedy) + 1
    with pyllama.load(args.model, context_length=context, kv_dtype=args.kv_dtype, threads=args.threads) as model:
        ids = text_tokens(model.tokenizer, text[: 16 * args.positions])[: args.positions]
        if len(ids) < args.positions:
            raise SystemExit(f"compare_logits.py: {len(ids)} tokens of text, expected {args.positions}")
        logits = model.forward(ids)
        generation = model.generate(ids[:PROMPT].tolist(), max_tokens=args.greedy, ignore_eos=True)
        generation.read()
        said = f"pyllama {pyllama.__version__}, {_kernels.isa()}, cache in {args.kv_dtype}"
        np.savez(args.out, ids=ids, logits=logits, greedy=np.array(generation.token_ids), said=np.array(said))
    return 0


def transformers_logits(path: Path, texts: list[np.ndarray]) -> list[np.ndarray]:
    """(T, vocab_size) float32 logits of each text, of the file's weights dequantized to float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        raise SystemExit("compare_logits.py: transformers did not keep all weights in float32")
    with torch.inference_mode():
        return [model(torch.from_numpy(text.astype(np.int64))[None]).logits[0].numpy() for text in texts]


def flips(ours: np.ndarray, theirs: np.ndarray) -> list[tuple[int, float]]:
    """(position, how far theirs' two best are apart) where another token is ours' best."""
    two = np.sort(np.partition(theirs, -2, axis=-1)[:, -2:], axis=-1)
    return [(int(i), float(two[i, 1] - two[i, 0])) for i in np.flatnonzero(ours != theirs.argmax(axis=-1))]


def compare(args: argparse.Namespace) -> int:
    files = [np.load(path) for path in args.out]
    ids = files[0]["ids"]
    if any(not np.array_equal(ids, file["ids"]) for file in files):
        raise SystemExit("compare_logits.py: files of different tokens")
    written = [np.concatenate([ids[:PROMPT], file["greedy"]]) for file in files]
    theirs, *continued = transformers_logits(args.model, [ids, *written])
    wrong = False
    for path, file, rows in zip(args.out, files, continued, strict=True):
        ours = file["logits"]
        apart = np.abs(ours - theirs)
        flipped = flips(ours.argmax(axis=-1), theirs)
        unlike = flips(file["greedy"], rows[PROMPT - 1 : -1])
        report = {
            "model": args.model.name,
            "file": path.name,
            "said": str(file["said"]),
            "positions": len(ids),
            "largest": float(apart.max()),
            "mean": float(apart.mean(dtype=np.float64)),
            "flips": [{"position": i, "apart": gap} for i, gap in flipped],
            "greedy_tokens": len(file["greedy"]),
            "greedy_differs": [{"token": i, "apart": gap} for i, gap in unlike],
        }
        wrong |= any(gap > TIE for _, gap in [*flipped, *unlike])
        print(json.dumps(report))
    return int(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    writer = commands.add_parser("write")
    writer.add_argument("model", type=Path)
    writer.add_argument("text", type=Path)
    writer.add_argument("out", type=Path)
    writer.add_argument("--kv-dtype", choices=("f32", "f16"), default="f32")
    writer.add_argument("--positions", type=int, default=300)
    writer.add_argument("--greedy", type=int, default=100)
    writer.add_argument("--threads", type=int)
    writer.set_defaults(run=write)
    comparer = commands.add_parser("compare")
    comparer.add_argument("model", type=Path)
    comparer.add_argument("out", type=Path, nargs="+")
    comparer.set_defaults(run=compare)
    args = parser.parse_args()
    if args.run is write and args.positions < PROMPT:
        parser.error(f"--positions: {args.positions}, expected at least {PROMPT}")
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
