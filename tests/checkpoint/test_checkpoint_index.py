"""The index and the reads below all three formats: names, shapes, byte ranges, short and failing reads."""

import errno
import os

import numpy as np
import pytest
import tiny

from pyllama.architecture import FAMILIES
from pyllama.architecture.tensors import tensor_shapes
from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.dtypes import DTYPES, row_nbytes
from pyllama.checkpoint.files import InputFile, read_small
from pyllama.checkpoint.huggingface_config import huggingface_config
from pyllama.errors import CheckpointError
from pyllama.strict_json import MAX_ITEMS, MAX_NBYTES, parse_object


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = tiny.tiny_config()
    return tiny.write_huggingface(tmp_path_factory.mktemp("model"), config, tiny.random_tensors(config))


@pytest.mark.parametrize("model_type", sorted(tiny.ARCHITECTURES))
@pytest.mark.parametrize("more", [{}, {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}])
def test_expected_shapes_agree_with_the_writers_list(model_type, more):
    config = tiny.tiny_config(model_type=model_type, **more)
    expected, names = tensor_shapes(huggingface_config(config)), FAMILIES[model_type].huggingface
    found = []
    for stored, shape in tiny.tensor_shapes(config).items():
        ours = names.ours(stored) or (stored,)
        if len(shape) == 3:  # a convolution, which is one vector here
            shape = (shape[0] * shape[2],)
        rows = sum(expected[name][0] for name in ours)
        assert all((rows, *expected[name][1:]) == shape for name in ours)
        found += ours
    assert sorted(found) == sorted(expected)


def test_every_block_format_is_the_one_of_the_writer():
    assert {k: v for k, v in DTYPES.items() if k not in ("F32", "F16", "BF16")} == tiny.BLOCKS
    assert row_nbytes("Q4_K", 512) == 288


def test_rows_are_read_as_stored(folder):
    config = tiny.tiny_config()
    tensors = tiny.random_tensors(config)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.nbytes == sum(2 * t.size for t in tensors.values())
        tensor = checkpoint.tensors["model.layers.1.mlp.down_proj.weight"]
        assert (tensor.rows, tensor.cols, tensor.row_nbytes, tensor.nbytes) == (48, 80, 160, 48 * 160)
        rows = checkpoint.read_rows(tensor, 5, 7)
        assert rows.shape == (7, 160) and rows.dtype == np.uint8
        np.testing.assert_array_equal(rows.view("<u2"), tiny.bf16_bits(tensors[tensor.name][5:12]))
        norm = checkpoint.tensors["model.norm.weight"]
        assert (norm.rows, norm.cols) == (1, 48)
        assert checkpoint.read_rows(norm, 0, 1).shape == (1, 96)
        assert checkpoint.read_rows(tensor, 48, 0).shape == (0, 160)
        assert checkpoint.bytes_read == 7 * 160 + 96
        for row, count in ((-1, 1), (0, 49), (48, 1), (3, -1)):
            with pytest.raises(ValueError, match="down_proj"):
                checkpoint.read_rows(tensor, row, count)


def test_reads_after_close_are_refused(folder):
    with open_checkpoint(folder) as checkpoint:
        pass
    checkpoint.close()  # twice is fine
    with pytest.raises(CheckpointError, match="closed"):
        checkpoint.read_rows(checkpoint.tensors["model.norm.weight"], 0, 1)


def test_short_reads_are_continued(folder, monkeypatch):
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: real(fd, [buffers[0][:7]], at))
    with open_checkpoint(folder) as checkpoint:
        tensor = checkpoint.tensors["lm_head.weight"]
        rows = checkpoint.read_rows(tensor, 0, 3)
    np.testing.assert_array_equal(
        rows.view("<u2"), tiny.bf16_bits(tiny.random_tensors(tiny.tiny_config())["lm_head.weight"][:3])
    )


def test_a_failing_disk_is_a_checkpoint_error(folder, monkeypatch):
    with open_checkpoint(folder) as checkpoint:

        def fail(fd, buffers, at):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(CheckpointError, match=r"model.safetensors: input/output error"):
            checkpoint.read_rows(checkpoint.tensors["model.norm.weight"], 0, 1)


def test_a_file_that_shrinks_later_is_found_by_the_read(tmp_path):
    config = tiny.tiny_config()
    folder = tiny.write_huggingface(tmp_path, config, tiny.random_tensors(config))
    with open_checkpoint(folder) as checkpoint:
        os.truncate(folder / "model.safetensors", 4000)
        with pytest.raises(CheckpointError, match="did the file shrink"):
            checkpoint.read_rows(checkpoint.tensors["lm_head.weight"], 0, 101)


def test_what_cannot_be_opened(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path / ("x" * 300), "a\0b"):
        with pytest.raises(CheckpointError):
            open_checkpoint(path)
    with pytest.raises(CheckpointError, match="no model"):
        open_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        open_checkpoint(tmp_path / "notes.txt")
    (tmp_path / "empty").touch()
    with pytest.raises(CheckpointError, match="an empty file"):
        open_checkpoint(tmp_path / "empty")
    os.mkfifo(tmp_path / "pipe.gguf")  # must not wait for a writer
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(tmp_path / "pipe.gguf")
    with pytest.raises(CheckpointError, match="expected at most 3"):
        read_small(tmp_path / "notes.txt", 3)
    file = InputFile(tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match="ends at 5"):
        file.read(3, 10**15)  # refused before memory is taken
    file.close()


def test_one_file_of_a_folder_names_the_folder(folder):
    with pytest.raises(CheckpointError, match="give .*model"):
        open_checkpoint(folder / "model.safetensors")


@pytest.mark.parametrize(
    "text, expected",
    [
        (b"[1]", "expected a JSON object"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": [-Infinity]}', "Infinity"),
        (b'{"a": 1e999}', "1e999"),
        (b'{"a": 1, "a": 1}', "'a' appears twice"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' appears twice"),
        (b'{"a": 1', "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"", "not valid JSON"),
        (b'{"a": ' + b"9" * 10000 + b"}", "not valid JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'{"a": [' + b"[]," * MAX_ITEMS + b"[]]}", "too many"),
        (b" " * (MAX_NBYTES + 1), "bytes of JSON"),
    ],
)
def test_strict_json(text, expected):
    with pytest.raises(CheckpointError, match=expected) as error:
        parse_object(text, "config.json")
    assert str(error.value).startswith("config.json: ") and len(str(error.value)) < 300
