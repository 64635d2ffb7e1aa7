"""The names under which people ask for quantized files -> the storage format of every tensor.

A name means a mixture: most matrices in one format, those where errors cost most in a finer one. The mixtures are those
that llama.cpp's quantizer makes under the same names (src/llama-quant.cpp, llama_tensor_get_type_impl), so that a file
is what its name promises; here they are rows of a table. Knows GGUF's names of tensors, and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from pyllama.checkpoint.dtypes import DTYPES
from pyllama.errors import RequestError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a matrix stands in its model, as far as mixtures look at it.

    layer, layers  its layer's number, and how many there are
    groups         query heads that share a key/value head
    calibrated     importance weights are used
    """

    layer: int
    layers: int
    groups: int
    calibrated: bool

    def first(self, share: int) -> bool:
        """Whether it is in the first 1/share of the layers."""
        return self.layer < self.layers // share


Condition = Callable[[Place], bool]


def _always(place: Place) -> bool:
    return True


def _delicate(place: Place) -> bool:
    """The first and last eighth of the layers, and every third between: where more bits help most."""
    layer, layers = place.layer, place.layers
    return place.first(8) or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _eighth(place: Place) -> bool:
    return place.first(8)


def _grouped(place: Place) -> bool:
    return place.groups >= 4  # values are small then: more bits cost next to nothing


def _eighth_by_weights(place: Place) -> bool:
    return place.first(8) and place.calibrated


def _eighth_without_weights(place: Place) -> bool:
    return place.first(8) and not place.calibrated


#: kind of matrix -> rules in order, the first that holds decides: (condition, storage format).
Rules = Mapping[str, tuple[tuple[Condition, str], ...]]


@dataclass(frozen=True, slots=True)
class FileType:
    """A mixture.

    name    as people write it, in capitals
    number  general.file_type
    dtype   of every matrix that no rule is about
    rules   by kind: attn_v, attn_output, ffn_down
    """

    name: str
    number: int
    dtype: str
    rules: Rules = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        return DTYPES[self.dtype][0] == 1


_FILE_TYPES = (
    FileType("F32", 0, "F32"),
    FileType("F16", 1, "F16"),
    FileType("BF16", 32, "BF16"),
    FileType("Q4_0", 2, "Q4_0", {"ffn_down": ((_eighth_by_weights, "Q4_1"),)}),
    FileType("Q4_1", 3, "Q4_1"),
    FileType("Q5_0", 8, "Q5_0", {"ffn_down": ((_eighth_by_weights, "Q5_1"),)}),
    FileType("Q5_1", 9, "Q5_1"),
    FileType("Q8_0", 7, "Q8_0"),
    FileType("Q2_K", 10, "Q2_K", {
        "attn_v": ((_grouped, "Q4_K"), (_always, "Q3_K")),
        "attn_output": ((_always, "Q3_K"),),
        "ffn_down": ((_always, "Q3_K"),),
    }),
    FileType("Q3_K_S", 11, "Q3_K"),
    FileType("Q3_K_M", 12, "Q3_K", {
        "attn_v": ((lambda place: place.layer < 2, "Q5_K"), (_always, "Q4_K")),
        "attn_output": ((_always, "Q4_K"),),
        "ffn_down": ((lambda place: place.first(16), "Q5_K"), (_always, "Q4_K")),
    }),
    FileType("Q3_K_L", 13, "Q3_K", {
        "attn_v": ((_always, "Q5_K"),),
        "attn_output": ((_always, "Q5_K"),),
        "ffn_down": ((_always, "Q5_K"),),
    }),
    FileType("Q4_K_S", 14, "Q4_K", {
        "attn_v": ((lambda place: place.layer < 4, "Q5_K"),),
        "ffn_down": ((_eighth, "Q5_K"),),
    }),
    FileType("Q4_K_M", 15, "Q4_K", {
        "attn_v": ((_delicate, "Q6_K"),),
        "ffn_down": ((_delicate, "Q6_K"),),
    }),
    FileType("Q5_K_S", 16, "Q5_K"),
    FileType("Q5_K_M", 17, "Q5_K", {
        "attn_v": ((_delicate, "Q6_K"),),
        "ffn_down": ((_delicate, "Q6_K"),),
    }),
    FileType("Q6_K", 18, "Q6_K"),
    FileType("IQ4_NL", 25, "IQ4_NL", {
        "attn_v": ((_grouped, "Q5_K"),),
        "ffn_down": ((_eighth_without_weights, "Q5_K"),),
    }),
    FileType("IQ4_XS", 30, "IQ4_XS", {
        "attn_v": ((_grouped, "Q5_K"),),
        "ffn_down": ((_eighth_without_weights, "Q5_K"),),
    }),
)  # fmt: skip

FILE_TYPES = {file_type.name: file_type for file_type in _FILE_TYPES}
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
#: What --type takes, in small letters.
NAMES = tuple(name.lower() for name in (*FILE_TYPES, *_ALIASES))

#: Where a matrix's columns are no whole number of a format's blocks.
_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}

# With 80 layers, values of 8 key/value heads are an eighth of the queries: finer formats for all of them.
_LARGE_LAYERS = 80
_LARGE_FAMILIES = ("llama", "qwen2")


#: Routers and convolutions cost next to nothing.
_ALWAYS_F32 = (
    ".ffn_gate_inp.weight",
    ".ffn_gate_inp_shexp.weight",
    ".bias",
    ".ssm_conv1d.weight",
    ".shortconv.conv.weight",
)


def file_type(name: str) -> FileType:
    """The mixture of a name, however it is written. Raises RequestError."""
    upper = str(name).upper().replace("-", "_")
    found = FILE_TYPES.get(_ALIASES.get(upper, upper))
    if found is None:
        raise RequestError(f"type: {str(name)[:40]!r}, expected one of {', '.join(NAMES)}")
    return found


def tensor_types(
    wanted: FileType,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    architecture: str,
    layers: int,
    groups: int,
    calibrated: bool = False,
) -> dict[str, str]:
    """name -> storage format, for every tensor of a file.

    shapes        under GGUF's names: blk.0.attn_q.weight
    architecture  general.architecture

    Vectors and routers are F32. The head is Q6_K, or Q8_0 where the rest is; so is an embedding that is the head as
    well.
    """
    head = "output.weight" if "output.weight" in shapes else "token_embd.weight"
    found = {}
    for name, shape in shapes.items():
        if len(shape) == 1 or name.endswith(_ALWAYS_F32):
            found[name] = "F32"
            continue
        dtype = wanted.dtype
        if not wanted.is_plain:
            if name == head:
                dtype = _of_head(dtype, shape[-1])
            elif name.startswith("blk."):
                place = Place(int(name.split(".")[1]), layers, groups, calibrated)
                kind = name.split(".")[2].removesuffix("_exps").removesuffix("_shexp")  # of experts as of the one block
                dtype = next((finer for holds, finer in wanted.rules.get(kind, ()) if holds(place)), dtype)
                large = layers == _LARGE_LAYERS and architecture in _LARGE_FAMILIES
                if kind == "attn_v" and large and dtype in ("Q3_K", "Q4_K"):
                    dtype = "Q5_K"
            dtype = fitting(dtype, shape[-1])
        found[name] = dtype
    return found


def _of_head(dtype: str, cols: int) -> str:
    if cols % DTYPES[dtype][0]:
        return "Q8_0"
    return dtype if dtype == "Q8_0" else "Q6_K"


def fitting(dtype: str, cols: int) -> str:
    """The format, or the nearest whose blocks divide `cols` columns."""
    if cols % DTYPES[dtype][0] == 0:
        return dtype
    smaller = _FALLBACK.get(dtype, dtype)
    return smaller if cols % DTYPES[smaller][0] == 0 else "F16"


def loses(dtypes: Iterable[str]) -> bool:
    """Whether weights of these formats have lost something already."""
    return any(DTYPES[dtype][0] > 1 for dtype in dtypes)
