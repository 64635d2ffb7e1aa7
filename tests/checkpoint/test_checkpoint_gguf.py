"""GGUF files: every storage format, splits, alignment, rotary order, vocabularies, and what is refused."""

import struct

import numpy as np
import pytest
import tiny

from pyllama.checkpoint import open_checkpoint
from pyllama.errors import CheckpointError, UnsupportedError

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 64, "num_hidden_layers": 1}  # fmt: skip


def model(**overrides):
    config = tiny.tiny_config(**overrides)
    return config, tiny.random_tensors(config, seed=5)


def in_file_order(config, name, values):
    """q and k of the llama family and Gemma's norms as the file holds them, the rest as it is."""
    if config["model_type"] in tiny.PLUS_ONE and name.endswith("norm.weight") and "linear_attn" not in name:
        return values + np.float32(1)
    if config["model_type"] in tiny.RECURRENT:
        return tiny.recurrent_gguf(config, name, values)
    if config["model_type"] not in tiny.INTERLEAVED or "self_attn" not in name:
        return values
    if "q_proj" in name:
        return tiny.interleave(values, config["num_attention_heads"])
    if "k_proj" in name:
        return tiny.interleave(values, config["num_key_value_heads"])
    return values


@pytest.mark.parametrize("dtype", sorted(tiny.GGML_NUMBERS))
def test_every_storage_format_is_read_as_stored(tmp_path, dtype):
    config, tensors = model(**WIDE)
    with open_checkpoint(tiny.write_gguf(tmp_path / "m.gguf", config, tensors, dtype)) as checkpoint:
        assert (checkpoint.format, checkpoint.rope_interleaved) == ("gguf", True)
        assert checkpoint.dtype == dtype
        assert list(checkpoint.tensors) == list(tiny.tensor_shapes(config))
        for name, tensor in checkpoint.tensors.items():
            assert tensor.dtype == ("F32" if len(tensor.shape) == 1 else dtype)
            stored = tiny.quantize(tensor.dtype, in_file_order(config, name, tensors[name]))
            assert checkpoint.read_rows(tensor, 0, tensor.rows).tobytes() == stored
            if tensor.rows > 9:
                assert (
                    checkpoint.read_rows(tensor, 7, 2).tobytes()
                    == stored[7 * tensor.row_nbytes :][: 2 * tensor.row_nbytes]
                )


@pytest.mark.parametrize("model_type", sorted(tiny.ARCHITECTURES))
def test_architectures_splits_and_alignment(tmp_path, model_type):
    config, tensors = model(model_type=model_type, tie_word_embeddings=True)
    path = tiny.write_gguf(tmp_path / "m.gguf", config, tensors, "F32", split=3, alignment=64)
    assert path.name == "m-00001-of-00003.gguf"
    for given in (path, tmp_path):
        with open_checkpoint(given) as checkpoint:
            assert len(checkpoint.files) == 3
            assert checkpoint.config.tie_word_embeddings
            assert checkpoint.rope_interleaved == (model_type in tiny.INTERLEAVED)
            tensors = tiny.separated(config, tensors)
            stored = {name: in_file_order(config, name, values) for name, values in tensors.items()}
            for name, values in tiny.as_read(config, stored).items():
                tensor = checkpoint.tensors[name]
                rows = checkpoint.read_rows(tensor, 0, tensor.rows).view("<f4").reshape(tensor.shape)
                np.testing.assert_array_equal(rows, values.reshape(tensor.shape))
    with pytest.raises(CheckpointError, match="give m-00001-of-00003.gguf"):
        open_checkpoint(tmp_path / "m-00002-of-00003.gguf")
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    with pytest.raises(CheckpointError, match="m-00003-of-00003.gguf"):
        open_checkpoint(path)


def test_a_split_with_the_wrong_parts(tmp_path):
    config, tensors = model()
    tiny.write_gguf(tmp_path / "m.gguf", config, tensors, split=2)
    second = tmp_path / "m-00002-of-00002.gguf"
    good = second.read_bytes()
    second.write_bytes((tmp_path / "m-00001-of-00002.gguf").read_bytes())
    with pytest.raises(CheckpointError, match="part 0 of 2, expected 1 of 2"):
        open_checkpoint(tmp_path)
    second.write_bytes(good)
    (tmp_path / "m-00001-of-00002.gguf").rename(tmp_path / "whole.gguf")
    with pytest.raises(CheckpointError, match="split.count is 2"):
        open_checkpoint(tmp_path / "whole.gguf")


def test_a_folder_must_hold_one_model(tmp_path):
    config, tensors = model()
    tiny.write_gguf(tmp_path / "a.gguf", config, tensors)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.path.name == "a.gguf"
    tiny.write_gguf(tmp_path / "b.gguf", config, tensors)
    with pytest.raises(CheckpointError, match="2 GGUF models"):
        open_checkpoint(tmp_path)


def test_the_same_model_has_the_same_config_in_every_form(tmp_path):
    config, tensors = model()
    folder = tiny.write_huggingface(tmp_path / "hf", config, tensors)
    path = tiny.write_gguf(tmp_path / "m.gguf", config, tensors, "BF16")
    with open_checkpoint(folder) as one, open_checkpoint(path) as other:
        assert one.config == other.config


def test_rope_factors(tmp_path):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}  # fmt: skip
    config, tensors = model(rope_scaling=scaling, head_dim=16)
    with open_checkpoint(tiny.write_gguf(tmp_path / "m.gguf", config, tensors)) as checkpoint:
        found = checkpoint.config.rope_scaling
        assert found.kind == "factors" and len(found.factors) == 8
        assert found.factors[0] == 1.0 and found.factors[-1] == 8.0
        assert "rope_freqs.weight" not in checkpoint.tensors


def test_vocabularies_are_kept_small(tmp_path):
    config, tensors = model()
    words = ["", "a", "é", "▁of"] + [f"w{i}" for i in range(97)]
    extra = {
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.scores": np.arange(101, dtype="<f4"),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{{ x }}",
    }
    path = tiny.write_gguf(tmp_path / "m.gguf", config, tensors, extra=extra)
    with open_checkpoint(path) as checkpoint:
        found = checkpoint.metadata["tokenizer.ggml.tokens"]
        assert len(found) == 101 and list(found) == words
        assert (found[2], found[-1], found.raw(2), found[1:3]) == ("é", "w96", "é".encode(), ["a", "é"])
        assert "a" in found and found.index("▁of") == 3
        with pytest.raises(IndexError):
            found[101]
        np.testing.assert_array_equal(checkpoint.metadata["tokenizer.ggml.scores"], np.arange(101))
        assert checkpoint.metadata["tokenizer.ggml.add_bos_token"] is True
        assert checkpoint.metadata["tokenizer.chat_template"] == "{{ x }}"


def test_version_2_is_read_and_others_are_refused(tmp_path):
    config, tensors = model()
    path = tmp_path / "m.gguf"
    stored = tiny.gguf_tensors(config, tensors, "F16")
    path.write_bytes(tiny.gguf_bytes(tiny.gguf_metadata(config), stored, version=2))
    open_checkpoint(path).close()
    for version, expected in ((1, "version 1"), (4, "version 4"), (0x03000000, "big-endian")):
        path.write_bytes(tiny.gguf_bytes(tiny.gguf_metadata(config), stored, version=version))
        with pytest.raises(UnsupportedError, match=expected):
            open_checkpoint(path)


def with_dtype_number(data, name, number):
    """The file with another format number for a tensor of two dimensions."""
    at = data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name) + 4 + 16
    return data[:at] + struct.pack("<I", number) + data[at + 4 :]


@pytest.mark.parametrize(
    "number, name",
    [(15, "Q8_K"), (16, "IQ2_XXS"), (17, "IQ2_XS"), (18, "IQ3_XXS"), (19, "IQ1_S"), (21, "IQ3_S"), (22, "IQ2_S"),
     (29, "IQ1_M"), (34, "TQ1_0"), (35, "TQ2_0"), (40, "NVFP4"), (41, "Q1_0"), (139, "IQ4_K"),
     (28, "F64"), (31, "Q4_0_4_4"), (99, "number 99")],
)  # fmt: skip
def test_other_storage_formats_are_refused_by_name(tmp_path, number, name):
    config, tensors = model()
    path = tiny.write_gguf(tmp_path / "m.gguf", config, tensors, "F32")
    path.write_bytes(with_dtype_number(path.read_bytes(), "blk.0.ffn_up.weight", number))
    with pytest.raises(UnsupportedError, match=f"blk.0.ffn_up.weight'?: storage format {name} is not supported"):
        open_checkpoint(path)


def stored_model(**overrides):
    config, tensors = model(**overrides)
    return tiny.gguf_metadata(config), tiny.gguf_tensors(config, tensors, "F32")


@pytest.mark.parametrize(
    "change, error, expected",
    [
        (lambda m, t: m.update({"general.type": "adapter"}), UnsupportedError, "adapter"),
        (lambda m, t: m.update({"general.alignment": 3}), CheckpointError, "general.alignment"),
        (lambda m, t: m.update({"general.alignment": "32"}), CheckpointError, "general.alignment"),
        (lambda m, t: m.update({"general.architecture": "gemma"}), UnsupportedError, "gemma"),
        (lambda m, t: t.append(("blk.0.ffn_gate_exps.weight", "F32", (2, 2), bytes(16))), UnsupportedError, "exps"),
        (lambda m, t: t.append(("model.norm.weight", "F32", (48,), bytes(192))), UnsupportedError, "model.norm"),
        (lambda m, t: t.append(("blk.00.ffn_up.weight", "F32", (2, 2), bytes(16))), UnsupportedError, "blk.00"),
        (lambda m, t: t.append(("blk.2.ffn_up.weight", "F32", (80, 48), bytes(15360))), CheckpointError, "layers.2"),
        (lambda m, t: t.append(t[3]), CheckpointError, "appears twice"),
        (lambda m, t: t.pop(3), CheckpointError, "missing"),
        (lambda m, t: t.append(("x", "F32", (2, 2, 2, 2), bytes(64))), UnsupportedError, r"\(2, 2, 2, 2\)"),
        (lambda m, t: t.append(("x", "Q4_0", (2, 2), bytes(32))), CheckpointError, "multiple of 32"),
        (lambda m, t: t.append(("x", "F32", (2**40, 2), b"")), CheckpointError, "sizes"),
        (lambda m, t: t.append(("x", "F32", (2**30, 2**30), b"")), CheckpointError, "truncated"),
        (lambda m, t: t.append(("x" * 300, "F32", (2,), bytes(8))), CheckpointError, "300 bytes"),
        (lambda m, t: t.append((b"\xff", "F32", (2,), bytes(8))), CheckpointError, "UTF-8"),
        (lambda m, t: t.append(("rope_freqs.weight", "F32", (4,), bytes(16))), CheckpointError, "rope_freqs"),
        (
            lambda m, t: t.append(("rope_freqs.weight", "F32", (4,), struct.pack("<4f", 1, 1, 1, np.nan))),
            CheckpointError,
            "rope_freqs",
        ),
    ],
)
def test_files_that_contradict_themselves(tmp_path, change, error, expected):
    metadata, tensors = stored_model()
    change(metadata, tensors)
    alignment = metadata.get("general.alignment", 32)
    data = tiny.gguf_bytes(metadata, tensors, alignment=alignment if isinstance(alignment, int) else 32)
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(error, match=expected):
        open_checkpoint(tmp_path / "m.gguf")


def test_a_vector_must_be_plain(tmp_path):
    metadata, tensors = stored_model(**WIDE)
    at = next(i for i, t in enumerate(tensors) if t[0] == "output_norm.weight")
    tensors[at] = ("output_norm.weight", "Q8_0", (256,), bytes(34 * 8))
    (tmp_path / "m.gguf").write_bytes(tiny.gguf_bytes(metadata, tensors))
    with pytest.raises(UnsupportedError, match="a vector stored as Q8_0"):
        open_checkpoint(tmp_path / "m.gguf")


def test_overlapping_tensors_are_refused(tmp_path):
    metadata, tensors = stored_model()
    data = tiny.gguf_bytes(metadata, tensors)
    name = b"blk.1.ffn_up.weight"
    at = data.index(name) + len(name) + 4 + 16 + 4
    (tmp_path / "m.gguf").write_bytes(data[:at] + struct.pack("<Q", 0) + data[at + 8 :])
    with pytest.raises(CheckpointError, match="inside"):
        open_checkpoint(tmp_path / "m.gguf")


def test_duplicate_keys_are_refused(tmp_path):
    metadata, tensors = stored_model()
    data = tiny.gguf_bytes(metadata | {"general.nams": "x", "general.name": "x"}, tensors)
    (tmp_path / "m.gguf").write_bytes(data.replace(b"general.nams", b"general.name"))
    with pytest.raises(CheckpointError, match="'general.name' appears twice"):
        open_checkpoint(tmp_path / "m.gguf")


def with_guessing_layers(config, tensors, count, **changes):
    """A file's key/values and tensors where layers that guess tokens follow, as the converter of llama.cpp puts them:
    each a whole layer, here its neighbour's tensors, and what joins it to the model."""
    metadata = tiny.gguf_metadata(config)
    architecture, layers = metadata["general.architecture"], config["num_hidden_layers"]
    metadata |= {f"{architecture}.block_count": layers + count, f"{architecture}.nextn_predict_layers": count}
    metadata |= {f"{architecture}.{key}": value for key, value in changes.items()}
    stored = tiny.gguf_tensors(config, tensors, "F32")
    last = f"blk.{layers - 1}."
    hidden = config["hidden_size"]
    for number in range(layers, layers + count):
        copies = [(name.replace(last, f"blk.{number}."), *rest) for name, *rest in stored if name.startswith(last)]
        for name, shape in (("eh_proj", (hidden, 2 * hidden)), ("enorm", (hidden,)), ("hnorm", (hidden,))):
            values = np.ones(shape, "<f4")
            copies.append((f"blk.{number}.nextn.{name}.weight", "F32", shape, values.tobytes()))
        stored += copies
    return metadata, stored


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("model_type", ["qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe"])
def test_layers_that_guess_tokens_are_left_out(tmp_path, model_type, count):
    config, tensors = model(model_type=model_type)
    plain = tiny.write_gguf(tmp_path / "plain.gguf", config, tensors, "F32")
    with_more = tmp_path / "more.gguf"
    with_more.write_bytes(tiny.gguf_bytes(*with_guessing_layers(config, tensors, count)))
    with open_checkpoint(plain) as expected, open_checkpoint(with_more) as got:
        assert got.config == expected.config
        assert list(got.tensors) == list(expected.tensors)
        for name, tensor in got.tensors.items():
            rows = got.read_rows(tensor, 0, tensor.rows)
            assert rows.tobytes() == expected.read_rows(expected.tensors[name], 0, tensor.rows).tobytes()


def test_lists_of_a_value_a_layer_have_those_of_layers_that_guess_too(tmp_path):
    config, tensors = model(model_type="lfm2_moe")
    kv_heads = np.array([0, 3, 0, 3, 1], "<i4")  # of the last one another number: read, it would be refused
    path = tmp_path / "more.gguf"
    metadata, stored = with_guessing_layers(config, tensors, 1, **{"attention.head_count_kv": kv_heads})
    path.write_bytes(tiny.gguf_bytes(metadata, stored))
    with open_checkpoint(path) as got, open_checkpoint(tiny.write_gguf(tmp_path / "p.gguf", config, tensors)) as plain:
        assert got.config == plain.config


def test_a_file_whose_layers_that_guess_were_taken_away_is_the_model(tmp_path):
    config, tensors = model(model_type="qwen3_5_moe_text")
    metadata, _ = with_guessing_layers(config, tensors, 1)
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny.gguf_bytes(metadata, tiny.gguf_tensors(config, tensors, "F32")))
    with open_checkpoint(path) as got:
        assert got.config.num_hidden_layers == config["num_hidden_layers"]


@pytest.mark.parametrize("change, expected", [
    ({"nextn_predict_layers": 2}, r"blk\.1: no tensor of a layer that guesses tokens \(nextn\), expected by"),
    ({"nextn_predict_layers": 3}, r"nextn_predict_layers: got 3, expected .*2"),
    ({"nextn_predict_layers": "one"}, "nextn_predict_layers: got 'one'"),
    ({"nextn_predict_layers": 0}, "blk.2.nextn.eh_proj.weight': not a tensor of a qwen3_moe model"),
])  # fmt: skip
def test_layers_that_guess_tokens_where_there_are_none(tmp_path, change, expected):
    """An ordinary layer is never left out because of a number."""
    config, tensors = model(model_type="qwen3_moe")
    metadata, stored = with_guessing_layers(config, tensors, 1, **change)
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny.gguf_bytes(metadata, stored))
    with pytest.raises(CheckpointError, match=expected):
        open_checkpoint(path)
