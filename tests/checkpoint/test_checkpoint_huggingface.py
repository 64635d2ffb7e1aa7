"""Hugging Face folders: one file and shards, symbolic links, extras to ignore, contradictions to refuse."""

import json
import struct

import numpy as np
import pytest
import tiny

from pyllama.checkpoint import open_checkpoint
from pyllama.errors import CheckpointError, UnsupportedError


def model(**overrides):
    config = tiny.tiny_config(**overrides)
    return config, tiny.random_tensors(config, seed=3)


def assert_same_weights(checkpoint, tensors, dtype):
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in checkpoint.tensors.items():
        rows = checkpoint.read_rows(tensor, 0, tensor.rows)
        np.testing.assert_array_equal(tiny.decode_plain(dtype, rows.tobytes()).reshape(tensor.shape), tensors[name])


@pytest.mark.parametrize("model_type", sorted(tiny.ARCHITECTURES))
@pytest.mark.parametrize("dtype, shards", [("BF16", 1), ("F32", 3)])
def test_folders(tmp_path, model_type, dtype, shards):
    config, tensors = model(model_type=model_type)
    with open_checkpoint(tiny.write_huggingface(tmp_path, config, tensors, dtype, shards)) as checkpoint:
        assert (checkpoint.format, checkpoint.rope_interleaved, checkpoint.metadata) == ("huggingface", False, {})
        assert len(checkpoint.files) == shards
        assert checkpoint.dtype == dtype
        assert_same_weights(checkpoint, tiny.as_read(config, tiny.separated(config, tensors)), dtype)


def test_half_precision(tmp_path):
    config = tiny.tiny_config()
    tensors = tiny.random_tensors(config, dtype="F16")
    with open_checkpoint(tiny.write_huggingface(tmp_path, config, tensors, "F16")) as checkpoint:
        assert_same_weights(checkpoint, tensors, "F16")


def test_shards_without_an_index_and_mistrals_second_copy(tmp_path):
    config, tensors = model(model_type="mistral")
    folder = tiny.write_huggingface(tmp_path, config, tensors, shards=2)
    (folder / "model.safetensors.index.json").unlink()
    tiny.write_safetensors(folder / "consolidated.safetensors", {"tok_embeddings.weight": np.ones((2, 2))})
    with open_checkpoint(folder) as checkpoint:
        assert_same_weights(checkpoint, tensors, "BF16")
    tiny.write_safetensors(folder / "more.safetensors", {"model.norm.weight": tensors["model.norm.weight"]})
    with pytest.raises(CheckpointError, match="model.norm.weight'?: in both"):
        open_checkpoint(folder)


def test_the_hubs_cache_is_made_of_links(tmp_path):
    config, tensors = model()
    blobs = tiny.write_huggingface(tmp_path / "blobs", config, tensors)
    (tmp_path / "snapshot").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "snapshot" / name).symlink_to(blobs / name)
    with open_checkpoint(tmp_path / "snapshot") as checkpoint:
        assert_same_weights(checkpoint, tensors, "BF16")


def test_buffers_and_a_copy_of_the_tied_head_are_ignored(tmp_path):
    config, tensors = model(tie_word_embeddings=True)
    more = dict(tensors)
    more["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    more["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    with open_checkpoint(tiny.write_huggingface(tmp_path, config, more)) as checkpoint:
        assert_same_weights(checkpoint, tensors, "BF16")


def test_a_tied_head_that_differs_is_refused(tmp_path):
    config, tensors = model(tie_word_embeddings=True)
    more = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] * 2}
    with pytest.raises(CheckpointError, match="lm_head.weight: differs"):
        open_checkpoint(tiny.write_huggingface(tmp_path, config, more))


def test_a_tied_matrix_stored_under_the_heads_name(tmp_path):
    config, tensors = model(tie_word_embeddings=True)
    renamed = {k.replace("model.embed_tokens", "lm_head"): v for k, v in tensors.items()}
    with open_checkpoint(tiny.write_huggingface(tmp_path, config, renamed)) as checkpoint:
        assert_same_weights(checkpoint, tensors, "BF16")


def test_generation_config_ends(tmp_path):
    config, tensors = model()
    folder = tiny.write_huggingface(tmp_path, config, tensors)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.config.eos_token_ids == (7, 2)


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda t: t.pop("lm_head.weight"), r"^lm_head.weight: missing"),
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "model.layers.1.mlp.up_proj.weight: missing"),
        (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": np.ones((80, 48))}), "not a tensor of"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.ones(48)}), "not a tensor of"),
        (lambda t: t.update({"x\n\x1b[31m": np.ones(3)}), r"x\\n\\x1b"),
        (lambda t: t.update({"model.norm.weight": np.ones(47)}), r"shape \(47,\), expected \(48,\) from config"),
        (lambda t: t.update({"model.norm.weight": np.ones((1, 48))}), "shape"),
        (lambda t: t.update({"lm_head.weight": np.ones((48, 101))}), r"\(48, 101\), expected \(101, 48\)"),
    ],
)
def test_tensors_that_contradict_the_config(tmp_path, change, expected):
    config, tensors = model()
    change(tensors)
    with pytest.raises(CheckpointError, match=expected):
        open_checkpoint(tiny.write_huggingface(tmp_path, config, tensors))


def rewrite_header(path, change):
    """Change the JSON of a safetensors file, data untouched."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    "change, error, expected",
    [
        (lambda h: h[NORM].update(dtype="F8_E4M3", shape=[96]), UnsupportedError, "F8_E4M3"),
        (lambda h: h[NORM].update(dtype="I16"), UnsupportedError, "I16"),
        (lambda h: h[NORM].update(dtype="F4"), UnsupportedError, "F4"),
        (lambda h: h[NORM].update(dtype=16), CheckpointError, "dtype is 16"),
        (lambda h: h[NORM].update(dtype="F32"), CheckpointError, "96 bytes, expected 192"),
        (lambda h: h[NORM].update(shape=[2**40]), CheckpointError, "natural numbers"),
        (lambda h: h[NORM].update(shape=[-48]), CheckpointError, "natural numbers"),
        (lambda h: h[NORM].update(shape=[48.0]), CheckpointError, "natural numbers"),
        (lambda h: h[NORM].update(shape=[2**30] * 8), CheckpointError, "expected"),
        (lambda h: h[NORM].update(data_offsets=[0, 96]), CheckpointError, "overlaps|hole"),
        (lambda h: h[NORM].update(data_offsets=[2**50, 2**50 + 96]), CheckpointError, "truncated"),
        (lambda h: h[NORM].update(data_offsets=[96, 0]), CheckpointError, "expected 96"),
        (lambda h: h[NORM].update(data_offsets=[0]), CheckpointError, "natural numbers"),
        (lambda h: h[NORM].update(extra=1), CheckpointError, "expected dtype, shape"),
        (lambda h: h.update({NORM: 3}), CheckpointError, "expected dtype, shape"),
        (lambda h: h.update(__metadata__=3), CheckpointError, "__metadata__"),
        (lambda h: h.pop(NORM), CheckpointError, "hole|bytes, expected"),
    ],
)
def test_safetensors_headers_that_lie(tmp_path, change, error, expected):
    config, tensors = model()
    folder = tiny.write_huggingface(tmp_path, config, tensors)
    rewrite_header(folder / "model.safetensors", change)
    with pytest.raises(error, match=expected):
        open_checkpoint(folder)


def test_trailing_bytes_are_refused(tmp_path):
    config, tensors = model()
    folder = tiny.write_huggingface(tmp_path, config, tensors)
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match="from its header"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "weight_map, expected",
    [
        ({}, "weight_map"),
        ([], "weight_map"),
        ({"a": "../model.safetensors"}, "beside it"),
        ({"a": "/etc/passwd"}, "beside it"),
        ({"a": 3}, "beside it"),
        ({"a": "b\0.safetensors"}, "beside it"),
        ({"a": "gone.safetensors"}, "gone.safetensors missing, as model.safetensors.index.json names"),
        ({"a": "model.safetensors"}, "not in model.safetensors"),
        ({f"a{i}": f"{i}.safetensors" for i in range(2000)}, "2000 files"),
    ],
)
def test_index_files_that_lie(tmp_path, weight_map, expected):
    config, tensors = model()
    folder = tiny.write_huggingface(tmp_path, config, tensors)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=expected):
        open_checkpoint(folder)


def test_folders_without_safetensors_say_what_to_do(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny.tiny_config()))
    with pytest.raises(CheckpointError, match="no \\*.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(UnsupportedError, match="convert them to safetensors"):
        open_checkpoint(tmp_path)
