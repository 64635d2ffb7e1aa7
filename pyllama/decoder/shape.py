"""How much of a model this process computes, in numbers: all of it, or one rank's share of the heads and rows."""

from collections.abc import Iterable
from typing import NamedTuple

from pyllama.architecture import Config, Layer, layers_of
from pyllama.architecture.layer import Attention, Mlp, Rope, ShortConv, attentions
from pyllama.decoder.ranks import Share, local_layers


def kinds_of_rope(layers: Iterable[Layer]) -> tuple[Rope, ...]:
    """The different rotations of some layers, in the order in which they come."""
    return tuple(dict.fromkeys(mixer.rope for mixer in attentions(layers) if mixer.rope is not None))


def _widths(layers: Iterable[Layer]) -> tuple[tuple[str, int], ...]:
    """Buffer -> columns, of what layers with a state compute."""
    found: dict[str, int] = {}
    for layer in layers:
        mixer = layer.mixer
        if isinstance(mixer, Attention):
            continue
        if isinstance(mixer, ShortConv):
            channels = mixer.conv.channels
            found |= {"mixed": 3 * channels, "convolved": channels, "recurred": channels}
        else:
            heads = mixer.value_heads
            found |= {"mixed": mixer.conv.channels, "z": mixer.values, "delta_b": heads, "delta_a": heads}
            found |= {"decay": heads, "beta": heads, "state_q": mixer.keys, "state_k": mixer.keys}
            found |= {"state_v": mixer.values, "recurred": mixer.values}
    return tuple(found.items())


class Ranked(NamedTuple):
    """Columns of what ranks gather, and of the piece of the residual stream that is computed here.

    q, kv     of the queries, and of the keys, of all heads, in the layer that has most
    inner     of the gated product
    hidden    rows of o_proj and down_proj computed here
    expert    of the gated product of an expert
    recurred  of what the states of all heads or channels make, or 0
    own       rows of what makes a token's inputs for each layer computed here
    """

    q: int
    kv: int
    inner: int
    hidden: int
    expert: int = 0
    recurred: int = 0
    own: int = 0


class Heads(NamedTuple):
    """Attention of one layer: its heads, and where the keys and values lie that it reads.

    source  the number of that layer: its own, but where it has none
    """

    heads: int
    kv_heads: int
    head_dim: int
    source: int

    @property
    def q_size(self) -> int:
        """Columns of the queries of a token."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Columns of the keys of a token, and of its values."""
        return self.kv_heads * self.head_dim


class Shape(NamedTuple):
    """Counts that buffers, pages and kernels are sized by. A config says what a whole model has; this, what is here.

    hidden_size        the residual stream, whole wherever it is
    attention          of each layer that has some: query and key/value heads computed here, as many of the former for
                       each of the latter
    intermediate_size  rows of gate_proj and up_proj computed here, in layers without experts, of those that differ the
                       most; 0: all have some
    vocab_size         rows of lm_head computed here
    rotated            elements of a head that each kind of rotation among the layers turns
    experts            of a layer that has some, or 0
    chosen             experts that a token goes to
    expert_size        rows of an expert's gate_proj and up_proj
    beside             whether a layer has experts beside an mlp
    per_layer_size     what a token has for each layer beside x, or 0
    gated              whether the result of attention has a gate, which q_proj makes beside the queries
    state_floats       what a text carries from token to token, in all layers that do
    input_floats       what that depends on, of a token
    recurrent          buffer -> columns, of what these layers compute
    ranked             what is gathered from all ranks, where a model is shared; None: all of it is here
    """

    hidden_size: int
    attention: tuple[Heads, ...]
    intermediate_size: int
    vocab_size: int
    rotated: tuple[int, ...] = ()
    experts: int = 0
    chosen: int = 0
    expert_size: int = 0
    per_layer_size: int = 0
    beside: bool = False
    gated: bool = False
    state_floats: int = 0
    input_floats: int = 0
    recurrent: tuple[tuple[str, int], ...] = ()
    ranked: Ranked | None = None

    @classmethod
    def whole(cls, config: Config) -> "Shape":
        """All of a model."""
        return cls._of_layers(config, layers_of(config), config.vocab_size)

    @classmethod
    def of_share(cls, config: Config, share: Share) -> "Shape":
        """What a rank computes of it."""
        whole = cls.whole(config)
        ranked = Ranked(
            q=whole.q_size,
            kv=whole.kv_size,
            inner=whole.intermediate_size,
            hidden=len(share.hidden),
            expert=whole.expert_size,
            recurred=dict(whole.recurrent).get("recurred", 0),
            own=len(share.per_layer),
        )
        local = cls._of_layers(config, local_layers(layers_of(config), share), len(share.vocab))
        return local._replace(ranked=ranked)

    @classmethod
    def _of_layers(cls, config: Config, layers: tuple[Layer, ...], vocab_size: int) -> "Shape":
        mlps = [layer.mlp for layer in layers]
        experts = next((layer.experts for layer in layers if layer.experts), None)
        attending = attentions(layers)
        carrying = [layer.mixer for layer in layers if not isinstance(layer.mixer, Attention)]
        return cls(
            hidden_size=config.hidden_size,
            attention=tuple(
                Heads(mixer.heads, mixer.kv_heads, mixer.head_dim, number if mixer.source is None else mixer.source)
                for number, mixer in enumerate(attending)
            ),
            intermediate_size=max((mlp.gate.rows for mlp in mlps if isinstance(mlp, Mlp)), default=0),
            vocab_size=vocab_size,
            rotated=tuple(rope.dim for rope in kinds_of_rope(layers)),
            experts=experts.count if experts else 0,
            chosen=experts.chosen if experts else 0,
            expert_size=experts.gate.rows if experts else 0,
            per_layer_size=config.hidden_size_per_layer_input,
            beside=any(layer.beside for layer in layers),
            gated=any(mixer.gated for mixer in attending),
            state_floats=sum(mixer.state_floats for mixer in carrying),
            input_floats=sum(mixer.input_floats for mixer in carrying),
            recurrent=_widths(layers),
        )

    @property
    def layers(self) -> int:
        """Those with attention."""
        return len(self.attention)

    @property
    def q_size(self) -> int:
        """Columns of the queries of a token, in the layer that has most."""
        return max(of.q_size for of in self.attention)

    @property
    def kv_size(self) -> int:
        """Columns of the keys of a token, and of its values, in the layer that has most."""
        return max(of.kv_size for of in self.attention)
