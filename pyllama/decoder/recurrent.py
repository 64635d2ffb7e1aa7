"""The mixers that carry a state from token to token: what one of them computes between its matrices.

Every line of arithmetic is a kernel's but for products of two activations, which are one rounded product wherever they
are computed. MODEL.md has the mathematics, and `a` is the activations: the Buffers of the pass.
"""

from __future__ import annotations

import itertools
import math
from typing import Protocol

import numpy as np

from pyllama import _kernels as kernels
from pyllama.architecture.layer import Attention, GatedDelta, Layer, ShortConv
from pyllama.decoder.buffers import Buffers
from pyllama.decoder.state_pool import StatePool
from pyllama.decoder.states import StateSteps
from pyllama.decoder.weights import Weights

_NORM_EPS = 1e-6  # of the delta rule's keys and queries, in all models so far


class Recurrence(Protocol):
    """One layer's."""

    def before(self, a: Buffers) -> tuple[kernels.Floats, ...]:
        """Where the matrices put what they make of a token."""
        ...

    def walk(self, a: Buffers, steps: StateSteps, pool: StatePool, walk: kernels.Walk) -> kernels.Floats:
        """From there to what the last matrix takes; the buffers have the pass's rows."""
        ...


def recurrence(number: int, layer: Layer, weights: Weights, eps: float) -> Recurrence | None:
    """That of a layer; None for one with attention, and for one of which nothing is computed here."""
    mixer = layer.mixer
    if isinstance(mixer, Attention) or not mixer.conv.channels:
        return None
    if isinstance(mixer, ShortConv):
        return ShortConvolution(number, layer.name, mixer, weights)
    return DeltaNet(number, layer.name, mixer, weights, eps)


def _kernel_of(weights: Weights, name: str, channels: int) -> np.ndarray:
    """A convolution's weight, (width, channels): its kernel takes channels side by side."""
    return np.ascontiguousarray(weights.vector(name).reshape(channels, -1).T)


class ShortConvolution:
    """C * conv(B * x)."""

    def __init__(self, number: int, name: str, mixer: ShortConv, weights: Weights):
        conv = mixer.conv
        self._number = number
        self._weight = kernels.Floats(_kernel_of(weights, f"{name}{conv.name}.weight", conv.channels))
        self._bias = kernels.Floats(weights.vector(f"{name}{conv.name}.bias")) if conv.bias else None

    def before(self, a: Buffers) -> tuple[kernels.Floats, ...]:
        return (a.mixed,)

    def walk(self, a: Buffers, steps: StateSteps, pool: StatePool, walk: kernels.Walk) -> kernels.Floats:
        tokens, width = a.x.rows, a.convolved.cols
        mixed = a.mixed.array
        np.multiply(mixed[:, :width], mixed[:, 2 * width :], out=a.convolved.array)
        pool.note(self._number, steps, tokens, (a.convolved,))
        a.convolved.rows = a.recurred.rows = tokens + len(steps.gathered)
        offset = pool.offsets[self._number][0]
        kernels.conv(a.convolved, 0, self._weight, self._bias, False, walk, offset, a.recurred)
        a.convolved.rows = a.recurred.rows = tokens
        np.multiply(mixed[:, width : 2 * width], a.recurred.array, out=a.recurred.array)
        return a.recurred


class DeltaNet:
    """norm(delta rule over silu(conv(q, k, v))) * silu(z)."""

    def __init__(self, number: int, name: str, mixer: GatedDelta, weights: Weights, eps: float):
        def vector(of: str) -> kernels.Floats:
            return kernels.Floats(weights.vector(f"{name}{of}.weight"))

        conv = mixer.conv
        self._number, self._mixer, self._eps = number, mixer, eps
        weight = _kernel_of(weights, f"{name}{conv.name}.weight", conv.channels)
        cuts = (0, mixer.keys, 2 * mixer.keys, conv.channels)
        parts = [np.ascontiguousarray(weight[:, a:b]) for a, b in itertools.pairwise(cuts)]
        self._convs = [(first, kernels.Floats(part)) for first, part in zip(cuts, parts)]
        self._norm, self._dt, self._rate = vector(mixer.norm.name), vector(mixer.dt), vector(mixer.rate)
        if mixer.rate_log:
            kernels.exp(self._rate, self._rate)
            np.negative(self._rate.base, out=self._rate.base)
        # x / sqrt(sum x^2 + eps) is rmsnorm with a weight of D^-1/2 and eps / D; queries are scaled by D^-1/2 besides.
        dim = mixer.key_dim
        self._q_scale = kernels.Floats(np.full(dim, 1 / dim, np.float32))
        self._k_scale = kernels.Floats(np.full(dim, 1 / math.sqrt(dim), np.float32))

    def before(self, a: Buffers) -> tuple[kernels.Floats, ...]:
        return a.mixed, a.z, a.delta_b, a.delta_a

    def walk(self, a: Buffers, steps: StateSteps, pool: StatePool, walk: kernels.Walk) -> kernels.Floats:
        mixer, tokens = self._mixer, a.x.rows
        pool.note(self._number, steps, tokens, (a.mixed, a.delta_b, a.delta_a))
        a.resize_recurrent(tokens + len(steps.gathered))
        offset = pool.offsets[self._number][0]
        for (first, weight), out in zip(self._convs, (a.state_q, a.state_k, a.state_v)):
            kernels.conv(a.mixed, first, weight, None, True, walk, offset, out)
        dim = mixer.key_dim
        for of, scale in ((a.state_q, self._q_scale), (a.state_k, self._k_scale)):
            kernels.rmsnorm(of, scale, _NORM_EPS / dim, of, dim)
        kernels.delta_gates(a.delta_a, a.delta_b, self._rate, self._dt, a.decay, a.beta)
        offset += mixer.conv.state_floats
        kernels.delta(
            a.state_q, a.state_k, a.state_v, a.decay, a.beta, mixer.key_heads, mixer.tiled, walk, offset, a.recurred
        )
        a.resize_recurrent(tokens)
        kernels.rmsnorm(a.recurred, self._norm, self._eps, a.recurred, mixer.value_dim)
        kernels.swiglu(a.z, a.recurred, a.recurred)
        return a.recurred
