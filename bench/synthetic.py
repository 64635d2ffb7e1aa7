#!/usr/bin/env python3
"""A shape's name and a seed into a model on disk: Hugging Face folder and GGUF file with the same weights.

usage: synthetic.py SHAPE DST [--seed N] [--format hf,gguf] [--layers N] [--shard 5e9]
       synthetic.py 1.1b models/1.1b

Writes DST/ (bfloat16 safetensors, config.json, tokenizer.model) and DST.gguf (BF16, norms in F32). Speed
depends on shapes and on how exponents are spread, not on what a model has learnt: every weight is normal,
with a standard deviation near 0.02 that differs by tensor, rounded to bfloat16. Its text is noise.

Refuses to know pyllama: the files are what other people's writers would have made.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

CHUNK_WEIGHTS = 1 << 20  # a float32 chunk of this many weights stays in the last-level cache


@dataclass(frozen=True, slots=True)
class Shape:
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


SHAPES = {
    "135m": Shape(576, 1536, 30, 9, 3, 49152, 1e5, 8192, True),  # SmolLM2-135M
    "narrow": Shape(32, 64, 30, 2, 1, 320, 1e5, 8192, True),  # as many layers, next to no arithmetic
    "1.1b": Shape(2048, 5632, 22, 32, 4, 32000),  # TinyLlama-1.1B
    "7b": Shape(4096, 11008, 32, 32, 32, 32000, 1e4, 4096),  # Llama-2-7B
    "8b": Shape(4096, 14336, 32, 32, 8, 128256, 5e5, 8192),  # Meta-Llama-3-8B
    "13b": Shape(5120, 13824, 40, 40, 40, 32000, 1e4, 4096),  # Llama-2-13B
    "70b": Shape(8192, 28672, 80, 64, 8, 32000, 1e4, 4096),  # Llama-2-70B
}


@dataclass(frozen=True, slots=True)
class TensorShape:
    name: str  # Hugging Face
    gguf_name: str
    rows: int  # 1 row for a norm
    cols: int

    @property
    def is_norm(self) -> bool:
        return "norm" in self.name

    @property
    def is_rotated(self) -> bool:
        return "q_proj" in self.name or "k_proj" in self.name

    @property
    def dims(self) -> list[int]:
        return [self.cols] if self.is_norm else [self.rows, self.cols]


def tensors_of(shape: Shape) -> list[TensorShape]:
    """Every tensor in the order a pass over the model reads it."""
    hidden, inter = shape.hidden_size, shape.intermediate_size
    queries = shape.num_attention_heads * shape.head_dim
    keys = shape.num_key_value_heads * shape.head_dim
    tensors = [TensorShape("model.embed_tokens.weight", "token_embd.weight", shape.vocab_size, hidden)]
    for layer in range(shape.num_hidden_layers):
        for name, gguf_name, rows, cols in [
            ("input_layernorm", "attn_norm", 1, hidden),
            ("self_attn.q_proj", "attn_q", queries, hidden),
            ("self_attn.k_proj", "attn_k", keys, hidden),
            ("self_attn.v_proj", "attn_v", keys, hidden),
            ("self_attn.o_proj", "attn_output", hidden, queries),
            ("post_attention_layernorm", "ffn_norm", 1, hidden),
            ("mlp.gate_proj", "ffn_gate", inter, hidden),
            ("mlp.up_proj", "ffn_up", inter, hidden),
            ("mlp.down_proj", "ffn_down", hidden, inter),
        ]:
            gguf_name = f"blk.{layer}.{gguf_name}.weight"
            tensors.append(TensorShape(f"model.layers.{layer}.{name}.weight", gguf_name, rows, cols))
    tensors.append(TensorShape("model.norm.weight", "output_norm.weight", 1, hidden))
    if not shape.tie_word_embeddings:
        tensors.append(TensorShape("lm_head.weight", "output.weight", shape.vocab_size, hidden))
    return tensors


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 to bfloat16 bit patterns, to nearest, ties to even; x (float32, contiguous) is overwritten."""
    bits = x.view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits >> 16).astype(np.uint16)


def weights(tensor: TensorShape, seed: int, index: int, head_dim: int) -> Iterator[np.ndarray]:
    """Chunks of whole heads, so that they can be reordered: bfloat16 bit patterns, (rows, cols)."""
    random = np.random.Generator(np.random.SFC64([seed, index]))
    centre, spread = (1.0, 0.1) if tensor.is_norm else (0.0, 0.02 * np.exp(0.3 * random.standard_normal()))
    step = max(1, CHUNK_WEIGHTS // (tensor.cols * head_dim)) * head_dim
    buffer = np.empty(step * tensor.cols, np.float32)
    for row in range(0, tensor.rows, step):
        chunk = buffer[: min(step, tensor.rows - row) * tensor.cols]
        random.standard_normal(out=chunk, dtype=np.float32)
        chunk *= np.float32(spread)
        chunk += np.float32(centre)
        yield to_bfloat16(chunk).reshape(-1, tensor.cols)


def interleaved(chunk: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of whole heads, from Hugging Face's half-split order to the interleaved one of GGUF's llama."""
    return np.ascontiguousarray(chunk.reshape(-1, 2, head_dim // 2, chunk.shape[1]).swapaxes(1, 2))


# -- vocabulary: real enough to encode any text and to print something when decoded

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def vocabulary(size: int) -> list[tuple[str, float, int]]:
    """(piece, score, type): three specials, 256 bytes, printable ASCII, made-up words; size at least 260."""
    pieces = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    pieces += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    plain = ["\u2581"] + [chr(code) for code in range(33, 127)]
    syllables = [consonant + vowel for consonant in "bcdfghjklmnprstvwxyz" for vowel in "aeiou"]
    for number in range(size - len(pieces) - len(plain)):
        first, second, third = number // 10000, number // 100 % 100, number % 100
        plain.append("\u2581" + syllables[first] + syllables[second] + syllables[third])
    return pieces + [(piece, -float(rank), NORMAL) for rank, piece in enumerate(plain)][: size - len(pieces)]


def protobuf_field(number: int, value: bytes | str | float) -> bytes:
    def varint(n: int) -> bytes:
        out = b""
        while n > 0x7F:
            out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
        return out + bytes([n])

    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value & 0xFFFFFFFFFFFFFFFF)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def sentencepiece_model(size: int) -> bytes:
    """The vocabulary as a SentencePiece BPE model (sentencepiece_model.proto: ModelProto)."""
    out = b"".join(
        protobuf_field(1, protobuf_field(1, piece) + protobuf_field(2, score) + protobuf_field(3, kind))
        for piece, score, kind in vocabulary(size)
    )
    # model_type BPE, vocab_size, byte_fallback, unk_id, bos_id, eos_id, pad_id
    trainer = [(3, 2), (4, size), (35, 1), (40, 0), (41, 1), (42, 2), (43, -1)]
    # name, add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces
    normalizer = [(1, "identity"), (3, 1), (4, 0), (5, 1)]
    for number, fields in [(2, trainer), (3, normalizer)]:
        out += protobuf_field(number, b"".join(protobuf_field(*field) for field in fields))
    return out


# -- Hugging Face folder


def huggingface_config(shape: Shape) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "vocab_size": shape.vocab_size,
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": shape.max_position_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


class HuggingFaceFolder:
    """Takes the tensors in order, a chunk at a time; cuts shards between tensors."""

    def __init__(self, path: Path, shape: Shape, tensors: list[TensorShape], shard_nbytes: float):
        self.path, self.file, self.shards, filled = path, None, [[]], 0
        for tensor in tensors:
            nbytes = 2 * tensor.rows * tensor.cols
            if filled and filled + nbytes > shard_nbytes:
                self.shards.append([])
                filled = 0
            self.shards[-1].append(tensor)
            filled += nbytes
        path.mkdir(parents=True)
        for name, content in [
            ("config.json", huggingface_config(shape)),
            ("generation_config.json", {"bos_token_id": 1, "eos_token_id": 2}),
            (
                "tokenizer_config.json",
                {
                    "add_bos_token": True,
                    "add_eos_token": False,
                    "bos_token": "<s>",
                    "eos_token": "</s>",
                    "unk_token": "<unk>",
                },
            ),
        ]:
            (path / name).write_text(json.dumps(content, indent=2) + "\n")
        (path / "tokenizer.model").write_bytes(sentencepiece_model(shape.vocab_size))
        if len(self.shards) > 1:
            files = {t.name: self.shard_name(i) for i, shard in enumerate(self.shards) for t in shard}
            total = sum(2 * t.rows * t.cols for t in tensors)
            (path / "model.safetensors.index.json").write_text(
                json.dumps({"metadata": {"total_size": total}, "weight_map": files}, indent=2) + "\n"
            )

    def shard_name(self, number: int) -> str:
        count = len(self.shards)
        return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"

    def begin(self, tensor: TensorShape) -> None:
        for number, shard in enumerate(self.shards):
            if shard[0] is tensor:
                self.close()
                self.file = (self.path / self.shard_name(number)).open("wb")
                self.file.write(self.header(shard))

    @staticmethod
    def header(shard: list[TensorShape]) -> bytes:
        entries, offset = {"__metadata__": {"format": "pt"}}, 0
        for t in shard:
            end = offset + 2 * t.rows * t.cols
            entries[t.name] = {"dtype": "BF16", "shape": t.dims, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    def write(self, tensor: TensorShape, chunk: np.ndarray) -> None:
        self.file.write(chunk.data)

    def end(self, tensor: TensorShape) -> None:
        pass

    def close(self) -> None:
        if self.file:
            self.file.close()


# -- GGUF file

GGUF_ALIGNMENT = 32
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # value types
GGUF_F32, GGUF_BF16 = 0, 30  # tensor types


def gguf_string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf_header(shape: Shape, tensors: list[TensorShape], name: str) -> bytes:
    def value(key: str, kind: int, content: str | float | bool) -> bytes:
        scalar = {UINT32: "<I", FLOAT32: "<f", BOOL: "<?"}
        raw = gguf_string(content) if kind == STRING else struct.pack(scalar[kind], content)
        return gguf_string(key) + struct.pack("<I", kind) + raw

    def array(key: str, kind: int, items: list) -> bytes:
        head = gguf_string(key) + struct.pack("<IIQ", ARRAY, kind, len(items))
        if kind == STRING:
            return head + b"".join(gguf_string(item) for item in items)
        return head + struct.pack(f"<{len(items)}{'f' if kind == FLOAT32 else 'i'}", *items)

    pieces, scores, kinds = zip(*vocabulary(shape.vocab_size), strict=True)
    entries = [
        value("general.architecture", STRING, "llama"),
        value("general.name", STRING, name),
        value("general.alignment", UINT32, GGUF_ALIGNMENT),
        value("general.file_type", UINT32, 32),  # mostly BF16
        value("llama.context_length", UINT32, shape.max_position_embeddings),
        value("llama.embedding_length", UINT32, shape.hidden_size),
        value("llama.block_count", UINT32, shape.num_hidden_layers),
        value("llama.feed_forward_length", UINT32, shape.intermediate_size),
        value("llama.attention.head_count", UINT32, shape.num_attention_heads),
        value("llama.attention.head_count_kv", UINT32, shape.num_key_value_heads),
        value("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        value("llama.rope.dimension_count", UINT32, shape.head_dim),
        value("llama.rope.freq_base", FLOAT32, shape.rope_theta),
        value("llama.vocab_size", UINT32, shape.vocab_size),
        value("tokenizer.ggml.model", STRING, "llama"),
        array("tokenizer.ggml.tokens", STRING, list(pieces)),
        array("tokenizer.ggml.scores", FLOAT32, list(scores)),
        array("tokenizer.ggml.token_type", INT32, list(kinds)),
        value("tokenizer.ggml.bos_token_id", UINT32, 1),
        value("tokenizer.ggml.eos_token_id", UINT32, 2),
        value("tokenizer.ggml.unknown_token_id", UINT32, 0),
        value("tokenizer.ggml.add_bos_token", BOOL, True),
    ]
    out = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(entries)), *entries]
    offset = 0
    for t in tensors:
        dims = t.dims[::-1]
        out.append(
            gguf_string(t.gguf_name)
            + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
            + struct.pack("<IQ", GGUF_F32 if t.is_norm else GGUF_BF16, offset)
        )
        offset += gguf_nbytes(t) + -gguf_nbytes(t) % GGUF_ALIGNMENT
    header = b"".join(out)
    return header + b"\0" * (-len(header) % GGUF_ALIGNMENT)


def gguf_nbytes(tensor: TensorShape) -> int:
    return tensor.rows * tensor.cols * (4 if tensor.is_norm else 2)


class GgufFile:
    """Takes the tensors in order, a chunk at a time."""

    def __init__(self, path: Path, shape: Shape, tensors: list[TensorShape]):
        self.file: BinaryIO = path.open("wb")
        self.head_dim = shape.head_dim
        self.file.write(gguf_header(shape, tensors, path.name.split(".gguf")[0]))

    def begin(self, tensor: TensorShape) -> None:
        pass

    def write(self, tensor: TensorShape, chunk: np.ndarray) -> None:
        if tensor.is_norm:
            chunk = chunk.astype(np.uint32) << 16  # the float32 of the same value
        elif tensor.is_rotated:
            chunk = interleaved(chunk, self.head_dim)
        self.file.write(chunk.data)

    def end(self, tensor: TensorShape) -> None:
        self.file.write(b"\0" * (-gguf_nbytes(tensor) % GGUF_ALIGNMENT))

    def close(self) -> None:
        self.file.close()


# -- both


def make(
    shape: Shape,
    destination: Path,
    *,
    seed: int = 1,
    formats: tuple[str, ...] = ("hf", "gguf"),
    shard_nbytes: float = 5e9,
) -> dict[str, Path]:
    """Write what of DST/ ("hf") and DST.gguf ("gguf") is asked for and not there yet; the paths by format.

    Nothing half-written is found under the final names. Peak memory is a few chunks of a million weights.
    """
    final = {"hf": destination, "gguf": destination.with_name(destination.name + ".gguf")}
    missing = [f for f in formats if not final[f].exists()]
    if missing:
        tensors = tensors_of(shape)
        total = sum(t.rows * t.cols for t in tensors)
        destination.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(destination.parent).free
        needed = 2 * total * len(missing) * 1.01
        if free < needed:
            raise SystemExit(f"{destination}: needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} free")
        partial = {f: final[f].with_name(final[f].name + ".partial") for f in missing}
        discard(partial)
        try:
            fill(shape, tensors, partial, seed, shard_nbytes, f"{destination.name}: ")
            for f in missing:
                partial[f].rename(final[f])
        finally:
            discard(partial)
    return {f: final[f] for f in formats}


def fill(
    shape: Shape, tensors: list[TensorShape], paths: dict[str, Path], seed: int, shard_nbytes: float, label: str
) -> None:
    writers: list[HuggingFaceFolder | GgufFile] = []
    total, done, started = sum(t.rows * t.cols for t in tensors), 0, time.monotonic()
    try:
        if "hf" in paths:
            writers.append(HuggingFaceFolder(paths["hf"], shape, tensors, shard_nbytes))
        if "gguf" in paths:
            writers.append(GgufFile(paths["gguf"], shape, tensors))
        for index, tensor in enumerate(tensors):
            for writer in writers:
                writer.begin(tensor)
            for chunk in weights(tensor, seed, index, shape.head_dim):
                for writer in writers:
                    writer.write(tensor, chunk)
                done += chunk.size
                progress(label, done, total, started)
            for writer in writers:
                writer.end(tensor)
    finally:
        for writer in writers:
            writer.close()
        if sys.stderr.isatty():
            print(file=sys.stderr)


def discard(paths: dict[str, Path]) -> None:
    for path in paths.values():
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def progress(label: str, done: int, total: int, started: float) -> None:
    if sys.stderr.isatty():
        elapsed = time.monotonic() - started
        left = elapsed / done * (total - done)
        print(
            f"\r{label}{done / total:4.0%} of {total / 1e9:.2f}G weights, {done / elapsed / 1e6:.0f}M/s, "
            f"{left:.0f} s left ",
            end="",
            file=sys.stderr,
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--format", default="hf,gguf", help="hf, gguf or both (default)")
    parser.add_argument("--layers", type=int, help="another number of layers than the shape has")
    parser.add_argument("--shard", type=float, default=5e9, help="most bytes of a safetensors file (5e9)")
    args = parser.parse_args()
    formats = tuple(args.format.split(","))
    if not set(formats) <= {"hf", "gguf"}:
        parser.error(f"--format {args.format}: expected hf, gguf or hf,gguf")
    shape = SHAPES[args.shape]
    if args.layers is not None:
        if args.layers < 1:
            parser.error(f"--layers {args.layers}: expected 1 or more")
        shape = replace(shape, num_hidden_layers=args.layers)
    paths = make(shape, args.destination, seed=args.seed, formats=formats, shard_nbytes=args.shard)
    print(*paths.values(), sep="\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"synthetic.py: {error.strerror}: {os.fspath(error.filename) if error.filename else ''}")
