"""What the decoder asks of those it shares a model with: whose rows are whose, and pieces put together to wholes.

Every rank computes some rows of each matrix and has all of the residual stream. What it has computed is gathered, never
summed, so that the bits are those of one process. How it travels is not known here (pyllama/cluster).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np

from pyllama import _kernels
from pyllama.architecture.layer import Attention, Experts, GatedDelta, Layer, Linear, Mixer, Mlp, ShortConv
from pyllama.decoder.weights import Weights

#: Rows of a matrix that a rank computes, and columns of what they make: one behind the other, ascending.
Rows = tuple[range, ...]


def count(rows: Iterable[range]) -> int:
    return sum(map(len, rows))


def scaled(rows: Iterable[range], unit: int) -> Rows:
    """Numbers of heads -> their rows, `unit` each."""
    return tuple(range(of.start * unit, of.stop * unit) for of in rows)


class LayerShare(NamedTuple):
    """Which of one layer a rank computes.

    heads, kv_heads  of q_proj, and of k_proj and v_proj: whole heads, each query head with its key/value head, as many
                     of the former for each of the latter; a key/value head may be several ranks'
    keys, values     the same of the gated delta rule: heads of keys, and those of values, in which a rank's may lie
                     apart (GatedDelta.tiled)
    channels         of a short convolution
    inner            rows of gate_proj and up_proj
    expert           the same of each expert
    """

    heads: range = range(0)
    kv_heads: range = range(0)
    keys: range = range(0)
    values: Rows = ()
    channels: range = range(0)
    inner: range = range(0)
    expert: range = range(0)


class Share(NamedTuple):
    """Which rows a rank computes. What no field names is small, and computed by every rank: routers, and the third
    block of a layer (PerLayerInput).

    layers     of each layer
    hidden     rows of the matrices that make what is added to the residual stream, in all layers
    vocab      rows of the embeddings and of lm_head
    per_layer  rows of what makes a token's inputs for each layer
    """

    layers: tuple[LayerShare, ...]
    hidden: range
    vocab: range
    per_layer: range = range(0)


def mixed_rows(mixer: GatedDelta, of: LayerShare) -> Rows:
    """Of the delta rule's first matrix, which makes queries, keys and values, and so of its convolution."""
    keys = scaled((of.keys,), mixer.key_dim)
    values = scaled(of.values, mixer.value_dim)
    starts = ((keys, 0), (keys, mixer.keys), (values, 2 * mixer.keys))
    return tuple(range(start + r.start, start + r.stop) for rows, start in starts for r in rows)


def made_columns(mixer: Mixer, of: LayerShare) -> Rows:
    """Of what a mixer's last matrix takes."""
    if isinstance(mixer, Attention):
        return scaled((of.heads,), mixer.head_dim)
    return (of.channels,) if isinstance(mixer, ShortConv) else scaled(of.values, mixer.value_dim)


def local_layers(layers: Sequence[Layer], share: Share) -> tuple[Layer, ...]:
    """The layers with as many heads, channels and rows as this share has of them."""
    hidden = len(share.hidden)
    return tuple(_local(layer, of, hidden) for layer, of in zip(layers, share.layers, strict=True))


def _local(layer: Layer, of: LayerShare, hidden: int) -> Layer:
    def rows(linear: Linear, rows: int) -> Linear:
        return linear._replace(rows=rows)

    mixer, mlp, beside = layer.mixer, layer.mlp, layer.beside
    if isinstance(mixer, Attention):
        q, kv = len(of.heads) * mixer.head_dim, len(of.kv_heads) * mixer.head_dim
        mixer = mixer._replace(
            heads=len(of.heads),
            kv_heads=len(of.kv_heads),
            q=rows(mixer.q, 2 * q if mixer.gated else q),
            k=mixer.k and rows(mixer.k, kv),
            v=mixer.v and rows(mixer.v, kv),
            o=rows(mixer.o, hidden),
        )
    elif isinstance(mixer, ShortConv):
        channels = len(of.channels)
        conv = mixer.conv._replace(channels=channels)
        mixer = mixer._replace(in_proj=rows(mixer.in_proj, 3 * channels), conv=conv, out=rows(mixer.out, hidden))
    else:
        mixed, heads = count(mixed_rows(mixer, of)), count(of.values)
        mixer = mixer._replace(
            key_heads=len(of.keys),
            value_heads=heads,
            qkv=rows(mixer.qkv, mixed),
            z=rows(mixer.z, heads * mixer.value_dim),
            b=rows(mixer.b, heads),
            a=rows(mixer.a, heads),
            conv=mixer.conv._replace(channels=mixed),
            out=rows(mixer.out, hidden),
        )

    def of_experts(experts: Experts) -> Experts:
        inner = len(of.expert)
        gate, up, down = rows(experts.gate, inner), rows(experts.up, inner), rows(experts.down, hidden)
        return replace(experts, gate=gate, up=up, down=down)

    if isinstance(mlp, Mlp):
        inner = len(of.inner)
        mlp = mlp._replace(gate=rows(mlp.gate, inner), up=rows(mlp.up, inner), down=rows(mlp.down, hidden))
    else:
        mlp = of_experts(mlp)
    if beside:
        beside = beside._replace(experts=of_experts(beside.experts))
    return layer._replace(mixer=mixer, mlp=mlp, beside=beside)


class Ranks(Protocol):
    """The ranks of a cluster, this one among them. All of them make the same calls in the same order.

    shares  of each rank
    rank    this one's number
    """

    shares: tuple[Share, ...]
    rank: int

    @property
    def share(self) -> Share:
        """This one's."""
        ...

    def embed(self, weights: Weights, name: str, token_ids: np.ndarray, out: np.ndarray) -> None:
        """out[t] = row token_ids[t] of an embedding, (T, cols), each from the rank that has it."""
        ...

    def gather(self, columns: Sequence[Rows], piece: "_kernels.Floats", whole: "_kernels.Floats") -> None:
        """whole[:, columns[r]] = piece of rank r, for every rank r: on each of them.

        piece  (T, this rank's columns), whole (T, columns of all)
        """
        ...

    def collect(self, ranges: "list[range]", piece: np.ndarray, whole: np.ndarray | None) -> None:
        """whole[:, ranges[r]] = piece of rank r, on rank 0 alone; elsewhere whole is None."""
        ...
