"""What transformers said about tiny models, read back: CASE.json and CASE.npz into a Golden.

Written by `tests/make_golden.py`. The weights are not stored: they follow from a seed. Knows Config and the
reference's seeded weights, and neither a decoder nor torch.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mxfp4_folder
import numpy as np
import reference

if TYPE_CHECKING:
    from pyllama.architecture.config import Config

FOLDER = Path(__file__).parent
CASES = sorted(path.stem for path in FOLDER.glob("*.npz"))
SAMPLED_COLUMNS = 16
#: Positions asked for: of LongRoPE's two sets of factors it chooses one.
CONTEXT = 128


def sampled_columns(row: int, vocab_size: int) -> np.ndarray:
    """The columns kept of a row of logits: evenly spread, shifted by row, so that no column is never kept."""
    return (row * 5 + np.arange(SAMPLED_COLUMNS) * (vocab_size // SAMPLED_COLUMNS)) % vocab_size


@dataclasses.dataclass(frozen=True)
class Golden:
    """One case. Row t of its logits follows token t of `tokens`; T = prompt + greedy - 1 rows."""

    name: str
    huggingface: dict[str, Any]  # config.json as transformers 5 writes it
    huggingface_v4: dict[str, Any]  # and as transformers 4 did
    config: Config
    seed: int
    tensors: dict[str, np.ndarray]  # Hugging Face name -> float32, exact in bfloat16
    prompt: list[int]
    greedy: list[int]
    smallest_gap: float  # between the two best logits of a greedy step, relative to the largest
    sampled: np.ndarray  # (T, SAMPLED_COLUMNS)
    largest: np.ndarray  # (T,) largest magnitude of each row
    whole_rows: np.ndarray  # row numbers kept in full
    whole: np.ndarray  # (len(whole_rows), vocab_size)

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.greedy[:-1]

    def error(self, logits: np.ndarray) -> float:
        """Largest distance of logits (T, vocab_size) from the golden ones, relative to each row's largest."""
        assert logits.shape == (len(self.tokens), self.config.vocab_size)
        sampled = np.stack([row[sampled_columns(t, len(row))] for t, row in enumerate(logits)])
        distances = [
            np.abs(sampled - self.sampled).max(axis=-1) / self.largest,
            np.abs(np.abs(logits).max(axis=-1) - self.largest) / self.largest,
            np.abs(logits[self.whole_rows] - self.whole).max(axis=-1) / self.largest[self.whole_rows],
        ]
        return float(np.concatenate(distances).max())

    def greedy_of(self, logits: np.ndarray) -> list[int]:
        """The token each row from the prompt's last on would choose."""
        return logits[len(self.prompt) - 1 :].argmax(axis=-1).tolist()


def _weights(config: Config, record: dict[str, Any]) -> dict[str, np.ndarray]:
    """What the class in transformers holds; of a folder of MXFP4, what that stands for."""
    if "quantization_config" in record["config"]:
        return mxfp4_folder.widened(stored_weights(config, record["seed"]))
    return reference.random_weights(config, record["seed"])


def stored_weights(config: Config, seed: int) -> dict[str, np.ndarray]:
    """What a folder of gpt-oss has, float32 and uint8."""
    return mxfp4_folder.stored_weights(reference.tensor_shapes(config), seed)


@cache
def load_case(name: str) -> Golden:
    # Here, so that make_golden.py runs where pyllama is not installed.
    from pyllama.checkpoint.huggingface_config import huggingface_config

    record = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    config = huggingface_config(record["config"]).for_context(CONTEXT)
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return Golden(
            name=name,
            huggingface=record["config"],
            huggingface_v4=record["config_v4"],
            config=config,
            seed=record["seed"],
            tensors=_weights(config, record),
            prompt=record["prompt"],
            greedy=record["greedy"],
            smallest_gap=record["smallest_gap"],
            **{key: arrays[key] for key in arrays},
        )
