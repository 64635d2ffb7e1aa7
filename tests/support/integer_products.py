"""Products of quantized weights as MODEL.md defines them ("Numerics", D16), in NumPy, block by block.

Exact whole numbers, float32 for the rest: what every instruction set must give to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOP = 32639
SMALL = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4")
IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])  # doubled


@dataclass
class Parts:
    """What blocks (n,) of one format hold: whole codes (n, cols), without bias; scales and minima as float32."""

    codes: np.ndarray
    scale: (
        np.ndarray
    )  # (n, subs): of each run of columns, whole numbers in float32; (n, 1): d itself where a block is 32
    min: np.ndarray | None
    d: np.ndarray | None = None  # (n,) of blocks of 256
    dmin: np.ndarray | None = None


def fma(a, b, c):
    """a * b + c, rounded once to float32: to odd in float64 first, so that the second rounding spoils nothing."""
    a, b, c = (np.asarray(v, np.float32).astype(np.float64) for v in (a, b, c))
    with np.errstate(all="ignore"):
        p = a * b
        s = np.atleast_1d(p + c)
        t = s - p
        lost = (p - (s - t)) + (c - t)
        bits = s.view(np.int64).copy()
        odd = np.isfinite(s) & (lost != 0) & (bits & 1 == 0)
        bits += np.where(odd, np.where((lost > 0) == (s > 0), 1, -1), 0)
        return bits.view(np.float64).astype(np.float32).reshape(np.shape(p + c))


def quantize_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x (T, C) float32 -> whole X (T, C / 32, 32), s (T, C / 32)."""
    blocks = np.ascontiguousarray(x, np.float32).reshape(len(x), -1, 32)
    top = (blocks.view(np.int32) & 0x7FFFFFFF).max(-1)
    a = top.astype(np.int32).view(np.float32)
    with np.errstate(all="ignore"):
        used = (top < 0x7F800000) & (a >= np.float32(2.0**-90))
        s = np.where(used, a / np.float32(TOP), np.float32(0))
        inverse = np.where(used, np.float32(TOP) / a, np.float32(0))
        whole = np.rint(np.where(used[..., None], blocks, np.float32(0)) * inverse[..., None]).astype(np.int64)
    return whole, np.where(top >= 0x7F800000, np.float32(np.nan), s).astype(np.float32)


def half(blocks: np.ndarray, at: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)[:, 0].astype(np.float32)


def nibbles(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return b & 15, b >> 4


def parts(dtype: str, raw: np.ndarray) -> Parts:
    """raw (n, bytes of a block) uint8."""
    b = raw.astype(np.int64)
    n = len(b)
    if dtype in ("Q4_0", "Q4_1", "IQ4_NL", "MXFP4", "Q5_0", "Q5_1"):
        at = {"Q4_0": 2, "IQ4_NL": 2, "MXFP4": 1, "Q4_1": 4, "Q5_0": 6, "Q5_1": 8}[dtype]
        codes = np.concatenate(nibbles(b[:, at : at + 16]), 1)
        if dtype[1] == "5":
            bits = np.unpackbits(raw[:, at - 4 : at], axis=1, bitorder="little").astype(np.int64)
            codes = codes | bits << 4
        if dtype == "MXFP4":
            scale = np.ldexp(np.float64(1), b[:, 0] - 128).astype(np.float32)
            return Parts(E2M1[codes], scale[:, None], None)
        if dtype == "IQ4_NL":
            return Parts(IQ4[codes], half(raw, 0)[:, None], None)
        if dtype[-1] == "1":
            return Parts(codes, half(raw, 0)[:, None], half(raw, 2)[:, None])
        return Parts(codes - (8 if dtype == "Q4_0" else 16), half(raw, 0)[:, None], None)
    if dtype == "Q8_0":
        return Parts(raw[:, 2:].view(np.int8).astype(np.int64), half(raw, 0)[:, None], None)
    if dtype == "Q2_K":
        q = b[:, 16:80].reshape(n, 2, 1, 32) >> np.array([0, 2, 4, 6]).reshape(1, 1, 4, 1) & 3
        low, high = nibbles(b[:, :16])
        return Parts(q.reshape(n, 256), low, high, half(raw, 80), half(raw, 82))
    if dtype == "Q3_K":
        q = b[:, 32:96].reshape(n, 2, 1, 32) >> np.array([0, 2, 4, 6]).reshape(1, 1, 4, 1) & 3
        h = b[:, :32].reshape(n, 1, 1, 32) >> np.arange(8).reshape(1, 2, 4, 1) & 1
        low = np.concatenate(nibbles(b[:, 96:104]), 1)
        top = np.concatenate([b[:, 104:108] >> s & 3 for s in (0, 2, 4, 6)], 1)
        return Parts((q + 4 * h - 4).reshape(n, 256), (low | top << 4) - 32, None, half(raw, 108))
    if dtype in ("Q4_K", "Q5_K"):
        s = b[:, 4:16]
        scale = np.concatenate([s[:, :4] & 63, (s[:, 8:] & 15) | s[:, :4] >> 6 << 4], 1)
        least = np.concatenate([s[:, 4:8] & 63, s[:, 8:] >> 4 | s[:, 4:8] >> 6 << 4], 1)
        q = np.stack(nibbles(b[:, -128:].reshape(n, 4, 32)), 2).reshape(n, 8, 32)
        if dtype == "Q5_K":
            q = q | (b[:, 16:48].reshape(n, 1, 32) >> np.arange(8).reshape(1, 8, 1) & 1) << 4
        return Parts(q.reshape(n, 256), scale, least, half(raw, 0), half(raw, 2))
    if dtype == "Q6_K":
        low = np.stack(nibbles(b[:, :128].reshape(n, 2, 2, 32)), 2).reshape(n, 2, 4, 32)
        top = b[:, 128:192].reshape(n, 2, 1, 32) >> np.array([0, 2, 4, 6]).reshape(1, 1, 4, 1) & 3
        scale = raw[:, 192:208].view(np.int8).astype(np.int64)
        return Parts(((low | top << 4) - 32).reshape(n, 256), scale, None, half(raw, 208))
    assert dtype == "IQ4_XS"
    top = b[:, 2] | b[:, 3] << 8
    scale = np.stack([(b[:, 4 + j // 2] >> 4 * (j % 2) & 15) | (top >> 2 * j & 3) << 4 for j in range(8)], 1) - 32
    q = np.stack(nibbles(b[:, 8:].reshape(n, 8, 16)), 2).reshape(n, 256)
    return Parts(IQ4[q], scale, None, half(raw, 0))


def product(dtype: str, raw: np.ndarray, rows: int, cols: int, x: np.ndarray) -> np.ndarray:
    """x (T, cols) times weights (rows, cols) stored in `raw`, transposed: (T, rows) float32."""
    whole, s = quantize_activations(x)
    width = 32 if dtype in SMALL else 256
    blocks = np.asarray(raw, np.uint8).reshape(rows, cols // width, -1)
    acc = np.zeros((len(x), rows), np.float32)
    with np.errstate(all="ignore"):
        for b in range(cols // width):
            acc = one_block(parts(dtype, np.ascontiguousarray(blocks[:, b])), whole, s, b * width // 32, acc)
    return acc


def one_block(p: Parts, whole: np.ndarray, s: np.ndarray, first: int, acc: np.ndarray) -> np.ndarray:
    if p.d is None:
        x, scale = whole[:, first], s[:, first, None]
        acc = fma((x @ p.codes.T).astype(np.float32), p.scale.T * scale, acc)
        return acc if p.min is None else fma(p.min.T, x.sum(-1)[:, None].astype(np.float32) * scale, acc)
    subs = p.scale.shape[1]
    cols = 256 // subs
    codes = p.codes.reshape(-1, subs, cols)
    x = whole[:, first : first + 8].reshape(len(whole), subs, cols)
    blk = mb = np.zeros_like(acc)
    for j in range(subs):
        scale = s[:, first + j * cols // 32, None]
        blk = fma((x[:, j] @ codes[:, j].T).astype(np.float32) * scale, p.scale[:, j].astype(np.float32), blk)
        if p.min is not None:
            mb = fma(p.min[:, j].astype(np.float32), x[:, j].sum(-1)[:, None].astype(np.float32) * scale, mb)
    acc = fma(blk, p.d, acc)
    return acc if p.min is None else fma(mb, -p.dmin, acc)
