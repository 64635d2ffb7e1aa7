"""From what a layer says of its rotation to rotary frequencies, in float64 and the same on every machine.

exp and log come from `decimal`, which rounds correctly everywhere; libm's last bit differs between
machines. cos and sin of the angles are the kernels' business.
"""

import math
from decimal import Decimal, localcontext

import numpy as np

from pyllama.architecture.config import RopeScaling
from pyllama.architecture.layer import Rope

_DIGITS = 40  # float64 has 17: a correctly rounded result, short of a tie no decimal hits


def frequencies(rope: Rope) -> tuple[np.ndarray, float]:
    """(inv_freq, scale): radians per position of each of the dim / 2 pairs, float64 (dim/2,), and the factor on
    cos and sin (1 except for YaRN and LongRoPE).

    inv_freq[i] = theta ** (-2 i / dim), changed as the scaling says (MODEL.md, "RoPE").
    """
    inv_freq = _plain(rope.theta, rope.dim)
    scaling = rope.scaling
    if scaling is None:
        return inv_freq, 1.0
    if scaling.kind == "linear":
        return inv_freq / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(inv_freq, scaling), 1.0
    if scaling.kind == "yarn":
        return _yarn(inv_freq, scaling, rope), scaling.attention_factor
    if scaling.kind in ("factors", "proportional"):
        return inv_freq / np.array(scaling.factors, np.float64), 1.0
    if scaling.kind == "longrope":
        factors = scaling.long_factors if scaling.long else scaling.factors
        return inv_freq / np.array(factors, np.float64), scaling.attention_factor
    raise AssertionError(f"a reader let rope scaling {scaling.kind!r} through")


def longrope_magnitude(factor: float, original: int) -> float:
    """LongRoPE's factor on cos and sin where a file names none (Ding et al. 2024, arXiv 2402.13753)."""
    return 1.0 if factor <= 1.0 else math.sqrt(1 + float(Decimal(factor).ln() / Decimal(original).ln()))


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """YaRN's factor on cos and sin where a file names none (Peng et al. 2023, section 3.4)."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * float(Decimal(factor).ln()) + 1.0


def _plain(theta: float, dim: int) -> np.ndarray:
    with localcontext(prec=_DIGITS):
        log_theta = Decimal(theta).ln()
        return np.array([float((log_theta * Decimal(-2 * i) / dim).exp()) for i in range(dim // 2)])


def _llama3(inv_freq: np.ndarray, s: RopeScaling) -> np.ndarray:
    """Long wavelengths divided by the factor, short ones kept, a linear blend between (Llama 3.1)."""
    turns = s.original_max_position_embeddings * inv_freq / (2 * math.pi)
    smooth = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    blend = (1 - smooth) * inv_freq / s.factor + smooth * inv_freq
    kept_or_blended = np.where(turns > s.high_freq_factor, inv_freq, blend)
    return np.where(turns < s.low_freq_factor, inv_freq / s.factor, kept_or_blended)


def _yarn(inv_freq: np.ndarray, s: RopeScaling, rope: Rope) -> np.ndarray:
    """Interpolated where a pair turns less than beta_slow times over the original context, kept where more
    than beta_fast, a linear ramp over the pair's index between (Peng et al. 2023, section 3.2)."""

    def pair_with(turns: float) -> float:
        with localcontext(prec=_DIGITS):
            log_theta = Decimal(rope.theta).ln()
            ratio = Decimal(s.original_max_position_embeddings) / (Decimal(turns) * 2 * Decimal(math.pi))
            return float(rope.dim * ratio.ln() / (2 * log_theta))

    low, high = pair_with(s.beta_fast), pair_with(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001  # as transformers does, against a division by zero
    ramp: np.ndarray = np.clip((np.arange(rope.dim // 2) - low) / (high - low), 0, 1)
    mixed: np.ndarray = inv_freq / s.factor * ramp + inv_freq * (1 - ramp)
    return mixed
