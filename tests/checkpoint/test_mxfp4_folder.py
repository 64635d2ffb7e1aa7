"""gpt-oss as published, in MXFP4: every weight, the answers of transformers, the same bits as GGUF, packed, from any
budget; and folders that cannot be."""

from itertools import pairwise
from pathlib import Path

import mxfp4_folder
import numpy as np
import pytest
import tiny
from golden import load_case, stored_weights

from pyllama import _kernels as kernels
from pyllama.checkpoint import open_checkpoint
from pyllama.decoder import Decoder
from pyllama.errors import PyllamaError
from pyllama.packing.pack import pack
from pyllama.packing.verify import verify
from pyllama.quantizing import quantize
from pyllama.streaming import StreamedWeights
from pyllama.streaming.experts import LEAST_SLOTS

GOLDEN = load_case("gpt_oss_mxfp4")
STORED = stored_weights(GOLDEN.config, GOLDEN.seed)
FIRST = "model.layers.0.mlp.experts."


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("gpt-oss")
    tiny.write_huggingface(root / "one", GOLDEN.huggingface, STORED)
    tiny.write_huggingface(root / "three", GOLDEN.huggingface, STORED, shards=3)
    pack(root / "three", root / "packed")
    (root / "m.gguf").write_bytes(gguf())
    pack(root / "m.gguf", root / "gguf-packed")
    return root


def gguf() -> bytes:
    """The same weights in the same formats as a converter writes them: a row's codes i and 16 + i in one byte."""
    plain = {name: values for name, values in STORED.items() if values.dtype != np.uint8}
    stored = tiny.gguf_tensors(GOLDEN.huggingface_v4, plain, "BF16")
    for name, codes in STORED.items():
        if not name.endswith("_blocks"):
            continue
        scales = STORED[name.replace("_blocks", "_scales")]
        each = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], 32)
        blocks = np.concatenate([scales[..., None], each[..., :16] | each[..., 16:] << 4], axis=-1)
        layer = f"blk.{name.split('.')[2]}.ffn_"
        kinds = {"gate": blocks[:, 0::2], "up": blocks[:, 1::2]} if "gate_up" in name else {"down": blocks}
        for kind, rows in kinds.items():
            shape = (*rows.shape[:2], rows.shape[2] * 32)
            stored.append((f"{layer}{kind}_exps.weight", "MXFP4", shape, np.ascontiguousarray(rows).tobytes()))
    return tiny.gguf_bytes(tiny.gguf_metadata(GOLDEN.huggingface_v4), stored)


def run(path: Path, steps=(), **options):
    ids = GOLDEN.tokens
    with open_checkpoint(path) as checkpoint:
        weights = StreamedWeights(checkpoint, **options)
        try:
            decoder = Decoder(checkpoint.config, weights, context_length=128, kv_dtype="f32")
            with decoder.new_sequence() as sequence:
                cuts = [0, *steps, len(ids)]
                rows = [decoder.forward([(sequence, ids[a:b])], "all") for a, b in pairwise(cuts)]
            return np.concatenate(rows), weights.expert_counters
        finally:
            weights.close()


def same_bits(a, b):
    return a.shape == b.shape and bool((a.view(np.uint32) == b.view(np.uint32)).all())


def all_rows(checkpoint, name):
    tensor = checkpoint.tensors[name]
    return checkpoint.read_rows(tensor, 0, tensor.rows)


@pytest.mark.parametrize("form", ["one", "three"])
def test_every_weight_is_the_one_that_transformers_reads(models, form):
    with open_checkpoint(models / form) as checkpoint:
        for name, tensor in checkpoint.tensors.items():
            if ".experts." not in name:
                continue
            _, _, layer, _, _, number, kind, ending = name.split(".")
            prefix = f"model.layers.{layer}.mlp.experts."
            held = (
                f"{prefix}{'down_proj' if kind == 'down_proj' else 'gate_up_proj'}{'_bias' if ending == 'bias' else ''}"
            )
            wanted = GOLDEN.tensors[held][int(number)].T  # rows in front
            if kind != "down_proj":
                wanted = wanted[0 if kind == "gate_proj" else 1 :: 2]
            out = np.empty(tensor.shape if ending == "weight" else (1, *tensor.shape), np.float32)
            raw = checkpoint.read_rows(tensor, 0, tensor.rows).reshape(-1)
            kernels.widen(kernels.Matrix(tensor.dtype, tensor.rows, tensor.cols, raw), out)
            assert (out.reshape(tensor.shape) == wanted).all(), name
            if ending == "weight":  # any rows of it
                assert (
                    checkpoint.read_rows(tensor, 5, 7).reshape(-1) == raw.reshape(tensor.rows, -1)[5:12].reshape(-1)
                ).all()


def test_greedy_tokens_are_those_of_transformers(models):
    assert GOLDEN.greedy_of(run(models / "one")[0]) == GOLDEN.greedy


@pytest.mark.parametrize("form", ["three", "packed", "m.gguf", "gguf-packed"])
def test_every_form_has_the_same_bits(models, form):
    assert same_bits(run(models / form)[0], run(models / "one")[0])


def test_no_budget_changes_a_bit(models):
    whole, counted = run(models / "three", steps=range(60, 87))
    assert counted.hits > 0
    for slots in (LEAST_SLOTS, LEAST_SLOTS + 1, 9, 1000):
        for room in (0, 9_000, 1 << 40):
            got, seen = run(models / "three", steps=range(60, 87), expert_slots=slots, expert_room=room)
            assert same_bits(got, whole), (slots, room)
            assert seen.asked == counted.asked
            if room == 1 << 40 and slots == 1000:
                one = 3 * 64 * 96 * 17 // 32
                assert seen.nbytes == one * (seen.asked - seen.hits)  # gate and up in one read, not each in two


def test_packed_is_sound(models):
    for form in ("packed", "gguf-packed"):
        assert verify(models / form).damage == []


def test_quantized_it_is_each_expert_quantized(models, tmp_path):
    made = [quantize(models / form, tmp_path / f"{form}.gguf", "q8_0") for form in ("one", "m.gguf")]
    with open_checkpoint(made[0]) as one, open_checkpoint(made[1]) as other:
        for name in one.tensors:
            assert (all_rows(one, name) == all_rows(other, name)).all(), name
    assert one.tensors[f"{FIRST}2.up_proj.weight"].dtype == "Q8_0"


@pytest.mark.parametrize("rows, blocks, step", [(1, 1, 1), (5, 3, 1), (4, 2, 2), (33, 90, 2)])
def test_codes_and_scales_are_joined_as_the_format_says(rows, blocks, step):
    random = np.random.default_rng(rows)
    codes = random.integers(0, 256, (rows * step, 16 * blocks), dtype=np.uint8)
    scales = random.integers(0, 256, (rows * step, blocks), dtype=np.uint8)
    for phase in range(step):
        out = np.empty((rows, 17 * blocks), np.uint8)
        kernels.join_mxfp4(codes[phase::step], scales[phase::step], out)
        mine, each = codes[phase::step].reshape(rows, blocks, 16), out.reshape(rows, blocks, 17)
        numbers = np.stack([mine & 15, mine >> 4], axis=-1).reshape(rows, blocks, 32)
        assert (each[..., 0] == scales[phase::step]).all()
        assert (each[..., 1:] & 15 == numbers[..., :16]).all() and (each[..., 1:] >> 4 == numbers[..., 16:]).all()
    for shape in ((rows, 17 * blocks + 1), (rows + 1, 17 * blocks)):
        with pytest.raises(PyllamaError, match="join_mxfp4"):
            kernels.join_mxfp4(codes[::step], scales[::step], np.empty(shape, np.uint8))


def altered(change):
    stored = dict(STORED)
    change(stored)
    return stored


BLOCKS, SCALES = f"{FIRST}gate_up_proj_blocks", f"{FIRST}gate_up_proj_scales"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop(SCALES), "its scales are missing"),
        (lambda s: s.pop(BLOCKS), "there are no gate_up_proj_blocks beside it"),
        (lambda s: s.update({SCALES: s[SCALES][:, :, :1]}), r"expected U8 \(experts, rows, columns / 32, 16\)"),
        (lambda s: s.update({BLOCKS: s[BLOCKS].astype(np.float32)}), "expected U8"),
        (lambda s: s.update({BLOCKS: s[BLOCKS][:, 1:], SCALES: s[SCALES][:, 1:]}), "expected U8"),
        (
            lambda s: s.update({BLOCKS: s[BLOCKS][:, 2:], SCALES: s[SCALES][:, 2:]}),
            r"shape \(95, 64\), expected \(96, 64\)",
        ),
        (lambda s: s.update({BLOCKS: s[BLOCKS][1:], SCALES: s[SCALES][1:]}), "missing"),
        (
            lambda s: s.update({f"{FIRST}down_proj_bias": s[f"{FIRST}down_proj_bias"][0]}),
            "expected \\(experts, rows\\)",
        ),
        (lambda s: s.update({f"{FIRST}gate_up_proj": s["lm_head.weight"]}), "input-first"),
        (lambda s: s.update({f"{FIRST}3.up_proj.weight": s["lm_head.weight"]}), "stored twice"),
    ],
)
def test_a_folder_that_cannot_be_is_refused_in_one_line(tmp_path, change, message):
    tiny.write_huggingface(tmp_path / "m", GOLDEN.huggingface, altered(change))
    with pytest.raises(PyllamaError, match=message) as caught:
        open_checkpoint(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_an_expert_cut_off_while_in_use_is_told(models, tmp_path):
    tiny.write_huggingface(tmp_path / "m", GOLDEN.huggingface, STORED)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        weights = StreamedWeights(checkpoint, expert_slots=LEAST_SLOTS)
        decoder = Decoder(checkpoint.config, weights, context_length=64)
        file = tmp_path / "m" / "model.safetensors"
        with file.open("r+b") as f:
            f.truncate(file.stat().st_size // 4)
        with decoder.new_sequence() as sequence, pytest.raises(PyllamaError, match="changed while in use"):
            decoder.forward([(sequence, GOLDEN.prompt)])
        weights.close()


def test_levels_are_those_of_the_format():
    codes = np.arange(16, dtype=np.uint8)
    row = np.concatenate([[127], codes | codes << 4]).astype(np.uint8)
    out = np.empty((1, 32), np.float32)
    kernels.widen(kernels.Matrix("MXFP4", 1, 32, row), out)
    assert (out[0, :16] == mxfp4_folder.LEVELS).all()
