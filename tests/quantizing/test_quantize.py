"""GGUF files made of every form of checkpoint: the same model in fewer bits, whatever memory and threads there were."""

import importlib
import json
import os
import struct

import conftest
import numpy as np
import pytest
import tiny

from pyllama import _kernels, load
from pyllama.checkpoint import open_checkpoint
from pyllama.cli import main
from pyllama.errors import BudgetError, CheckpointError, RequestError, UnsupportedError
from pyllama.packing import pack
from pyllama.quantizing import quantize
from pyllama.quantizing.types import NAMES, file_type
from pyllama.quantizing.warning import QuantizeWarning

WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
IDS = [3, 17, 8, 99, 42, 5, 61, 30, 7, 7, 12]


def logits(path):
    with load(path, memory="4G", kv_dtype="f32") as model:
        sequence = model.decoder.new_sequence()
        return model.decoder.forward([(sequence, IDS)], logits="all")


def stored(path):
    """name -> (dtype, bytes) of every tensor, under our names."""
    with open_checkpoint(path) as checkpoint:
        return {
            name: (tensor.dtype, checkpoint.read_rows(tensor, 0, tensor.rows).tobytes())
            for name, tensor in checkpoint.tensors.items()
        }


def model(folder, kind, form="huggingface", seed=0, dtype="BF16", **config):
    config = tiny.tiny_config(model_type=kind, **config)
    tensors = tiny.random_tensors(config, seed, dtype)
    if form == "gguf":
        return tiny.write_gguf(folder.with_suffix(".gguf"), config, tensors, dtype, extra=NO_TOKENIZER)
    if form == "split":
        return tiny.write_gguf(folder / "m.gguf", config, tensors, dtype, split=3, extra=NO_TOKENIZER)
    if form.startswith("meta"):
        return tiny.write_meta(folder, config, tensors, dtype=dtype, shards=int(form[4:]))
    return tiny.write_huggingface(folder, config, tensors, dtype=dtype, shards=3 if form == "sharded" else 1)


NO_TOKENIZER = {"tokenizer.ggml.model": "no_vocab"}
SCALED = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn, its own magnitude": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128,
                                "attention_factor": 1.5, "beta_fast": 16.0, "beta_slow": 2.0},
}  # fmt: skip


# The same model


@pytest.mark.filterwarnings("ignore::pyllama.quantizing.warning.QuantizeWarning")
@pytest.mark.parametrize("kind", tiny.FAMILIES)
@pytest.mark.parametrize("form", ["huggingface", "sharded", "gguf", "split"])
def test_f32_has_the_very_logits_of_its_source(tmp_path, kind, form):
    source = model(tmp_path / "source", kind, form, tie_word_embeddings=kind.startswith(("qwen2", "gemma")))
    path = quantize(source, tmp_path / "made.gguf", "f32")
    made, own = logits(path), logits(source)
    if kind.startswith("qwen3_5") and form in ("huggingface", "sharded"):  # value heads, and so a sum, in another order
        assert np.abs(made - own).max() <= 1e-5 * np.abs(own).max()
    else:
        assert np.array_equal(made, own)
    assert {dtype for dtype, _ in stored(path).values()} == {"F32"}


@pytest.mark.filterwarnings("ignore::pyllama.quantizing.warning.QuantizeWarning")
def test_as_many_key_heads_as_value_heads_have_one_order(tmp_path):
    source = model(tmp_path / "source", "qwen3_5_text", linear_num_key_heads=6)
    assert np.array_equal(logits(quantize(source, tmp_path / "made.gguf", "f32")), logits(source))


@pytest.mark.filterwarnings("ignore::pyllama.quantizing.warning.QuantizeWarning")
@pytest.mark.parametrize("form", ["meta1", "meta2", "packed huggingface", "packed gguf", "packed meta2"])
def test_other_forms(tmp_path, form):
    config = {"vocab_size": 102, "num_key_value_heads": 2} if "meta" in form else {"attention_bias": True}
    source = model(tmp_path / "source", "llama", form.removeprefix("packed "), **config)
    if form.startswith("packed"):
        source = pack(source, tmp_path / "packed")
    path = quantize(source, tmp_path / "made.gguf", "f32")
    assert np.array_equal(logits(path), logits(source))


@pytest.mark.filterwarnings("ignore::pyllama.quantizing.warning.QuantizeWarning")
def test_biases_everywhere_and_a_window(tmp_path):
    source = model(tmp_path / "llama", "llama", attention_bias=True, mlp_bias=True, num_key_value_heads=2)
    assert np.array_equal(logits(quantize(source, tmp_path / "a.gguf", "f32")), logits(source))
    source = model(tmp_path / "mistral", "mistral", sliding_window=4)
    path = quantize(source, tmp_path / "b.gguf", "f32")
    assert np.array_equal(logits(path), logits(source))
    with open_checkpoint(path) as made:
        assert made.config.layer_windows == (4, 4) and made.config.model_type == "llama"


@pytest.mark.filterwarnings("ignore::pyllama.quantizing.warning.QuantizeWarning")
@pytest.mark.parametrize("name", sorted(SCALED))
def test_rotary_scaling(tmp_path, name):
    source = model(tmp_path / "source", "llama", rope_scaling=SCALED[name])
    path = quantize(source, tmp_path / "made.gguf", "f32")
    made, own = logits(path), logits(source)
    if "magnitude" in name:  # a float32 in the file, of a float64
        np.testing.assert_allclose(made, own, rtol=0, atol=1e-4 * np.abs(own).max())
    else:
        assert np.array_equal(made, own)


@pytest.mark.filterwarnings("ignore::pyllama.quantizing.warning.QuantizeWarning")
def test_llama_3s_scaling_becomes_a_tensor(tmp_path):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}  # fmt: skip
    config = {"rope_scaling": scaling, "head_dim": 16, "num_attention_heads": 3, "num_key_value_heads": 1}
    source = model(tmp_path / "source", "llama", **config)
    path = quantize(source, tmp_path / "made.gguf", "f32")
    reference = model(tmp_path / "reference", "llama", "gguf", **config)
    with open_checkpoint(path) as made, open_checkpoint(reference) as other:
        np.testing.assert_allclose(
            made.config.rope_scaling.factors, other.config.rope_scaling.factors, rtol=2e-7, atol=0
        )
        assert max(made.config.rope_scaling.factors) == 8.0
    again = quantize(path, tmp_path / "again.gguf", "f32")
    assert again.read_bytes() == path.read_bytes()
    with pytest.raises(UnsupportedError, match="rope_scaling: 'llama3' has no name in a GGUF file of the architecture"):
        quantize(model(tmp_path / "qwen", "qwen3", **config), tmp_path / "qwen.gguf", "f32")


def test_what_a_gguf_file_cannot_say_is_refused(tmp_path):
    for kind, config, message in (
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding window in qwen2"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "layer_windows: "),
        ("llama", {"rope_scaling": {**SCALED["yarn"], "truncate": False}}, "rope_scaling: these parameters of 'yarn'"),
    ):
        source = model(tmp_path / f"{kind}-{message[:3]}", kind, **config)
        with pytest.raises(UnsupportedError, match=message):
            quantize(source, tmp_path / "made.gguf", "q8_0")
        assert not list(tmp_path.glob("made*"))


# Every type


@pytest.mark.filterwarnings("ignore::pyllama.quantizing.warning.QuantizeWarning")
@pytest.mark.parametrize("name", NAMES)
def test_every_type(tmp_path, name):
    """Each tensor's bytes are the kernel's, of rows in llama.cpp's order; and what is made runs."""
    source = model(tmp_path / "source", "llama", **WIDE)
    path = quantize(source, tmp_path / "made.gguf", name)
    plain = stored(quantize(source, tmp_path / "plain.gguf", "f32"))
    with open_checkpoint(path) as made:
        assert made.metadata["general.file_type"] == file_type(name).number
        assert made.metadata["general.quantization_version"] == 2
        assert made.dtype in (file_type(name).dtype, "F32")
        for tensor_name, (dtype, data) in stored(path).items():
            weights = np.frombuffer(plain[tensor_name][1], np.float32)
            shape = made.tensors[tensor_name].shape
            if len(shape) == 1 or dtype == "F32":
                assert dtype == "F32" and data == weights.tobytes()
            elif dtype == "BF16":
                assert data == tiny.encode_plain("BF16", weights)
            else:
                expected = np.empty(len(data), np.uint8)
                _kernels.quantize(dtype, weights.reshape(shape).copy(), None, expected)
                assert data == expected.tobytes()
    assert np.isfinite(logits(path)).all()


@pytest.mark.filterwarnings("ignore::pyllama.quantizing.warning.QuantizeWarning")
@pytest.mark.parametrize("kind", tiny.FAMILIES)
def test_the_file_does_not_depend_on_memory_threads_or_form(tmp_path, kind):
    source = model(tmp_path / "source", kind, **WIDE)
    first = quantize(source, tmp_path / "first.gguf", "q4_k_m", threads=1)
    expected = first.read_bytes()
    packed = pack(source, tmp_path / "packed")
    for number, (other, options) in enumerate(
        ((source, {"threads": 3}), (source, {"memory": "1G"}), (packed, {}), (packed, {"threads": 3}))
    ):
        path = quantize(other, tmp_path / f"{number}.gguf", "q4_k_m", **options)
        made = path.read_bytes()
        if other is packed:  # it is called after its folder
            assert stored(path) == stored(first)
        else:
            assert made == expected


def test_pieces_of_a_row_make_the_same_file(tmp_path, monkeypatch):
    source = model(tmp_path / "source", "qwen3", "gguf", **WIDE)
    expected = quantize(source, tmp_path / "a.gguf", "q5_k_m").read_bytes()
    monkeypatch.setattr(importlib.import_module("pyllama.quantizing.quantize"), "_PIECES", (1,))
    assert quantize(source, tmp_path / "b.gguf", "q5_k_m").read_bytes() == expected


def test_weights_in_the_wanted_format_are_taken_as_they_are(tmp_path):
    config = tiny.tiny_config(**WIDE)
    source = tiny.write_gguf(
        tmp_path / "a.gguf", config, tiny.random_tensors(config), "Q8_0", extra=NO_TOKENIZER | {"my.key": 7}
    )
    path = quantize(source, tmp_path / "b.gguf", "q8_0")
    assert stored(path) == stored(source)
    with open_checkpoint(path) as made:
        assert made.metadata["my.key"] == 7
    with pytest.warns(QuantizeWarning, match=r"quantized already \(Q8_0\): what that lost stays lost"):
        path = quantize(source, tmp_path / "c.gguf", "q4_0")
    assert stored(path)["model.layers.0.mlp.up_proj.weight"][0] == "Q4_0"


def test_key_values_of_a_gguf_source_stay_as_they_are(tmp_path):
    """With the types they have, in their order; those of a split go."""
    extra = NO_TOKENIZER | {
        "general.alignment": 64, "general.file_type": 32, "a.float": 0.1, "a.list": ["x", "\u00e9"], "a.negative": -3,
        "an.array": np.array([1, 2], "<i4"), "a.flag": True,
    }  # fmt: skip
    config = tiny.tiny_config()
    tensors = tiny.random_tensors(config)
    source = tiny.write_gguf(tmp_path / "s" / "m.gguf", config, tensors, split=2, extra=extra, alignment=64)
    path = quantize(source, tmp_path / "made.gguf", "f16")
    with open_checkpoint(source) as before, open_checkpoint(path) as after:
        ours, theirs = ({k: str(v) for k, v in c.metadata.items()} for c in (after, before))
        assert ours.pop("general.file_type") == "1" and ours.pop("general.quantization_version") == "2"
        theirs = {k: v for k, v in theirs.items() if not k.startswith("split.") and k != "general.file_type"}
        assert {k: v for k, v in ours.items() if "list" not in k} == {
            k: v for k, v in theirs.items() if "list" not in k
        }
        assert list(after.metadata["a.list"]) == ["x", "\u00e9"]
    assert b"a.negative" + struct.pack("<Ii", 5, -3) in path.read_bytes()


def test_layers_that_guess_tokens_are_not_announced_where_they_are_left_out(tmp_path):
    """A reader that wants them would look in vain: block_count and lists of a value a layer go by what is there."""
    config = tiny.tiny_config(model_type="lfm2_moe")
    kv_heads = np.array([0, 3, 0, 3, 3], "<i4")
    more = {"block_count": 5, "nextn_predict_layers": 1, "attention.head_count_kv": kv_heads}
    extra = NO_TOKENIZER | {f"lfm2moe.{key}": value for key, value in more.items()}
    source = tiny.write_gguf(tmp_path / "s.gguf", config, tiny.random_tensors(config), extra=extra)
    with open_checkpoint(source) as before, open_checkpoint(quantize(source, tmp_path / "made.gguf", "f16")) as after:
        assert after.config == before.config
        assert "lfm2moe.nextn_predict_layers" not in after.metadata
        assert after.metadata["lfm2moe.block_count"] == 4
        assert after.metadata["lfm2moe.attention.head_count_kv"].tolist() == [0, 3, 0, 3]


@pytest.mark.filterwarnings("ignore::pyllama.quantizing.warning.QuantizeWarning")
def test_the_gguf_package_reads_all_of_it_back(tmp_path):
    gguf = pytest.importorskip("gguf")
    conftest.write_model(tmp_path, vocab_size=320, **WIDE)
    path = quantize(tmp_path, tmp_path / "made.gguf", "q4_k_m")
    reader = gguf.GGUFReader(path)
    assert reader.fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert reader.fields["tokenizer.ggml.tokens"].contents()[conftest.BEGIN] == "<|begin|>"
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == 320
    ours = stored(path)
    names = {name: tiny.gguf_name(name) for name in ours}
    read = {tensor.name: tensor for tensor in reader.tensors}
    assert set(read) == set(names.values())
    for name, (dtype, data) in ours.items():
        tensor = read[names[name]]
        assert tensor.tensor_type.name == dtype and tensor.data.tobytes() == data
        widened = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(widened.reshape(-1), tiny.dequantize(dtype, data))


# What is wrong is told


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_by_tensor_and_row(tmp_path, kind, value):
    config = tiny.tiny_config(model_type=kind)
    tensors = tiny.random_tensors(config, dtype="F32")
    tensors["model.layers.1.self_attn.q_proj.weight"][13, 5] = value
    source = tiny.write_huggingface(tmp_path / "source", config, tensors, dtype="F32")
    with (
        pytest.warns(QuantizeWarning),
        pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.q_proj\.weight: row 13 "),
    ):
        quantize(source, tmp_path / "made.gguf", "q8_0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.filterwarnings("ignore::pyllama.quantizing.warning.QuantizeWarning")
def test_what_float16_does_not_hold_is_refused(tmp_path):
    config = tiny.tiny_config()
    tensors = tiny.random_tensors(config, dtype="F32")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = -70000.0
    source = tiny.write_huggingface(tmp_path / "source", config, tensors, dtype="F32")
    with pytest.raises(CheckpointError, match="up_proj.weight: a weight of 70000 is beyond float16's 65504; take bf16"):
        quantize(source, tmp_path / "made.gguf", "f16")
    assert quantize(source, tmp_path / "made.gguf", "bf16").exists()


def test_a_damaged_packed_source_is_told(tmp_path):
    source = model(tmp_path / "source", "llama", **WIDE)
    packed = pack(source, tmp_path / "packed")
    with open_checkpoint(packed) as checkpoint:
        blocks = {name: checkpoint.tensors[name].blocks[0] for name in
                  ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight")}  # fmt: skip
    for name, block in blocks.items():
        data = bytearray(block.file.read_bytes())
        data[block.offset + 700] ^= 4
        before = block.file.read_bytes()
        block.file.write_bytes(data)
        with pytest.warns(QuantizeWarning), pytest.raises(CheckpointError, match=f"{name}: rows 0 to .* are damaged"):
            quantize(packed, tmp_path / "made.gguf", "q8_0")
        block.file.write_bytes(before)


def test_arguments(tmp_path):
    source = model(tmp_path / "source", "llama", "gguf")
    with pytest.raises(RequestError, match="type: 'q9', expected one of f32, "):
        quantize(source, tmp_path / "made.gguf", "q9")
    with pytest.raises(RequestError, match=r"source.gguf: already there, expected the name of a file to be made"):
        quantize(source, source, "q8_0")
    with pytest.raises(RequestError, match="no folder .*/nowhere, expected one to put the file in"):
        quantize(source, tmp_path / "nowhere" / "made.gguf", "q8_0")
    with pytest.raises(BudgetError, match=r"memory: 21 MB, quantizing this model needs at least [0-9]+ MB"):
        quantize(source, tmp_path / "made.gguf", "q8_0", memory="20M")
    with pytest.raises(RequestError, match="threads"):
        quantize(source, tmp_path / "made.gguf", "q8_0", threads=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.gguf"]


def test_the_command(tmp_path, capsys):
    source = model(tmp_path / "source", "llama", "gguf")
    assert main(["quantize", str(source), str(tmp_path / "made.gguf"), "--type", "Q8_0", "--quiet"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'made.gguf'}\n"
    assert main(["quantize", str(source), str(tmp_path / "made.gguf"), "--type", "q8_0"]) == 2
    assert "already there" in capsys.readouterr().err
    assert main(["quantize", str(source), str(tmp_path / "other.gguf"), "--type", "q8"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pyllama: type: 'q8', expected one of f32, ") and error.count("\n") == 1


def test_names_people_see(tmp_path):
    source = model(tmp_path / "models--a--Tiny-1B" / "snapshots" / ("0" * 40), "llama")
    with pytest.warns(QuantizeWarning):
        path = quantize(source, tmp_path / "made.gguf", "f32")
    with open_checkpoint(path) as made:
        assert made.metadata["general.name"] == "Tiny-1B"
    assert oct(os.stat(path).st_mode & 0o777) == oct(0o666 & ~current_umask())
    assert json.dumps(made.metadata["general.architecture"]) == '"llama"'


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
