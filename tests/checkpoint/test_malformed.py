"""Damaged and hostile checkpoints: each gives a PyllamaError, or opens with sane contents, soon and in little memory.

Hundreds of seeded mutations of each format, and the files a mutation would not find: sizes that claim
terabytes, archives and headers made to exhaust a reader.
"""

import json
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import tiny

from pyllama.architecture.tensors import tensor_shapes
from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.gguf import MAX_STRINGS
from pyllama.checkpoint.torch_records import MAX_PICKLE_NBYTES
from pyllama.errors import CheckpointError, PyllamaError

# Of processor time. What is bounded takes a second at most; work that grows faster than its file takes minutes, and a
# busy machine's caches only twice as long.
SECONDS = 10.0
NBYTES = 16 << 20
ROUNDS = 300

ABSURD = [0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
ODD_VALUES = [None, True, -1, 0, 2**31, 2**64, 10**30, 1e300, 0.5, "", "x" * 5000, "\ud800", [], {}, [[]], [None],
              {"a": {}}, "NaN", ["F32"], [2**31] * 9]  # fmt: skip


def damaged(data: bytes, random: np.random.Generator, head: int) -> bytes:
    """One to three random changes, mostly in the first `head` bytes: where a header is."""
    for _ in range(random.integers(1, 4)):
        where = int(random.integers(0, max(1, min(head, len(data)))))
        kind = random.integers(0, 8)
        if kind == 0:
            data = data[: int(random.integers(0, len(data) + 1))]
        elif kind <= 2:  # flip bits
            flipped = bytes(byte ^ int(random.integers(1, 256)) for byte in data[where : where + 1])
            data = data[:where] + flipped + data[where + 1 :]
        elif kind <= 4:  # an absurd number over whatever is there
            width, code = (8, "<Q") if random.integers(0, 2) else (4, "<I")
            number = ABSURD[random.integers(0, len(ABSURD))] % 2 ** (8 * width)
            data = data[:where] + struct.pack(code, number) + data[where + width :]
        elif kind == 5:  # cut something out
            data = data[:where] + data[where + int(random.integers(1, 40)) :]
        elif kind == 6:  # twice
            data = data[:where] + data[where : where + int(random.integers(1, 200))] + data[where:]
        else:
            data = data[:where] + random.bytes(int(random.integers(1, 30))) + data[where:]
    return data


def damaged_json(value, random: np.random.Generator):
    """The same JSON with one value somewhere inside replaced by one that does not belong there."""
    if isinstance(value, dict) and value and random.integers(0, 10):
        key = list(value)[random.integers(0, len(value))]
        return value | {key: damaged_json(value[key], random)}
    if isinstance(value, list) and value and random.integers(0, 4):
        at = int(random.integers(0, len(value)))
        return [*value[:at], damaged_json(value[at], random), *value[at + 1 :]]
    return ODD_VALUES[random.integers(0, len(ODD_VALUES))]


def open_soon_and_small(path) -> str:
    """Open what may be damaged; returns the error's message, or "" where it opened with sane contents."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with open_checkpoint(path) as checkpoint:
            shapes = tensor_shapes(checkpoint.config)
            assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == shapes
            for tensor in checkpoint.tensors.values():
                checkpoint.read_rows(tensor, tensor.rows - 1, 1)
        message = ""
    except PyllamaError as error:
        message = str(error)
        assert message and "\n" not in message and len(message) < 1000, message
        message.encode()  # can be printed
    seconds = time.process_time() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < SECONDS, f"{seconds:.2f} s: {message}"
    assert peak < NBYTES, f"{peak} bytes: {message}"
    return message


def model(**overrides):
    config = tiny.tiny_config(num_hidden_layers=1, **overrides)
    return config, tiny.random_tensors(config)


def mutate(path, change, opened, seed):
    """ROUNDS mutations of the file at `path`; most must be refused, and not all for one reason."""
    random = np.random.default_rng(seed)
    good = path.read_bytes()
    messages = []
    for _ in range(ROUNDS):
        path.write_bytes(change(good, random))
        messages.append(open_soon_and_small(opened))
    path.write_bytes(good)
    assert open_soon_and_small(opened) == ""
    refused = [message for message in messages if message]
    assert len(refused) > ROUNDS // 4
    assert len(set(refused)) > 10


def test_safetensors_bytes(tmp_path):
    folder = tiny.write_huggingface(tmp_path, *model())
    mutate(folder / "model.safetensors", lambda d, r: damaged(d, r, 1200), folder, 1)


def test_safetensors_headers(tmp_path):
    folder = tiny.write_huggingface(tmp_path, *model())

    def change(data, random):
        length = struct.unpack("<Q", data[:8])[0]
        text = json.dumps(damaged_json(json.loads(data[8 : 8 + length]), random)).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    mutate(folder / "model.safetensors", change, folder, 2)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_config_json(tmp_path, model_type):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32}
    more = {"use_sliding_window": True, "layer_types": ["sliding_attention"]} if model_type == "qwen2" else {}
    config, tensors = model(model_type=model_type, rope_scaling=scaling, eos_token_id=[2, 3], **more)
    folder = tiny.write_huggingface(tmp_path, config, tensors)
    mutate(folder / "config.json", lambda d, r: damaged(d, r, len(d)), folder, 3)
    mutate(folder / "config.json", lambda d, r: json.dumps(damaged_json(json.loads(d), r)).encode(), folder, 4)


def test_index_json(tmp_path):
    folder = tiny.write_huggingface(tmp_path, *model(), shards=2)
    path = folder / "model.safetensors.index.json"
    mutate(path, lambda d, r: json.dumps(damaged_json(json.loads(d), r)).encode(), folder, 5)


@pytest.mark.parametrize("dtype", ["F16", "Q4_0"])
def test_gguf_bytes(tmp_path, dtype):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
             "head_dim": 16}  # fmt: skip
    words = [f"w{i}" for i in range(101)]
    extra = {"tokenizer.ggml.tokens": words, "tokenizer.ggml.scores": np.zeros(101, "<f4")}
    path = tiny.write_gguf(tmp_path / "m.gguf", *model(**sizes), dtype, extra=extra)
    head = path.read_bytes().index(b"output_norm.weight") + 100
    mutate(path, lambda d, r: damaged(d, r, head), path, 6)


ODD_GGUF_VALUES = [True, -1, 0, 7, 2**32 - 1, 0.5, float("nan"), float("inf"), 1e30, "", "yarn", "x" * 3000, [],
                   ["a", "b"], [True], np.zeros(0, "<f4"), np.arange(3, dtype="<i4"),
                   np.zeros(5000, "<u4")]  # fmt: skip


def test_gguf_values_of_the_wrong_kind(tmp_path):
    scaling = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 9}
    config, tensors = model(rope_scaling=scaling)
    extra = {
        "general.alignment": 32,
        "split.count": 1,
        "split.no": 0,
        "split.tensors.count": 12,
        "tokenizer.ggml.bos_token_id": 1,
        "llama.expert_count": 0,
        "llama.attention.sliding_window": 9,
        "llama.rope.scaling.yarn_ext_factor": 1.0,
        "llama.rope.scaling.attn_factor": 1.0,
    }
    metadata, stored = tiny.gguf_metadata(config) | extra, tiny.gguf_tensors(config, tensors, "BF16")
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny.gguf_bytes(metadata, stored))
    assert open_soon_and_small(path) == ""
    messages = set()
    for key in metadata:
        for value in ODD_GGUF_VALUES:
            path.write_bytes(tiny.gguf_bytes(metadata | {key: value}, stored))
            messages.add(open_soon_and_small(path))
    assert len(messages) > 100


def test_gguf_splits(tmp_path):
    first = tiny.write_gguf(tmp_path / "m.gguf", *model(), split=2)
    mutate(tmp_path / "m-00002-of-00002.gguf", lambda d, r: damaged(d, r, 800), first, 7)


def test_meta_archives(tmp_path):
    folder = tiny.write_meta(tmp_path, *model())
    path = folder / "consolidated.00.pth"
    size = path.stat().st_size
    directory = size - path.read_bytes().index(b"PK\1\2")

    def change(data, random):
        if random.integers(0, 2):  # the program at the start, or the directory at the end, reversed and back
            return damaged(data, random, 3000)
        return damaged(data[::-1], random, directory)[::-1]

    mutate(path, change, folder, 8)


def test_meta_programs(tmp_path):
    config, tensors = model()
    folder = tiny.write_meta(tmp_path, config, tensors)
    mine = tiny.meta_shard(config, tensors, 0, 1)
    program = tiny.torch_pickle([(name, "BF16", values.shape) for name, values in mine.items()])
    blobs = [tiny.encode_plain("BF16", values) for values in mine.values()]
    path = folder / "consolidated.00.pth"
    tiny.write_torch_archive(path, program, blobs)
    random = np.random.default_rng(9)
    messages = set()
    for _ in range(ROUNDS):
        tiny.write_torch_archive(path, damaged(program, random, len(program)), blobs)
        messages.add(open_soon_and_small(folder))
    assert len(messages) > 10


def test_params_json(tmp_path):
    folder = tiny.write_meta(tmp_path, *model())
    mutate(folder / "params.json", lambda d, r: json.dumps(damaged_json(json.loads(d), r)).encode(), folder, 10)


# --- made to exhaust a reader -----------------------------------------------------------------------


def sparse(path, head: bytes, nbytes: int) -> None:
    """A file that says it has `nbytes`, all zeros after `head`, and takes no room on disk."""
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(nbytes)


@pytest.fixture
def folder(tmp_path):
    return tiny.write_huggingface(tmp_path, *model())


@pytest.mark.parametrize("length", [9 << 20, 2**40, 2**63, 2**64 - 1])
def test_a_safetensors_header_of_terabytes(folder, length):
    sparse(folder / "model.safetensors", struct.pack("<Q", length), 1 << 42)
    assert "expected at most" in open_soon_and_small(folder)


@pytest.mark.parametrize("text", [b"[" * 4_000_000, b'{"a":' * 1_000_000, b"[]," * 2_000_000, b"9" * 4_000_000,
                                  b'{"a": 1.' + b"1" * 4_000_000 + b"}"])  # fmt: skip
def test_json_made_to_exhaust(folder, text):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    start = time.process_time()
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)
    assert time.process_time() - start < SECONDS
    (folder / "config.json").write_bytes(text)
    start = time.process_time()
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)
    assert time.process_time() - start < SECONDS


def test_a_config_of_gigabytes(folder):
    sparse(folder / "config.json", b"{", 1 << 33)
    assert "expected at most" in open_soon_and_small(folder)


GGUF_HEAD = b"GGUF" + struct.pack("<I", 3)
KEY = tiny._gguf_text("a")


@pytest.mark.parametrize(
    "head",
    [
        GGUF_HEAD + struct.pack("<QQ", 2**63, 0),
        GGUF_HEAD + struct.pack("<QQ", 0, 2**63),
        GGUF_HEAD + struct.pack("<QQ", 0, 4096),
        GGUF_HEAD + struct.pack("<QQ", 65536, 0),
        GGUF_HEAD + struct.pack("<QQQ", 0, 1, 2**60),
        GGUF_HEAD + struct.pack("<QQ", 0, 1) + KEY + struct.pack("<IQ", 8, 2**60),
        GGUF_HEAD + struct.pack("<QQ", 0, 1) + KEY + struct.pack("<IIQ", 9, 8, MAX_STRINGS + 1),
        GGUF_HEAD + struct.pack("<QQ", 0, 1) + KEY + struct.pack("<IIQ", 9, 12, 2**61),
        GGUF_HEAD + struct.pack("<QQ", 0, 1) + KEY + struct.pack("<IIQ", 9, 0, 2**40),
        GGUF_HEAD + struct.pack("<QQ", 0, 1) + KEY + struct.pack("<IIQ", 9, 9, 2**40),
    ],
)
def test_gguf_counts_of_terabytes(tmp_path, head):
    sparse(tmp_path / "m.gguf", head, 1 << 42)
    assert open_soon_and_small(tmp_path / "m.gguf")


@pytest.mark.parametrize("kind, count", [(8, MAX_STRINGS), (0, 60_000_000)])
def test_the_largest_gguf_arrays_allowed(tmp_path, kind, count):
    """The limits themselves hold to seconds, and to a small multiple of what they allow in memory."""
    head = GGUF_HEAD + struct.pack("<QQ", 0, 1) + KEY + struct.pack("<IIQ", 9, kind, count)
    sparse(tmp_path / "m.gguf", head, 1 << 42)
    start = time.process_time()
    with pytest.raises(CheckpointError, match="general.architecture"):
        open_checkpoint(tmp_path / "m.gguf")
    assert time.process_time() - start < SECONDS


@pytest.mark.parametrize("program", [b"N", b"]", b"}", b"N\x94", b"(", b"X\0\0\0\0", b")\x85"])
def test_the_longest_pickles_allowed(tmp_path, program):
    folder = tiny.write_meta(tmp_path, *model())
    text = (program * MAX_PICKLE_NBYTES)[: MAX_PICKLE_NBYTES // len(program) * len(program)]
    tiny.write_torch_archive(folder / "consolidated.00.pth", text, [])
    start = time.process_time()
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)
    assert time.process_time() - start < SECONDS
    tiny.write_torch_archive(folder / "consolidated.00.pth", text + b"N" * len(program), [])
    with pytest.raises(CheckpointError, match="expected at most"):
        open_checkpoint(folder)


def test_an_archive_with_a_directory_of_gigabytes(tmp_path):
    folder = tiny.write_meta(tmp_path, *model())
    path = folder / "consolidated.00.pth"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**31, 0, 0)
    with open(path, "wb") as file:
        file.seek(1 << 32)
        file.write(end)
    assert "zip directory" in open_soon_and_small(folder)


def test_an_archive_with_every_entry_allowed(tmp_path):
    folder = tiny.write_meta(tmp_path, *model())
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0)
    directory = b"".join(entry + struct.pack("<I", i) for i in range(20_000))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 20_000, 20_000, len(directory), 0, 0)
    (folder / "consolidated.00.pth").write_bytes(directory + end)
    start = time.process_time()
    with pytest.raises(CheckpointError, match="0 entries data.pkl"):
        open_checkpoint(folder)
    assert time.process_time() - start < SECONDS


def test_a_zip_bomb_is_not_inflated(tmp_path):
    folder = tiny.write_meta(tmp_path, *model())
    with zipfile.ZipFile(folder / "consolidated.00.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(64 << 20))
    assert "compressed" in open_soon_and_small(folder)
