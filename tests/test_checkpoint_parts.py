"""Stored matrices that hold the rows of several tensors: query, key and value in one, experts in a stack."""

import numpy as np
import pytest

from pyllama.architecture.names import Names
from pyllama.checkpoint.checkpoint import Checkpoint
from pyllama.checkpoint.files import InputFile
from pyllama.checkpoint.index import Part, Tensor, check_overlaps, deal
from pyllama.errors import CheckpointError, UnsupportedError

QKV = tuple(f"self_attn.{name}_proj" for name in "qkv")
EXPERTS = tuple(f"mlp.experts.{number}.up_proj" for number in range(3))
NAMES = Names("blk.", {"embd.weight": "embed.weight"}, {"qkv": QKV, "up_exps": EXPERTS, "norm": "input_layernorm"})
AT = "model.layers.11."
SHAPES = {f"{AT}{name}.weight": (rows, 6) for name, rows in zip(QKV, (8, 4, 4), strict=True)}
SHAPES |= {f"{AT}{name}.bias": (rows,) for name, rows in zip(QKV, (8, 4, 4), strict=True)}
SHAPES |= {f"{AT}{name}.weight": (5, 6) for name in EXPERTS}


def stored(tmp_path, **shapes) -> tuple[dict[str, np.ndarray], Checkpoint]:
    """Tensors one after the other in a file, as float32 of rising numbers."""
    path, arrays, tensors, offset = tmp_path / "weights", {}, {}, 0
    for name, shape in shapes.items():
        arrays[name] = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1000 * len(arrays)
        rows = int(np.prod(shape[:-1]))
        tensors[name] = Tensor(name, "F32", shape, (Part(path, offset, 0, rows, 0, shape[-1]),))
        offset += arrays[name].nbytes
    path.write_bytes(b"".join(array.tobytes() for array in arrays.values()))
    return arrays, Checkpoint(tmp_path, "gguf", None, tensors, {path: InputFile(path)})


def read(checkpoint: Checkpoint, tensor: Tensor) -> np.ndarray:
    return checkpoint.read_rows(tensor, 0, tensor.rows).view(np.float32).reshape(tensor.shape)


def test_fused_rows_are_dealt_in_order(tmp_path):
    shapes = {"blk.11.qkv.weight": (16, 6), "blk.11.qkv.bias": (16,), "blk.11.norm.weight": (6,), "embd.weight": (9, 6)}
    arrays, checkpoint = stored(tmp_path, **shapes)
    dealt = deal(checkpoint.tensors, NAMES, SHAPES, "a test")
    whole, bias = arrays["blk.11.qkv.weight"], arrays["blk.11.qkv.bias"]
    for name, first, last in zip(QKV, (0, 8, 12), (8, 12, 16), strict=True):
        assert np.array_equal(read(checkpoint, dealt[f"{AT}{name}.weight"]), whole[first:last])
        assert np.array_equal(read(checkpoint, dealt[f"{AT}{name}.bias"]), bias[first:last])
    two = checkpoint.read_rows(dealt[f"{AT}self_attn.k_proj.weight"], 1, 2)
    assert np.array_equal(two.view(np.float32), whole[9:11])
    assert dealt[f"{AT}input_layernorm.weight"].shape == (6,) and dealt["embed.weight"].shape == (9, 6)
    assert len(dealt) == 8
    check_overlaps(dealt.values())


def test_experts_of_a_stack_are_matrices_of_their_own(tmp_path):
    arrays, checkpoint = stored(tmp_path, **{"blk.11.up_exps.weight": (3, 5, 6)})
    dealt = deal(checkpoint.tensors, NAMES, SHAPES, "a test")
    assert list(dealt) == [f"{AT}{name}.weight" for name in EXPERTS]
    for number, tensor in enumerate(dealt.values()):
        assert tensor.shape == (5, 6)
        assert np.array_equal(read(checkpoint, tensor), arrays["blk.11.up_exps.weight"][number])


@pytest.mark.parametrize("shape", [(15, 6), (17, 6), (2, 16, 6)])
def test_rows_missing_or_over_are_an_error(tmp_path, shape):
    _, checkpoint = stored(tmp_path, **{"blk.11.qkv.weight": shape})
    with pytest.raises(CheckpointError, match="blk.11.qkv.weight'?: shape .* expected 16 rows for"):
        deal(checkpoint.tensors, NAMES, SHAPES, "a test")


def test_a_tensor_stored_alone_and_fused_is_an_error(tmp_path):
    _, checkpoint = stored(tmp_path, **{"blk.11.qkv.weight": (16, 6), "blk.11.k.weight": (4, 6)})
    twice = Names("blk.", {}, {**NAMES.inner, "k": "self_attn.k_proj"})
    with pytest.raises(CheckpointError, match="k_proj.weight'?: stored twice"):
        deal(checkpoint.tensors, twice, SHAPES, "a test")


def test_foreign_tensors_are_refused_or_keep_their_names(tmp_path):
    _, checkpoint = stored(tmp_path, **{"blk.11.other.weight": (4, 6)})
    with pytest.raises(UnsupportedError, match="blk.11.other.weight': not a tensor of a test"):
        deal(checkpoint.tensors, NAMES, SHAPES, "a test")
    assert list(deal(checkpoint.tensors, NAMES, SHAPES)) == ["blk.11.other.weight"]
