"""The tensors of a model and what a pass over them costs: all of it derived from the layers.

Reads no file and no weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from pyllama.architecture import layers_of
from pyllama.architecture.config import Config
from pyllama.architecture.layer import (
    Attention,
    Beside,
    Experts,
    Layer,
    Linear,
    Mlp,
    Norm,
    Shared,
)

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"
# What a token has for each layer: an embedding of its own, all layers in a row, and a projection of the other one.
PER_LAYER_EMBEDDING = "model.embed_tokens_per_layer.weight"
PER_LAYER_PROJECTION = "model.per_layer_model_projection.weight"
PER_LAYER_NORM = "model.per_layer_projection_norm.weight"
#: Matrices of which a pass reads the rows of its tokens and no others, unless one is the head as well.
BY_ROW = (EMBEDDING, PER_LAYER_EMBEDDING)

PARTS = ("embedding", "per_layer", "attention", "recurrent", "mlp", "router", "experts", "norms", "lm_head")


class ModelTensor(NamedTuple):
    """A tensor that a model consists of.

    part    one of PARTS
    layer   the number of its layer, or None
    expert  the number of its expert, or None
    """

    name: str
    shape: tuple[int, ...]
    part: str
    layer: int | None = None
    expert: int | None = None


@lru_cache(maxsize=4)  # a plan asks two dozen times
def model_tensors(config: Config) -> tuple[ModelTensor, ...]:
    """Every tensor of a model, in the order a pass uses them."""
    hidden = config.hidden_size
    tensors = [ModelTensor(EMBEDDING, (config.vocab_size, hidden), "embedding")]
    size = config.hidden_size_per_layer_input
    if size:
        columns = config.num_hidden_layers * size
        tensors += [
            ModelTensor(PER_LAYER_EMBEDDING, (config.vocab_size, columns), "embedding"),
            ModelTensor(PER_LAYER_PROJECTION, (columns, hidden), "per_layer"),
            ModelTensor(PER_LAYER_NORM, (size,), "norms"),
        ]
    for number, layer in enumerate(layers_of(config)):
        tensors += [tensor._replace(layer=number) for tensor in _of_layer(layer)]
    tensors.append(ModelTensor(FINAL_NORM, (hidden,), "norms"))
    if not config.tie_word_embeddings:
        tensors.append(ModelTensor(HEAD, (config.vocab_size, hidden), "lm_head"))
    return tuple(tensors)


def norms_plus_one(config: Config) -> set[str]:
    """Names of the tensors that are stored as what is added to 1."""
    found = {FINAL_NORM} if config.norm_plus_one else set()
    for layer in layers_of(config):
        norms = [layer.mixer_norm, layer.mixer_post_norm, layer.mlp_norm, layer.mlp_post_norm, *layer.mixer.norms]
        found |= {f"{layer.name}{norm.name}.weight" for norm in norms if norm and norm.plus_one}
    return found


def _of_linear(layer: str, of: Linear, part: str) -> Iterator[ModelTensor]:
    yield ModelTensor(f"{layer}{of.name}.weight", (of.rows, of.cols), part)
    if of.bias:
        yield ModelTensor(f"{layer}{of.name}.bias", (of.rows,), part)


def _of_router(layer: str, experts: Experts) -> Iterator[ModelTensor]:
    yield from _of_linear(layer, experts.router, "router")
    if experts.bias:
        yield ModelTensor(f"{layer}{experts.bias}.weight", (experts.count,), "router")


def _of_layer(layer: Layer) -> Iterator[ModelTensor]:
    mixer, mlp = layer.mixer, layer.mlp

    def norm(of: Norm | None) -> Iterator[ModelTensor]:
        if of is not None:
            yield ModelTensor(f"{layer.name}{of.name}.weight", (of.size,), "norms")

    def linear(of: Linear, part: str) -> Iterator[ModelTensor]:
        return _of_linear(layer.name, of, part)

    yield from norm(layer.mixer_norm)
    part = "attention" if isinstance(mixer, Attention) else "recurrent"
    *before, after = mixer.linears
    for projection in before:
        yield from linear(projection, part)
    for name, size in mixer.vectors:
        yield ModelTensor(f"{layer.name}{name}", (size,), part)
    for of in mixer.norms:
        yield from norm(of)
    yield from linear(after, part)
    yield from norm(layer.mixer_post_norm)
    yield from norm(layer.mlp_norm)
    beside, experts = layer.beside, layer.experts
    if isinstance(beside, Shared):  # first, so that experts are read while the mlp is computed
        yield from _of_router(layer.name, beside.experts)
        yield from linear(beside.gate, "mlp")
    if isinstance(mlp, Mlp):
        for projection in mlp.linears:
            yield from linear(projection, "mlp")
    if isinstance(beside, Beside):
        yield from norm(beside.mlp_norm)
        yield ModelTensor(f"{layer.name}{beside.router_scale}.weight", (beside.norm.size,), "norms")
        yield ModelTensor(f"{layer.name}{beside.expert_scale}.weight", (beside.experts.count,), "norms")
        yield from norm(beside.norm)
    if experts:
        if not isinstance(beside, Shared):
            yield from _of_router(layer.name, experts)
        for number in range(experts.count):
            for projection in experts.expert(number).linears:
                for tensor in linear(projection, "experts"):
                    yield tensor._replace(expert=number)
    if isinstance(beside, Beside):
        yield from norm(beside.post_norm)
    yield from norm(layer.mlp_post_norm)
    if layer.per_layer_input:
        yield from linear(layer.per_layer_input.gate, "per_layer")
        yield from linear(layer.per_layer_input.projection, "per_layer")
        yield from norm(layer.per_layer_input.norm)
    if layer.scalar:
        yield ModelTensor(f"{layer.name}{layer.scalar}.weight", (1,), "norms")


def convolutions(config: Config) -> dict[str, tuple[int, int]]:
    """Name -> (channels, width) of the weights that are kept as one vector, and stored as a matrix."""
    return {
        f"{layer.name}{layer.mixer.conv.name}.weight": (layer.mixer.conv.channels, layer.mixer.conv.width)
        for layer in layers_of(config)
        if not isinstance(layer.mixer, Attention)
    }


def stored_as_vectors(config: Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape, of matrices of one row that GGUF files have as vectors: the gates of shared experts."""
    gates = [(layer.name, layer.beside.gate) for layer in layers_of(config) if isinstance(layer.beside, Shared)]
    return {f"{name}{gate.name}.weight": (gate.cols,) for name, gate in gates}


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """name -> shape of every tensor of a model, in the order a pass uses them."""
    return {tensor.name: tensor.shape for tensor in model_tensors(config)}


def flop(config: Config, tokens: int, positions: float, rows: int = 1) -> float:
    """Floating-point operations of a pass of `tokens` tokens that see `positions` positions each on average.

    rows  tokens whose logits are wanted: the head is computed for these

    A multiply-add counts as two. Norms, rotations and activations are left out.
    """
    total = 0.0
    for layer in layers_of(config):
        mixer, mlp = layer.mixer, layer.mlp
        linears = [*mixer.linears]
        own = layer.per_layer_input
        linears += [own.gate, own.projection] if own else []
        linears += mlp.linears if isinstance(mlp, Mlp) else ()
        experts, beside = layer.experts, layer.beside
        linears += [beside.gate] if isinstance(beside, Shared) else []
        linears += [experts.router, *experts.expert(0).linears * experts.chosen] if experts else []
        total += 2 * sum(linear.rows * linear.cols for linear in linears)
        total += mixer.flop(positions)
    total += 2 * config.num_hidden_layers * config.hidden_size_per_layer_input * config.hidden_size
    return tokens * total + rows * 2 * config.vocab_size * config.hidden_size
