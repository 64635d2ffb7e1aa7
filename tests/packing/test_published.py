"""Unpacked, a model of a Hugging Face folder is that folder's tensors again: names, shapes and bytes."""

import json
import struct

import golden
import numpy as np
import pytest
import tiny

from pyllama.checkpoint import open_checkpoint
from pyllama.decoder import Decoder
from pyllama.packing import pack, unpack
from pyllama.packing.published import CODES, SCALES, group_bytes
from pyllama.streaming import StreamedWeights

IDS = [1, 5, 9, 30, 77, 2, 60]
#: Those whose folders have one tensor for several of ours, or a name without .weight that is not given back.
OTHERWISE = ("phi3", "granitemoe", "granitemoehybrid", "mixtral", "lfm2_moe", *tiny.GEMMA4)


def tensors_of(folder):
    """name -> (dtype, shape, bytes) of a folder with one file."""
    data = (folder / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__")
    at = 8 + size
    return {
        name: (of["dtype"], of["shape"], data[at + of["data_offsets"][0] : at + of["data_offsets"][1]])
        for name, of in header.items()
    }


def logits(path):
    with open_checkpoint(path) as checkpoint:
        decoder = Decoder(checkpoint.config, StreamedWeights(checkpoint), context_length=64)
        with decoder.new_sequence() as sequence:
            return decoder.forward([(sequence, IDS)], "all")


@pytest.mark.parametrize("kind", [*tiny.FAMILIES, "gpt_oss"])
def test_what_was_packed_comes_back(tmp_path, kind):
    if kind == "gpt_oss":
        case = golden.load_case("gpt_oss_mxfp4")
        stored = golden.stored_weights(case.config, case.seed)
        source = tiny.write_huggingface(tmp_path / "source", case.huggingface, stored)
    else:
        config = tiny.tiny_config(model_type=kind)
        source = tiny.write_huggingface(tmp_path / "source", config, tiny.random_tensors(config, 3))
    back = unpack(pack(source, tmp_path / "packed"), tmp_path / "back")
    if kind not in OTHERWISE:
        assert tensors_of(back) == tensors_of(source)
    assert np.array_equal(logits(back), logits(source))
    again = unpack(pack(back, tmp_path / "packed again"), tmp_path / "again")
    assert tensors_of(again) == tensors_of(back)


def test_codes_and_scales_are_taken_apart():
    gate = np.arange(34, dtype=np.uint8).reshape(1, 34)  # two blocks
    up = (gate + 100).astype(np.uint8)
    assert group_bytes(SCALES, "MXFP4", [gate, up]).tolist() == [0, 17, 100, 117]
    codes = group_bytes(CODES, "MXFP4", [gate, up]).reshape(4, 16)
    weights = np.stack([codes & 15, codes >> 4], axis=2).reshape(4, 32)
    for block, halves in zip(weights, (gate[0, 1:17], gate[0, 18:], up[0, 1:17], up[0, 18:]), strict=True):
        assert block.tolist() == [*(halves & 15), *(halves >> 4)]
