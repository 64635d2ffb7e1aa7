"""Meta's folders: sharded layouts, and a pickle that is read as records and never run."""

import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import tiny

from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.torch_records import Storage, TensorRecord, read_records
from pyllama.errors import CheckpointError, UnsupportedError

SIZES = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 6, "vocab_size": 104}


def model(dtype="BF16", **overrides):
    config = tiny.tiny_config(**(SIZES | overrides))
    return config, tiny.random_tensors(config, seed=7, dtype=dtype)


def in_file_order(config, name, values):
    if "q_proj" in name:
        return tiny.interleave(values, config["num_attention_heads"])
    if "k_proj" in name:
        return tiny.interleave(values, config["num_key_value_heads"])
    return values


@pytest.mark.parametrize("embedding", ["columns", "rows"])
@pytest.mark.parametrize("shards, dtype", [(1, "BF16"), (2, "F16"), (8, "F32")])
def test_shards_join_to_the_whole(tmp_path, shards, dtype, embedding):
    config, tensors = model(dtype)
    folder = tiny.write_meta(tmp_path, config, tensors, dtype, shards, embedding)
    with open_checkpoint(folder) as checkpoint:
        assert (checkpoint.format, checkpoint.rope_interleaved) == ("meta", True)
        assert "4096" in checkpoint.metadata["assumed"]
        assert checkpoint.tensors.keys() == tensors.keys()
        for name, tensor in checkpoint.tensors.items():
            whole = in_file_order(config, name, tensors[name]).reshape(tensor.rows, tensor.cols)
            for row, count in ((0, tensor.rows), (tensor.rows // 3, -(-tensor.rows // 2)), (tensor.rows - 1, 1)):
                rows = checkpoint.read_rows(tensor, row, count)
                np.testing.assert_array_equal(
                    tiny.decode_plain(dtype, rows.tobytes()).reshape(count, -1), whole[row : row + count]
                )
        assert checkpoint.nbytes == sum(t.size for t in tensors.values()) * (4 if dtype == "F32" else 2)


def test_a_tied_model(tmp_path):
    config, tensors = model(tie_word_embeddings=True)
    with open_checkpoint(tiny.write_meta(tmp_path, config, tensors)) as checkpoint:
        assert checkpoint.config.tie_word_embeddings
        assert "lm_head.weight" not in checkpoint.tensors


def test_llama_2_leaves_the_vocabulary_open(tmp_path):
    config, tensors = model()
    folder = tiny.write_meta(tmp_path, config, tensors)
    params = json.loads((folder / "params.json").read_text())
    for vocab in (-1, None):
        (folder / "params.json").write_text(json.dumps(params | {"vocab_size": vocab}))
        with open_checkpoint(folder) as checkpoint:
            assert checkpoint.config.vocab_size == 104
    (folder / "params.json").write_text(json.dumps(params | {"vocab_size": 103}))
    with pytest.raises(CheckpointError, match="got 103, expected the 104 rows"):
        open_checkpoint(folder)


def test_missing_files(tmp_path):
    config, tensors = model()
    folder = tiny.write_meta(tmp_path, config, tensors, shards=4)
    (folder / "consolidated.02.pth").unlink()
    with pytest.raises(CheckpointError, match="shards 00, 01, 03"):
        open_checkpoint(folder)
    (folder / "consolidated.03.pth").unlink()  # the rest joins, but to less than the params say
    with pytest.raises(CheckpointError, match="expected"):
        open_checkpoint(folder)
    (folder / "params.json").unlink()
    with pytest.raises(CheckpointError, match="without params.json"):
        open_checkpoint(folder)


def test_shards_that_do_not_match(tmp_path):
    config, tensors = model()
    folder = tiny.write_meta(tmp_path, config, tensors, shards=2)
    mine = tiny.meta_shard(config, tensors, 1, 2)
    del mine["layers.1.attention.wo.weight"]
    write_shard(folder / "consolidated.01.pth", mine)
    with pytest.raises(CheckpointError, match="in one only of the shards"):
        open_checkpoint(folder)


def write_shard(path, tensors, change=lambda program: program, storages=None):
    program = tiny.torch_pickle([(name, "F32", values.shape) for name, values in tensors.items()])
    blobs = [tiny.encode_plain("F32", values) for values in tensors.values()]
    tiny.write_torch_archive(path, change(program), blobs if storages is None else storages)


def shard(tmp_path, **overrides):
    config, tensors = model(**overrides)
    folder = tiny.write_meta(tmp_path, config, tensors)
    return folder, tiny.meta_shard(config, tensors, 0, 1)


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "function, arguments", [(os.system, ("touch /tmp/pyllama-was-here",)), (eval, ("1",)), (getattr, (1, "real"))]
)
def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path, protocol, function, arguments):
    folder, tensors = shard(tmp_path)
    program = pickle.dumps({"a": Attack(function, *arguments)}, protocol)
    write_shard(folder / "consolidated.00.pth", tensors, lambda _: program)
    with pytest.raises(CheckpointError, match="wants|instruction") as error:
        open_checkpoint(folder)
    assert not os.path.exists("/tmp/pyllama-was-here")
    if protocol >= 2:
        assert function.__name__ in str(error.value)


def test_a_call_at_the_end_of_a_sound_file_is_refused(tmp_path):
    folder, tensors = shard(tmp_path)
    call = b"cposix\nsystem\n" + tiny._pickle_text("true") + b"\x85R0."
    write_shard(folder / "consolidated.00.pth", tensors, lambda program: program[:-1] + call)
    with pytest.raises(CheckpointError, match="posix.system.*refused, not run"):
        open_checkpoint(folder)


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(" + tiny._pickle_text("storage") + b"ctorch\nFloatStorage\n" + tiny._pickle_text("0")
STORAGE += tiny._pickle_text("cpu") + b"K\x06tQ"
ENDING = b"\x89ccollections\nOrderedDict\n)R"


def test_the_records_of_a_small_program():
    good = b"\x80\x02}" + tiny._pickle_text("w") + TENSOR + b"(" + STORAGE + b"K\x02(K\x02K\x02t(K\x02K\x01t"
    good += ENDING + b"tRs."
    expected = TensorRecord(Storage("F32", "0", 6), 2, (2, 2), (2, 1))
    assert read_records(good, "x.pth") == {"w": expected}


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b".",
        b"0.",
        b"N.",
        b"].",
        b"(.",
        b"t.",
        b"u.",
        b"}(K\x01u.",
        b"}K\x01K\x02s.",
        b"}" + tiny._pickle_text("a") + b"N\x94s" + tiny._pickle_text("a") + b"Ns.",
        b"K\x01K\x02s.",
        b"h\x05.",
        b"\x85.",
        b"(\x85.",
        b"(q\x00.",
        b"\x80\x63}.",
        b"NQ.",
        b"NR.",
        b"]NR.",
        b"c__builtin__\neval\n.",
        b"ctorch\nIntStorage\n.",
        b"c" + b"x" * 1000,
        b"\x8c\x05aaaaa\x8c\x05bbbbb\x93.",
        b"NN\x93.",
        b"X\xff\xff\xff\xffabc",
        b"X\x02\x00\x00\x00\xff\xfe.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"r\xff\xff\xff\xff.",
        b"Vabc\n.",
        b"I1\n.",
        b"\x8b\xff\xff\xff\x7f.",
        b"NNb.",
        b"}" + TENSOR + b"NR.",
        b"}" + TENSOR + b")R.",
        TENSOR + b"(" + b"K\x01K\x00))" + ENDING + b"tR.",
        TENSOR + b"(" + STORAGE + b"J\xff\xff\xff\xff))" + ENDING + b"tR.",
        TENSOR + b"(" + STORAGE + b"K\x00(K\x02t)" + ENDING + b"tR.",
        TENSOR + b"(" + STORAGE + b"K\x00(Nt(Nt" + ENDING + b"tR.",
        b"\x8a\xff",
        (b"(" + tiny._pickle_text("storage") + b"ctorch\nFloatStorage\n" + tiny._pickle_text("../0") + b"NK\x06tQ."),
    ],
)
def test_programs_that_are_no_dict_of_tensors(program):
    with pytest.raises(CheckpointError) as error:
        read_records(program, "x.pth")
    assert str(error.value).startswith("x.pth: ") and len(str(error.value)) < 300


def test_a_value_that_doubles_at_every_step_costs_nothing():
    bomb = b"}" + tiny._pickle_text("a") + b"N" + b"q\x01h\x01\x86" * 100_000 + b"s."
    assert read_records(bomb, "x.pth") == {}
    with pytest.raises(CheckpointError, match="not text"):  # the hash of this key would take for ever
        read_records(b"}N" + b"q\x01h\x01\x86" * 1000 + b"Ns.", "x.pth")
    with pytest.raises(CheckpointError, match="a tuple, expected a dict"):  # and so would its repr
        read_records(b"N" + b"q\x01h\x01\x86" * 1000 + b".", "x.pth")


@pytest.mark.parametrize(
    "old, new, error, expected",
    [
        (b"K\x00", b"K\x01", CheckpointError, "expected within its storage"),
        (b"FloatStorage", b"LongStorage", CheckpointError, "torch.LongStorage"),
        (b"FloatStorage", b"HalfStorage", CheckpointError, "its storage has"),
        (tiny._pickle_text("0"), tiny._pickle_text("999"), CheckpointError, "data/999 is missing"),
        (tiny._pickle_ints((48, 48)) * 1 + tiny._pickle_ints((48, 1)),
         tiny._pickle_ints((48, 48)) + tiny._pickle_ints((1, 48)), UnsupportedError, "strides"),
        (tiny._pickle_ints((48, 48)), tiny._pickle_ints((0, 48)), CheckpointError, "shape"),
        (b"feed_forward.w1", b"feed_forward.w9", UnsupportedError, "feed_forward.w9"),
        (b"layers.1.", b"layers.0.", CheckpointError, "twice"),
    ],
)  # fmt: skip
def test_records_that_lie(tmp_path, old, new, error, expected):
    folder, tensors = shard(tmp_path)

    def change(program):
        program = program.replace(tiny._pickle_int(0), b"K\x00")
        assert old in program
        return program.replace(old, new, 1) if old != b"layers.1." else program.replace(old, new)

    write_shard(folder / "consolidated.00.pth", tensors, change)
    with pytest.raises(error, match=expected):
        open_checkpoint(folder)


def test_a_compressed_archive_is_refused(tmp_path):
    folder, tensors = shard(tmp_path)
    path = folder / "consolidated.00.pth"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, blob in entries.items():
            archive.writestr(name, blob)
    with pytest.raises(UnsupportedError, match="compressed"):
        open_checkpoint(folder)


def test_archives_of_other_kinds(tmp_path):
    folder, tensors = shard(tmp_path)
    path = folder / "consolidated.00.pth"
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")  # how torch before 1.6 began a file
    with pytest.raises(CheckpointError, match="before 1.6"):
        open_checkpoint(folder)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="not a zip archive"):
        open_checkpoint(folder)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/other", b"")
    with pytest.raises(CheckpointError, match="0 entries data.pkl"):
        open_checkpoint(folder)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"}.")
        archive.writestr("x/byteorder", b"big")
    with pytest.raises(UnsupportedError, match="big-endian"):
        open_checkpoint(folder)


def test_zip64_archives_are_read(tmp_path):
    """A shard beyond 4 GB has its sizes and offsets in extra fields: here all are there, on a sparse file."""
    folder, tensors = shard(tmp_path)
    source = folder / "consolidated.00.pth"
    shift = 5 << 30
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
        directory_at = archive.start_dir
    data = source.read_bytes()
    directory = b""
    for e in entries:
        name = e.filename.encode()
        extra = struct.pack("<HH3Q", 1, 24, e.file_size, e.file_size, e.header_offset + shift)
        directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", 45, 45, 0, 0, 0, 0, e.CRC, 2**32 - 1, 2**32 - 1,
                                 len(name), len(extra), 0, 0, 0, 0, 2**32 - 1) + name + extra  # fmt: skip
    at = directory_at + shift
    n = len(entries)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, n, n, len(directory), at)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, at + len(directory), 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    with open_checkpoint(folder) as checkpoint:
        norm = checkpoint.tensors["model.norm.weight"]
        expected = checkpoint.read_rows(norm, 0, 1).tobytes()
    with open(source, "wb") as file:
        file.seek(shift)
        file.write(data[:directory_at] + directory + end64 + locator + end)
    with zipfile.ZipFile(source) as archive:  # the standard module agrees that this is an archive
        assert len(archive.namelist()) == n
    with open_checkpoint(folder) as checkpoint:
        norm = checkpoint.tensors["model.norm.weight"]
        assert norm.parts[0].offset > shift
        assert checkpoint.read_rows(norm, 0, 1).tobytes() == expected
