#!/usr/bin/env python3
"""A GGUF file of a mixture, and the experts that each token goes to in each layer: here and in llama.cpp.

    python tools/compare_routing.py FILE.gguf --peer PYTHON [--tokens 33] [--memory 8G] [--share 0.13]

PYTHON is one that has xllamacpp, whose library is asked for the routers' results by its callback for every tensor it
evaluates. Both engines get the same seeded tokens, one a pass, keys and values in float32. Prints one line of JSON:

    same         of all choices (a token's experts in a layer), the share that is the same set in both
    experts      of all experts chosen, the share that the other engine chose for the same token and layer too
    first        the same two for the layers that come before a token's first difference: what rounding alone does
    close        of the sets that differ there, the largest distance between the last expert chosen and the first that
                 was not, by our routers' logits, and beside it the distance between both engines' logits
    favoured     of all choices, those of the most chosen `share` of each layer's experts, as each engine counts
    top          of those experts, how many are the same in both
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOM = 1024  # bytes: more than any structure of parameters has; what is behind it is not looked at
F16, F32 = 1, 0  # ggml's numbers


def tokens(vocab: int, count: int) -> list[int]:
    return np.random.default_rng(5).integers(3, vocab, count).tolist()


class _Parameters(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint8 * ROOM)]


class _Batch(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int32), *((name, ctypes.c_void_p) for name in "tepnsl")]


def llama_cpp(path: str, ids: list[int], out: str) -> None:
    """Writes (tokens, layers, experts) logits and (tokens, layers, chosen) experts; in a process of its own."""
    import xllamacpp

    library = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))
    for name in ("llama_model_load_from_file", "llama_init_from_model"):
        getattr(library, name).restype = ctypes.c_void_p
    for name in ("llama_model_default_params", "llama_context_default_params"):
        getattr(library, name).restype = _Parameters
    library.ggml_get_name.restype, library.ggml_nbytes.restype = ctypes.c_char_p, ctypes.c_size_t
    library.llama_batch_get_one.restype = _Batch
    silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    library.llama_log_set(silent, None)
    library.llama_backend_init()
    rows: list[dict[str, np.ndarray]] = []

    def seen(tensor: int, asking: bool, _: Any) -> bool:
        name = library.ggml_get_name(ctypes.c_void_p(tensor)).decode()
        kind = name.partition("-")[0]
        if kind not in ("ffn_moe_logits", "ffn_moe_probs", "ffn_moe_topk"):
            return not asking  # True, after all: go on
        if not asking:
            nbytes = library.ggml_nbytes(ctypes.c_void_p(tensor))
            values = np.empty(nbytes // 4, np.int32 if kind == "ffn_moe_topk" else np.float32)
            library.ggml_backend_tensor_get(
                ctypes.c_void_p(tensor),
                ctypes.c_void_p(values.ctypes.data),
                ctypes.c_size_t(0),
                ctypes.c_size_t(nbytes),
            )
            rows[-1][name] = values
        return True

    callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)(seen)
    of_model = library.llama_model_default_params()
    whole = bytes(of_model.bytes)
    # The one switch that is on lets weights be put into another order in memory: then they would not be what is mapped.
    of_model.bytes[whole.index(1, 64)] = 0
    of_context = library.llama_context_default_params()
    words = np.frombuffer(of_context.bytes, np.uint32).copy()
    kinds = next(i for i in range(8, 60, 2) if not words[i - 4 : i].any() and words[i] == words[i + 1] == F16)
    words[0], words[kinds : kinds + 2] = 256, F32
    words[kinds - 4 : kinds - 2] = np.array([ctypes.cast(callback, ctypes.c_void_p).value], np.uint64).view(np.uint32)
    of_context.bytes[:] = words.tobytes()
    model = library.llama_model_load_from_file(path.encode(), of_model)
    context = library.llama_init_from_model(ctypes.c_void_p(model), of_context)
    if not context:
        raise SystemExit("compare_routing.py: llama.cpp does not open it")
    for token in ids:
        rows.append({})
        one = (ctypes.c_int32 * 1)(token)
        if library.llama_decode(ctypes.c_void_p(context), library.llama_batch_get_one(one, 1)):
            raise SystemExit("compare_routing.py: llama.cpp does not decode it")
    layers = sorted(int(name.rpartition("-")[2]) for name in rows[0] if "topk" in name)
    logits, probs, chosen = (
        np.array([[row[f"ffn_moe_{of}-{layer}"] for layer in layers] for row in rows])
        for of in ("logits", "probs", "topk")
    )
    if np.abs(probs.sum(axis=-1) - 1).max() > 0.01:  # no softmax of all: what is chosen by, which is logits and biases
        logits = probs
    np.savez(out, logits=logits, chosen=np.sort(chosen, axis=-1))
    os._exit(0)  # its threads do not end by themselves


def ours(path: Path, count: int, memory: str) -> tuple[list[int], np.ndarray, np.ndarray]:
    import pyllama
    from pyllama.decoder.routes import Routes

    plain, rows = Routes.of, []

    def of(logits: Any, experts: Any, **more: Any) -> Routes:
        found = plain(logits, experts, **more)
        rows.append((logits.array[0].copy(), found.experts))
        return found

    Routes.of = of
    try:
        with pyllama.load(path, memory=memory, context_length=256, kv_dtype="f32") as model:
            ids = tokens(model.config.vocab_size, count)
            with model.decoder.new_sequence() as sequence:
                for token in ids:
                    model.decoder.forward([(sequence, [token])])
            model.decoder.weights._counts = None  # tokens that nobody wrote are not what a next start should go by
    finally:
        Routes.of = plain
    logits, chosen = (np.array([row[i] for row in rows]) for i in (0, 1))
    return ids, logits.reshape(count, -1, logits.shape[-1]), chosen.reshape(count, -1, chosen.shape[-1])


def most_chosen(chosen: np.ndarray, experts: int, most: int) -> tuple[list[set[int]], float]:
    """Of each layer, and of all choices their share."""
    best, share = [], 0
    for layer in range(chosen.shape[1]):
        counts = np.bincount(chosen[:, layer].ravel(), minlength=experts)
        order = np.argsort(-counts, kind="stable")[:most]
        best.append(set(order.tolist()))
        share += int(counts[order].sum())
    return best, share / chosen.size


def compared(ours: tuple[np.ndarray, np.ndarray], theirs: tuple[np.ndarray, np.ndarray], share: float) -> dict:
    (logits, chosen), (others, also) = ours, theirs
    experts, each = logits.shape[-1], chosen.shape[-1]
    common = np.array(
        [[len(set(a) & set(b)) for a, b in zip(*pair, strict=True)] for pair in zip(chosen, also, strict=True)]
    )
    same = common == each
    before = np.cumsum(~same, axis=1) - ~same == 0  # up to the first difference, and with it
    ordered = np.sort(logits, axis=-1)
    gaps = ordered[..., -each] - ordered[..., -each - 1]
    apart = np.abs(logits - others).max(axis=-1)
    first = ~same & before
    result: dict[str, Any] = {
        "choices": same.size,
        "same": float(same.mean()),
        "experts": float(common.sum() / chosen.size),
        "first": {"choices": int(before.sum()), "same": float(same[before].mean())},
        "gap_median": float(np.median(gaps)),
        "logits_apart_median": float(np.median(apart)),
    }
    if first.any():
        worst = int(np.argmax(gaps[first]))
        result["close"] = {"gap": float(gaps[first][worst]), "logits_apart": float(apart[first][worst])}
        result["within_rounding"] = float((gaps[first] <= 2 * apart[first]).mean())
    most = round(share * experts)
    (mine, of_all), (yours, of_theirs) = (most_chosen(c, experts, most) for c in (chosen, also))
    result["favoured"] = {"experts": most, "ours": of_all, "llama.cpp": of_theirs}
    result["top"] = sum(len(a & b) for a, b in zip(mine, yours, strict=True)) / (most * len(mine))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--peer", help="a Python that has xllamacpp")
    parser.add_argument("--tokens", type=int, default=33)
    parser.add_argument("--memory", default="8G")
    parser.add_argument("--share", type=float, default=0.13)
    parser.add_argument("--ids", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.out:
        llama_cpp(str(args.path), json.loads(args.ids), args.out)
        return
    if not args.peer:
        parser.error("--peer is needed")
    ids, *mine = ours(args.path, args.tokens, args.memory)
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/theirs.npz"
        command = [args.peer, __file__, str(args.path), "--ids", json.dumps(ids), "--out", out]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise SystemExit(f"compare_routing.py: {(run.stderr.strip().splitlines() or ['llama.cpp ends'])[-1]}")
        with np.load(out) as theirs:
            found = compared(tuple(mine), (theirs["logits"], theirs["chosen"]), args.share)
    print(json.dumps({"file": args.path.name, "tokens": args.tokens, **found}))


if __name__ == "__main__":
    main()
