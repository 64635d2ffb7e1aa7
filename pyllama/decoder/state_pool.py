"""Memory for the states of layers that carry one from token to token: slots and rows of a journal, with numbers.

A slot has the state of every such layer of one text, float32, one layer after the other; a row of the journal what the
states of all layers depend on, of one token. Whose they are is states.py's business.
"""

from collections.abc import Iterable

import numpy as np

from pyllama import _kernels as kernels
from pyllama.architecture.layer import Attention, Layer
from pyllama.decoder.page_pool import aligned_zeros
from pyllama.decoder.shape import Shape
from pyllama.decoder.states import StateSteps
from pyllama.errors import PyllamaError

_FLOAT = 4


def slot_nbytes(shape: Shape) -> int:
    """Bytes of a text's state; 0 for a model that has none."""
    return _FLOAT * shape.state_floats


def journal_nbytes(shape: Shape, tokens: int) -> int:
    """Bytes that so many tokens take which may be taken back."""
    return _FLOAT * shape.input_floats * tokens


class StatePool:
    """Slots and rows, numbered from 0 as they are added; they are never freed.

    slot_nbytes, row_nbytes  bytes of one
    offsets                  number of a layer -> floats from a slot's start to its state, from a row's to its input
    """

    def __init__(self, shape: Shape, layers: Iterable[Layer]):
        self.offsets: dict[int, tuple[int, int]] = {}
        state = row = 0
        for number, layer in enumerate(layers):
            if not isinstance(layer.mixer, Attention):
                self.offsets[number] = state, row
                state += layer.mixer.state_floats
                row += layer.mixer.input_floats
        self.slot_nbytes, self.row_nbytes = slot_nbytes(shape), _FLOAT * row
        self._slots: list[np.ndarray] = []
        self._addresses = np.zeros(0, np.uint64)
        self._rows = np.zeros((0, row), np.float32)

    @property
    def nbytes(self) -> int:
        return len(self._slots) * self.slot_nbytes + self._rows.nbytes

    def grow(self, slots: int, rows: int) -> None:
        """Have at least so many."""
        try:
            while len(self._slots) < slots:
                slot = aligned_zeros(self.slot_nbytes)
                self._slots.append(slot)
                self._addresses = np.append(self._addresses, np.uint64(slot.ctypes.data))
            if len(self._rows) < rows:
                more = np.zeros((max(8, rows - len(self._rows)), self._rows.shape[1]), np.float32)
                self._rows = np.concatenate([self._rows, more])
        except MemoryError:
            raise PyllamaError(
                f"states: no memory for another {self.slot_nbytes} bytes on top of {self.nbytes}"
            ) from None

    def read(self, slot: int) -> np.ndarray:
        """What a slot holds, (slot_nbytes,) uint8, between passes; not the caller's to keep."""
        self.grow(slot + 1, 0)
        return self._slots[slot]

    def write(self, slot: int, data: np.ndarray) -> None:
        self.read(slot)[:] = data

    def walk(self, steps: StateSteps) -> "kernels.Walk":
        return kernels.Walk(
            self._addresses,
            self.slot_nbytes,
            steps.sources,
            steps.starts,
            steps.steps,
            steps.store_starts,
            steps.stores,
        )

    def note(self, layer: int, steps: StateSteps, tokens: int, inputs: Iterable["kernels.Floats"]) -> None:
        """Keep what a layer's state depends on, of the tokens that may be taken back, and put behind the pass's own
        what was kept of those that were not.

        inputs  buffers of it, one beside the other in a row: (tokens and more, columns) each
        """
        column = self.offsets[layer][1]
        for buffer in inputs:
            columns = slice(column, column + buffer.cols)
            if len(steps.gathered):
                buffer.base[tokens : tokens + len(steps.gathered)] = self._rows[steps.gathered, columns]
            if len(steps.journal):
                self._rows[steps.journal[:, 1], columns] = buffer.base[steps.journal[:, 0]]
            column += buffer.cols
