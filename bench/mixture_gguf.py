#!/usr/bin/env python3
"""A mixture of noise in its true shape, in one GGUF file that pyllama and llama.cpp read.

usage: mixture_gguf.py SHAPE DST.gguf [--even]   seeded; by default the routers favour some experts
       SHAPE: gpt-oss-20b, experts in MXFP4 and the rest in Q8_0 as the published file has them (12 GB)
              qwen3-30b-a3b, in Q4_K, its head in Q6_K (17 GB)
       on a file that is there, what the routers' favour stands in alone is written anew

13 % of the experts get about 60 % of the tokens: of gpt-oss by a bias of the routers, of Qwen3, which has none, by rows
of theirs that are longer.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyllama.quantizing.gguf_writer import Info, Value, encoded, head, laid_out

CHUNK = 64 << 20
#: Of the deviation of 0.02: what a token is must outweigh what attention adds, which is much the same for neighbours.
#: (Else 99 % of the experts a token goes to are those of the token before, whatever the routers.)
EMBEDDING, ATTENTION = 50, 0.1
BLOCK = {"MXFP4": 17, "Q8_0": 34, "Q4_K": 144, "Q6_K": 210}  # bytes
Entry = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True)
class Shape:
    """favoured: how many experts; favour: what is added to their biases, or what their routers' rows are multiplied
    with, if there are no biases. The others' logits deviate by about 1."""

    architecture: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    chosen: int
    vocab: int
    dtype: str  # of the experts,
    other: str  # of the other matrices,
    last: str  # and of the head
    biases: bool
    favoured: int
    favour: float
    rope: float
    eps: float
    tokenizer: str
    bos: int
    eos: int
    more: dict[str, Value]

    @property
    def favouring(self) -> str:
        return "ffn_gate_inp.bias" if self.biases else "ffn_gate_inp.weight"


SHAPES = {
    "gpt-oss-20b": Shape(
        "gpt-oss", 24, 2880, 2880, 64, 8, 64, 32, 4, 201088, "MXFP4", "Q8_0", "Q8_0", True, 4, 1.93, 150000, 1e-5,
        "gpt-4o", 199998, 200002, {
            "context_length": np.uint32(131072), "feed_forward_length": np.uint32(2880),
            "attention.sliding_window": np.uint32(128), "rope.scaling.type": "yarn",
            "rope.scaling.factor": np.float32(32), "rope.scaling.original_context_length": np.uint32(4096),
        },
    ),
    "qwen3-30b-a3b": Shape(
        "qwen3moe", 48, 2048, 768, 32, 4, 128, 128, 8, 151936, "Q4_K", "Q4_K", "Q6_K", False, 17, 3.3, 1e6, 1e-6,
        "qwen2", 151643, 151645, {"context_length": np.uint32(40960), "feed_forward_length": np.uint32(6144)},
    ),
}  # fmt: skip


def matrix(name: str, dtype: str, shape: tuple[int, ...], bias: bool) -> Iterator[Entry]:
    yield f"{name}.weight", dtype, shape
    if bias:
        yield f"{name}.bias", "F32", shape[:-1]


def tensors(of: Shape) -> list[Entry]:
    found: list[Entry] = [("token_embd.weight", of.other, (of.vocab, of.hidden))]
    q, kv = of.heads * of.head_dim, of.kv_heads * of.head_dim
    for i in range(of.layers):
        layer: list[Entry] = [("attn_norm.weight", "F32", (of.hidden,))]
        for name, rows in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
            layer += matrix(name, of.other, (rows, of.hidden), of.biases)
        layer += matrix("attn_output", of.other, (of.hidden, q), of.biases)
        if of.architecture == "gpt-oss":
            layer += [("attn_sinks.weight", "F32", (of.heads,)), ("post_attention_norm.weight", "F32", (of.hidden,))]
        else:
            layer += [(f"attn_{name}_norm.weight", "F32", (of.head_dim,)) for name in "qk"]
            layer.append(("ffn_norm.weight", "F32", (of.hidden,)))
        layer += matrix("ffn_gate_inp", "F32", (of.experts, of.hidden), of.biases)
        for name, rows, cols in (
            ("gate", of.inner, of.hidden),
            ("up", of.inner, of.hidden),
            ("down", of.hidden, of.inner),
        ):
            layer += matrix(f"ffn_{name}_exps", of.dtype, (of.experts, rows, cols), of.biases)
        found += [(f"blk.{i}.{name}", dtype, shape) for name, dtype, shape in layer]
    return [*found, ("output_norm.weight", "F32", (of.hidden,)), ("output.weight", of.last, (of.vocab, of.hidden))]


def metadata(of: Shape) -> dict[str, bytes]:
    words = [b"aaa", b"bbb", b"aaabbb", *(f"<{i}>".encode() for i in range(3, of.vocab))]
    values: dict[str, Value] = {
        "block_count": np.uint32(of.layers), "embedding_length": np.uint32(of.hidden),
        "vocab_size": np.uint32(of.vocab),
        "attention.head_count": np.uint32(of.heads), "attention.head_count_kv": np.uint32(of.kv_heads),
        "attention.key_length": np.uint32(of.head_dim), "attention.value_length": np.uint32(of.head_dim),
        "attention.layer_norm_rms_epsilon": np.float32(of.eps), "rope.freq_base": np.float32(of.rope),
        "expert_count": np.uint32(of.experts), "expert_used_count": np.uint32(of.chosen),
        "expert_feed_forward_length": np.uint32(of.inner), **of.more,
    }  # fmt: skip
    tokenizer: dict[str, Value] = {
        "model": "gpt2", "pre": of.tokenizer, "tokens": words, "token_type": np.ones(of.vocab, np.int32),
        "merges": [b"aaa bbb"], "bos_token_id": np.uint32(of.bos), "eos_token_id": np.uint32(of.eos),
    }  # fmt: skip
    every: dict[str, Value] = {"general.architecture": of.architecture, "general.name": "of noise."}
    every |= {f"{of.architecture}.{key}": value for key, value in values.items()}
    every |= {f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()}
    return {key: encoded(value) for key, value in every.items()}


def blocks(dtype: str, count: int, random: np.random.Generator, scale: float) -> np.ndarray:
    """Of weights with mean 0 that deviate by 0.02 * scale, about; (count, bytes of a block)."""
    found = np.frombuffer(random.bytes(count * BLOCK[dtype]), np.uint8).reshape(count, -1).copy()
    if dtype == "MXFP4":
        found[:, 0] = 120
    elif dtype == "Q8_0":
        found[:, :2] = halves(scale * 0.0004)
        codes = np.clip(random.standard_normal((count, 32), np.float32) * 45, -127, 127)
        found[:, 2:] = codes.astype(np.int8).view(np.uint8)
    elif dtype == "Q4_K":  # d * scale * code - dmin * least, and here least equals scale: codes around 7.5
        found[:, :4] = halves(scale * 0.00012, 7.5 * float(np.float16(scale * 0.00012)))
        found[:, 8:12] = found[:, 4:8]
        found[:, 12:16] = (found[:, 12:16] & 15) * 17
    else:  # Q6_K: d * scale * (code - 32)
        found[:, 192:208] = np.where(found[:, 192:208] & 1, np.uint8(16), np.uint8(256 - 16))
        found[:, 208:] = halves(scale * 0.00007)
    return found


def halves(*values: float) -> np.ndarray:
    return np.array(values, np.float16).view(np.uint8)


def data(of: Shape, info: Info, random: np.random.Generator, left: int, even: bool) -> np.ndarray:
    """Bytes of some rows of a tensor: all of a small one, CHUNK bytes at most of a large one."""
    if info.dtype != "F32":
        scale = {"token_embd": EMBEDDING, "attn_output": ATTENTION}.get(info.name.split(".")[-2], 1)
        return blocks(info.dtype, min(left, CHUNK) // BLOCK[info.dtype], random, scale).reshape(-1)
    values = random.standard_normal(info.shape, dtype=np.float32)
    favoured = random.permutation(of.experts)[: of.favoured]
    if "norm" in info.name:
        values = 1 + np.float32(0.1) * values
    elif info.name.endswith("ffn_gate_inp.bias"):
        values *= np.float32(0.05)
        values[favoured] += np.float32(0 if even else of.favour)
    else:
        values *= np.float32(0.02)
        if info.name.endswith(of.favouring) and not even:
            values[favoured] *= np.float32(of.favour)
    return values.astype("<f4").view(np.uint8).reshape(-1)


def make(of: Shape, path: Path, even: bool) -> None:
    infos = laid_out(tensors(of))
    begin = head(metadata(of), infos)
    there = path.exists()
    with path.open("r+b" if there else "wb") as file:
        file.write(begin)
        for number, info in enumerate(infos):
            if there and not info.name.endswith(of.favouring):
                continue
            random = np.random.Generator(np.random.SFC64([1, number]))
            file.seek(len(begin) + info.offset)
            left = info.nbytes
            while left:
                chunk = data(of, info, random, left, even)
                file.write(chunk.data)
                left -= len(chunk)
        file.truncate(-(-(len(begin) + infos[-1].offset + infos[-1].nbytes) // 32) * 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("path", type=Path)
    parser.add_argument("--even", action="store_true")
    args = parser.parse_args()
    make(SHAPES[args.shape], args.path, args.even)


if __name__ == "__main__":
    main()
