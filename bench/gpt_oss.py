#!/usr/bin/env python3
"""A gpt-oss-20b of noise in one GGUF file of 12 GB: experts in MXFP4, the rest in Q8_0, as the published file has them.

usage: gpt_oss.py DST.gguf [--even]      seeded; by default a bias of the routers favours some experts
       gpt_oss.py DST.gguf --even        on a file that is there: its routers' biases alone are written anew

With a bias of BIAS on 4 of 32 experts (13 %), these get about 60 % of the tokens. Read by pyllama and by llama.cpp.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pyllama.quantizing.gguf_writer import Info, encoded, head, laid_out

LAYERS, HIDDEN, INNER, HEADS, KV, DIM, EXPERTS, CHOSEN, VOCAB = 24, 2880, 2880, 64, 8, 64, 32, 4, 201088
FAVOURED, BIAS = 4, 1.93  # how many, and by how much their logits are larger; others' deviate by about 1
CHUNK = 64 << 20


def tensors() -> list[tuple[str, str, tuple[int, ...]]]:
    found: list[tuple[str, str, tuple[int, ...]]] = [("token_embd.weight", "Q8_0", (VOCAB, HIDDEN))]
    for i in range(LAYERS):
        layer = [("attn_norm.weight", "F32", (HIDDEN,))]
        for name, rows in (("attn_q", HEADS * DIM), ("attn_k", KV * DIM), ("attn_v", KV * DIM)):
            layer += [(f"{name}.weight", "Q8_0", (rows, HIDDEN)), (f"{name}.bias", "F32", (rows,))]
        layer += [("attn_output.weight", "Q8_0", (HIDDEN, HEADS * DIM)), ("attn_output.bias", "F32", (HIDDEN,))]
        layer += [("attn_sinks.weight", "F32", (HEADS,)), ("post_attention_norm.weight", "F32", (HIDDEN,))]
        layer += [("ffn_gate_inp.weight", "F32", (EXPERTS, HIDDEN)), ("ffn_gate_inp.bias", "F32", (EXPERTS,))]
        for name, rows, cols in (
            ("ffn_gate_exps", INNER, HIDDEN),
            ("ffn_up_exps", INNER, HIDDEN),
            ("ffn_down_exps", HIDDEN, INNER),
        ):
            layer.append((f"{name}.weight", "MXFP4", (EXPERTS, rows, cols)))
            layer.append((f"{name}.bias", "F32", (EXPERTS, rows)))
        found += [(f"blk.{i}.{name}", dtype, shape) for name, dtype, shape in layer]
    return [*found, ("output_norm.weight", "F32", (HIDDEN,)), ("output.weight", "Q8_0", (VOCAB, HIDDEN))]


def metadata() -> dict[str, bytes]:
    words = [b"aaa", b"bbb", b"aaabbb", *(f"<{i}>".encode() for i in range(3, VOCAB))]
    values = {
        "general.architecture": "gpt-oss", "general.name": "of noise.", "gpt-oss.block_count": np.uint32(LAYERS),
        "gpt-oss.context_length": np.uint32(131072), "gpt-oss.embedding_length": np.uint32(HIDDEN),
        "gpt-oss.feed_forward_length": np.uint32(INNER), "gpt-oss.attention.head_count": np.uint32(HEADS),
        "gpt-oss.attention.head_count_kv": np.uint32(KV), "gpt-oss.attention.key_length": np.uint32(DIM),
        "gpt-oss.attention.value_length": np.uint32(DIM), "gpt-oss.rope.freq_base": np.float32(150000),
        "gpt-oss.attention.layer_norm_rms_epsilon": np.float32(1e-5), "gpt-oss.expert_count": np.uint32(EXPERTS),
        "gpt-oss.expert_used_count": np.uint32(CHOSEN), "gpt-oss.attention.sliding_window": np.uint32(128),
        "gpt-oss.expert_feed_forward_length": np.uint32(INNER), "gpt-oss.rope.scaling.type": "yarn",
        "gpt-oss.rope.scaling.factor": np.float32(32), "gpt-oss.vocab_size": np.uint32(VOCAB),
        "gpt-oss.rope.scaling.original_context_length": np.uint32(4096), "general.file_type": np.uint32(38),
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-4o", "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": np.ones(VOCAB, np.int32), "tokenizer.ggml.merges": [b"aaa bbb"],
        "tokenizer.ggml.bos_token_id": np.uint32(199998), "tokenizer.ggml.eos_token_id": np.uint32(200002),
    }  # fmt: skip
    return {key: encoded(value) for key, value in values.items()}


def data(info: Info, random: np.random.Generator, even: bool) -> np.ndarray:
    """Bytes of some rows of a tensor: all of a small one, CHUNK bytes at most of a large one."""
    nbytes = min(info.nbytes, CHUNK // (34 * 17) * 34 * 17)
    if info.dtype == "MXFP4":
        blocks = random.integers(0, 256, (nbytes // 17, 17), np.uint8)
        blocks[:, 0] = 120  # a deviation of 0.02
    elif info.dtype == "Q8_0":
        blocks = np.empty((nbytes // 34, 34), np.uint8)
        blocks[:, :2] = np.full((1,), 0.0004, np.float16).view(np.uint8)
        codes = np.clip(random.standard_normal((len(blocks), 32), np.float32) * 45, -127, 127)
        blocks[:, 2:] = codes.astype(np.int8).view(np.uint8)
    else:
        values = random.standard_normal(info.shape, dtype=np.float32)
        if "norm" in info.name:
            values = 1 + np.float32(0.1) * values
        elif info.name.endswith("ffn_gate_inp.bias"):
            values *= np.float32(0.05)
            if not even:
                values[random.permutation(EXPERTS)[:FAVOURED]] += np.float32(BIAS)
        else:
            values *= np.float32(0.02)
        return values.astype("<f4").view(np.uint8).reshape(-1)
    return blocks.reshape(-1)


def make(path: Path, even: bool) -> None:
    infos = laid_out(tensors())
    begin = head(metadata(), infos)
    there = path.exists()
    with path.open("r+b" if there else "wb") as file:
        file.write(begin)
        for number, info in enumerate(infos):
            if there and not info.name.endswith("ffn_gate_inp.bias"):
                continue
            random = np.random.Generator(np.random.SFC64([1, number]))
            file.seek(len(begin) + info.offset)
            left = info.nbytes
            while left:
                chunk = data(info, random, even)[:left]
                file.write(chunk.data)
                left -= len(chunk)
        file.truncate(-(-(len(begin) + infos[-1].offset + infos[-1].nbytes) // 32) * 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--even", action="store_true")
    args = parser.parse_args()
    make(args.path, args.even)


if __name__ == "__main__":
    main()
