"""Seeded weights with the tails that trained ones have, from uniform numbers alone: the same with every NumPy."""

import numpy as np

KINDS = ("student", "gauss", "outliers")


def weights(kind: str, rows: int, cols: int, seed: int) -> np.ndarray:
    """float32 (rows, cols): Student's t with 4 degrees of freedom, a Gaussian, or one with every 37th column 12 times
    as large; all times 0.02."""
    rng = np.random.Generator(np.random.PCG64(seed))
    u = rng.random((rows, cols))
    if kind == "student":  # the quantile function in closed form: Shaw, J. Comp. Finance 9(4), 2006
        alpha = 4 * u * (1 - u)
        q = np.cos(np.arccos(np.sqrt(alpha)) / 3) / np.sqrt(alpha)
        x = np.sign(u - 0.5) * 2 * np.sqrt(q - 1)
    else:
        x = np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * rng.random((rows, cols)))
        if kind == "outliers":
            x[:, ::37] *= 12
    return (0.02 * x).astype(np.float32)


def importance(cols: int, seed: int) -> np.ndarray:
    """float32 (cols,), squares of exponentially distributed numbers: few columns matter much, most little."""
    return (np.log1p(-np.random.Generator(np.random.PCG64(seed)).random(cols)) ** 2).astype(np.float32)


def squared_error(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None) -> float:
    """sum of weight * (x - y)^2, in float64."""
    squares = (x.astype(np.float64) - y) ** 2
    return float(squares.sum() if weight is None else (squares * weight.astype(np.float64)).sum())
