"""A model and a text -> how much each column of its matrices matters, by passes over windows of the text.

Sums of squares grow in float64, in the order of the tokens. Now and then they are brought to the disk, so that a run
that was killed goes on from the window it had come to; what comes out is the same. The result is kept beside the
quantized file, for other types of the same model.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pyllama.architecture import Layer, layers_of
from pyllama.architecture.layer import Mlp
from pyllama.architecture.names import expert_number
from pyllama.architecture.tensors import HEAD
from pyllama.checkpoint import Checkpoint
from pyllama.checkpoint.files import read_small
from pyllama.errors import CheckpointError, PackError, RequestError
from pyllama.loading import load
from pyllama.machine.durable import sync
from pyllama.packing.rows import state_of
from pyllama.quantizing.importance import Importance, importance_bytes, read_importance
from pyllama.quantizing.outline import stored_names
from pyllama.quantizing.workplace import STATE, FileWorkplace
from pyllama.terminal.progress import Progress

WINDOW = 512  # tokens
SUFFIX = ".imatrix.gguf"
STATE_S = 30.0  # between two states on the disk
_IDENTITY = "pyllama.calibration"
_MAX_TEXT = 64 << 20
_ROWS = 8  # squared at once


def identity(checkpoint: Checkpoint, text: bytes) -> str:
    """What a calibration depends on, in one line of JSON."""
    files = [[path.name, *state_of(path)] for path in checkpoint.files]
    return json.dumps({"text": [len(text), zlib.crc32(text)], "window": WINDOW, "source": files})


def read_text(path: str | os.PathLike[str]) -> bytes:
    """The text to calibrate with. Raises RequestError for what is none."""
    try:
        data = read_small(Path(path), _MAX_TEXT)
        text = data.decode("utf-8-sig")
    except CheckpointError as error:
        raise RequestError(f"calibration: {error}") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"calibration: {path}: byte {error.start} is not UTF-8, expected text") from None
    if not text.strip():
        raise RequestError(f"calibration: {path}: no text")
    return data


def calibrated(
    work: FileWorkplace,
    checkpoint: Checkpoint,
    text_path: Path,
    *,
    budget: int,
    threads: int | None,
    pre_tokenizer: str | None,
    progress: Progress,
) -> Importance:
    """The importance of a model's columns: what an earlier run left beside the destination, or collected now.

    Raises RequestError where another one lies there, or for a text that is too short.
    """
    text = read_text(text_path)
    own = identity(checkpoint, text)
    beside = work.destination.with_name(work.destination.name + SUFFIX)
    if os.path.lexists(beside):
        found = read_importance(beside)
        if found.metadata.get(_IDENTITY) != own:
            raise RequestError(f"{beside}: already there, of another text or model; move it, or give it by --imatrix")
        return found
    sums, counts, windows = _collected(work, checkpoint, text, budget, threads, pre_tokenizer, progress)
    stored_sums, stored_counts = _as_stored(checkpoint, sums, counts)
    data = importance_bytes(
        stored_sums,
        stored_counts,
        {
            "imatrix.datasets": [os.fsencode(text_path.name)],
            "imatrix.chunk_count": np.uint32(windows),
            "imatrix.chunk_size": np.uint32(WINDOW),
            _IDENTITY: own,
        },
    )
    work.write(beside.name, data)
    if os.path.lexists(beside):
        raise PackError(f"{beside}: has come to exist; move it elsewhere")
    os.rename(work.folder / beside.name, beside)
    sync(beside.parent)
    (work.folder / STATE).unlink(missing_ok=True)
    return read_importance(beside)


def _as_stored(
    checkpoint: Checkpoint, sums: dict[str, np.ndarray], counts: dict[str, int]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Under GGUF's names, the experts of a layer in one: zeros for those that nothing went to."""
    names, mixture = stored_names(checkpoint), checkpoint.config.mixture
    found: dict[str, np.ndarray] = {}
    tokens: dict[str, np.ndarray] = {}
    for ours, squares in sums.items():
        name, number = names[ours], expert_number(ours)
        if number is None or mixture is None:
            found[name], tokens[name] = squares, np.array([counts[ours]])
            continue
        found.setdefault(name, np.zeros((mixture.num_experts, len(squares))))[number] = squares
        tokens.setdefault(name, np.zeros(mixture.num_experts))[number] = counts[ours]
    return found, tokens


class _Sums:
    """Sums of squares of what each matrix is multiplied with; matrices that share their input share them.

    squares  the names of the matrices -> float64 (cols,)
    counts   and of how many tokens
    """

    def __init__(self) -> None:
        self.squares: dict[tuple[str, ...], np.ndarray] = {}
        self.counts: dict[tuple[str, ...], int] = {}

    def add(self, names: tuple[str, ...], rows: np.ndarray) -> None:
        if names == (HEAD,):
            return  # computed for the last token only, and stored fine enough
        squares = self.squares.setdefault(names, np.zeros(rows.shape[1]))
        self.counts[names] = self.counts.get(names, 0) + len(rows)
        for first in range(0, len(rows), _ROWS):
            part = rows[first : first + _ROWS].astype(np.float64)
            squares += np.square(part, out=part).sum(axis=0)

    def state(self, windows: int, tokens: int) -> bytes:
        out = io.BytesIO()
        arrays = {",".join(names): squares for names, squares in self.squares.items()}
        counts = np.array([self.counts[names] for names in self.squares], np.int64)
        np.savez(out, done=np.array([windows, tokens]), counts=counts, **arrays)  # type: ignore[arg-type]
        data = out.getvalue()
        return zlib.crc32(data).to_bytes(4, "little") + data

    def load(self, path: Path) -> tuple[int, int]:
        """Windows and tokens that an earlier run had come to; (0, 0) where it left nothing that is sound."""
        try:
            data = path.read_bytes()
            if zlib.crc32(data[4:]) != int.from_bytes(data[:4], "little"):
                return 0, 0
            with np.load(io.BytesIO(data[4:]), allow_pickle=False) as arrays:
                found: dict[str, Any] = dict(arrays)
        except (OSError, ValueError):
            return 0, 0
        windows, tokens = found.pop("done").tolist()
        counts = found.pop("counts", None)
        if counts is None or len(counts) != len(found):  # of an earlier version
            return 0, 0
        self.squares = {tuple(names.split(",")): squares for names, squares in found.items()}
        self.counts = dict(zip(self.squares, counts.tolist(), strict=True))
        return windows, tokens


def _collected(
    work: FileWorkplace,
    checkpoint: Checkpoint,
    text: bytes,
    budget: int,
    threads: int | None,
    pre_tokenizer: str | None,
    progress: Progress,
) -> tuple[dict[str, np.ndarray], dict[str, int], int]:
    """name -> sums of squares, name -> tokens, and how many windows there were."""
    config = checkpoint.config
    length = min(WINDOW, config.max_position_embeddings)
    sums = _Sums()
    done, tokens = sums.load(work.folder / STATE)
    room = sum(map(_input_columns, layers_of(config))) * 8 * 3  # the sums, and what a state is made of
    split = pre_tokenizer if checkpoint.format == "gguf" else None
    with contextlib.ExitStack() as stack:
        shown = stack.enter_context(
            Progress(f"calibrating {checkpoint.path.name}", unit="layers", quiet=not progress.enabled)
        )
        shown.note("loading")
        model = stack.enter_context(
            load(
                checkpoint.path,
                context_length=length,
                memory=budget - room,
                threads=threads,
                pre_tokenizer=split,
                draft="off",
                on_layer=lambda layer: shown.advance(1),
            )
        )
        shown.note("")
        windows = _windows(model.tokenizer, text.decode("utf-8-sig"), length)
        shown.total = len(windows) * config.num_hidden_layers
        shown.skip(done * config.num_hidden_layers)
        decoder: Any = model.decoder  # of this process
        decoder.on_input = sums.add
        saved = time.monotonic()
        for number in range(done, len(windows)):
            with decoder.new_sequence() as sequence:
                decoder.prefill(sequence, windows[number])
            tokens += len(windows[number])
            if time.monotonic() - saved > STATE_S:
                work.write(STATE, sums.state(number + 1, tokens))
                saved = time.monotonic()
    found = {name: squares for names, squares in sums.squares.items() for name in names}
    if not all(np.isfinite(squares).all() for squares in found.values()):
        raise CheckpointError(
            f"{checkpoint.path}: calibration came upon what is no finite number; are its weights sound?"
        )
    counts = {name: count for names, count in sums.counts.items() for name in names}
    return found, counts, len(windows)


def _input_columns(layer: Layer) -> int:
    """Of what a layer's matrices are multiplied with: its mixer's and its mlps' last ones take something else each."""
    experts = layer.experts
    blocks = [layer.mixer.linears] + ([layer.mlp.linears] if isinstance(layer.mlp, Mlp) else [])
    blocks += [(experts.router,), *[experts.expert(0).linears] * experts.count] if experts else []
    return sum(of.cols for linears in blocks for of in {linears[0], linears[-1]})


def _windows(tokenizer: Any, text: str, length: int) -> list[list[int]]:
    """The text's tokens in windows of `length`, each begun by BOS where the model wants one; a rest is left out."""
    begin = tokenizer.encode("")
    begin = begin[:1] if begin and begin[0] == tokenizer.bos_token_id else []
    ids = tokenizer.encode(text, add_special_tokens=False)
    each = length - len(begin)
    return [begin + ids[i : i + each] for i in range(0, max(len(ids) - each, 0) + 1, each)]
