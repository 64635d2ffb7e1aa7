"""How long passes take, by what was measured of the last ones: what more tokens cost, and how many cost nothing.

While weights stream, a pass lasts as long as the disk needs, and arithmetic that fits into that is free. Seconds of
arithmetic are taken as a + b * tokens and fitted with weights that fade; what a pass waited for the disk is known.
"""

_FADE = 0.9
_MOST_TOKENS = 96  # passes of prompts are another matter
_WAITING = 0.1  # a pass that waited for this share of its time was bound by the disk
_OF_DISK = 0.9  # how much of the disk's time is filled: not all, since passes differ


class Pace:
    """What was learned of one model's passes.

    node_s   seconds that one token more takes the arithmetic
    """

    def __init__(self) -> None:
        self._n = self._t = self._tt = self._y = self._ty = 0.0
        self._disk_s: float | None = None
        self._one_s: float | None = None

    def passed(self, tokens: int, seconds: float, waited_s: float) -> None:
        """A pass over so many tokens took so long, and waited for the disk in it."""
        if tokens > _MOST_TOKENS:
            return
        busy = max(0.0, seconds - waited_s)
        self._n = _FADE * self._n + 1
        self._t = _FADE * self._t + tokens
        self._tt = _FADE * self._tt + tokens * tokens
        self._y = _FADE * self._y + busy
        self._ty = _FADE * self._ty + tokens * busy
        if waited_s > _WAITING * seconds:
            self._disk_s = seconds if self._disk_s is None else 0.7 * self._disk_s + 0.3 * seconds
        if tokens == 1:
            self._one_s = seconds if self._one_s is None else 0.8 * self._one_s + 0.2 * seconds

    @property
    def node_s(self) -> float:
        variance = self._n * self._tt - self._t * self._t
        if self._n and variance > 1e-3 * self._n * self._n:
            return max(0.0, (self._n * self._ty - self._t * self._y) / variance)
        # Not known yet: the weights cross the memory bus once a pass, and some sixteen tokens compute meanwhile.
        return self._y / self._n / (16 + self._t / self._n) if self._n else 0.0

    @property
    def _fixed_s(self) -> float:
        return max(0.0, (self._y - self.node_s * self._t) / self._n) if self._n else 0.0

    def base_s(self, share: float = 1.0) -> float | None:
        """Seconds of a pass of one token that reads this share of what is read now; None before that is known."""
        if self._disk_s is not None:
            return max(share * self._disk_s, self._fixed_s + self.node_s)
        return self._one_s

    def free(self) -> int:
        """Tokens beyond the first that the arithmetic has done by the time the disk is."""
        if self._disk_s is None:
            return 0
        spare = _OF_DISK * self._disk_s - self._fixed_s - self.node_s
        return max(0, int(spare / self.node_s)) if self.node_s > 0 else 1 << 16
