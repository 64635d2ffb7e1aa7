"""Packing: the bits of the source from a packed folder, every stored byte back, hostile headers refused."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import tiny

from pyllama import _kernels as kernels
from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.packed import CRC_AT, SECTOR, header_crc32, read_shard
from pyllama.checkpoint.safetensors import read_header
from pyllama.decoder import Decoder
from pyllama.errors import CheckpointError, PyllamaError, RequestError, UnsupportedError
from pyllama.packing import journal, pack, shard, unpack, verify
from pyllama.packing.pack import delete
from pyllama.streaming import StreamedWeights

IDS = [1, *((7 * i * i + 3 * i) % 101 for i in range(20))]
# The last panel of a matrix is not full, columns are odd or even, and each matrix makes several blocks.
SIZES = {"hidden_size": 54, "intermediate_size": 141, "num_attention_heads": 9, "vocab_size": 203, "head_dim": 6}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of two or three panels, so that tiny matrices have several."""
    monkeypatch.setattr(shard, "BLOCK_NBYTES", 3 * SECTOR)


def write_source(root: Path, form: str) -> Path:
    if form in ("tied", "tied-head-only", "tied-both"):
        config = tiny.tiny_config(**SIZES, tie_word_embeddings=True)
        tensors = tiny.random_tensors(config, seed=5)
        if form != "tied":
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        if form == "tied-head-only":
            del tensors["model.embed_tokens.weight"]
        return tiny.write_huggingface(root / form, config, tensors)
    if form in ("qwen2", "qwen3"):
        config = tiny.tiny_config(**SIZES, model_type=form)
        return tiny.write_huggingface(root / form, config, tiny.random_tensors(config, seed=6), shards=2)
    if form == "q8.gguf":
        config = tiny.tiny_config(
            hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=16
        )
        return tiny.write_gguf(root / form, config, tiny.random_tensors(config, seed=3), dtype="Q8_0")
    if form == "qwen2.gguf":
        config = tiny.tiny_config(**SIZES, model_type="qwen2")
        return tiny.write_gguf(root / form, config, tiny.random_tensors(config, seed=3), alignment=64)
    if form == "llama3.gguf":
        config = tiny.tiny_config(**SIZES, rope_scaling=LLAMA3)
        extra = {"tokenizer.ggml.tokens": ["a", "b\u00e9", ""], "tokenizer.ggml.scores": [0.0, -1.0, 0.5]}
        return tiny.write_gguf(root / form, config, tiny.random_tensors(config, seed=3), extra=extra, alignment=64)
    if form.startswith("meta"):
        sizes = SIZES | {"hidden_size": 96, "num_attention_heads": 6, "head_dim": 16, "num_key_value_heads": 2}
        config = tiny.tiny_config(**sizes | {"intermediate_size": 142, "vocab_size": 202})
        tensors = tiny.random_tensors(config, seed=4)
        if form == "meta":
            return tiny.write_meta(root / form, config, tensors)
        return tiny.write_meta(root / form, config, tensors, shards=2, embedding=form.removeprefix("meta-"))
    config = tiny.tiny_config(**SIZES)
    tensors = tiny.random_tensors(config, seed=4)
    if form == "split":
        (root / form).mkdir(parents=True, exist_ok=True)
        return tiny.write_gguf(root / form / "m.gguf", config, tensors, split=3)
    dtype, _, shards = form.partition("-")
    return tiny.write_huggingface(root / form, config, tensors, dtype=dtype, shards=int(shards or 1))


FORMS = (
    "BF16", "BF16-3", "F16", "F32", "tied", "tied-head-only", "tied-both", "qwen2", "qwen3", "split", "q8.gguf",
    "qwen2.gguf", "llama3.gguf", "meta", "meta-columns", "meta-rows",
)  # fmt: skip


def rows_of(checkpoint) -> dict[str, bytes]:
    return {name: checkpoint.read_rows(t, 0, t.rows).tobytes() for name, t in checkpoint.tensors.items()}


def logits_of(path: Path, **options) -> np.ndarray:
    with open_checkpoint(path) as checkpoint:
        weights = StreamedWeights(checkpoint, **options)
        try:
            interleaved = checkpoint.rope_interleaved
            decoder = Decoder(checkpoint.config, weights, context_length=64, rope_interleaved=interleaved)
            with decoder.new_sequence() as sequence:
                parts = [decoder.forward([(sequence, IDS[:-1])], "all"), decoder.forward([(sequence, IDS[-1:])])]
            return np.concatenate(parts).view(np.uint32)
        finally:
            weights.close()


@pytest.mark.parametrize("form", FORMS)
def test_every_format_keeps_its_bits_packed(tmp_path, form):
    source = write_source(tmp_path, form)
    packed = pack(source, tmp_path / "packed")
    with open_checkpoint(source) as old, open_checkpoint(packed) as new:
        assert new.packed and not old.packed
        assert (new.format, new.config, new.rope_interleaved) == (old.format, old.config, old.rope_interleaved)
        assert new.metadata.keys() == old.metadata.keys()
        for name, value in old.metadata.items():
            assert np.array_equal(
                np.asarray(list(value) if hasattr(value, "raw") else value),
                np.asarray(list(new.metadata[name]) if hasattr(value, "raw") else new.metadata[name]),
            ), name
        assert list(new.tensors) == list(old.tensors)
        for name, tensor in old.tensors.items():
            assert (new.tensors[name].dtype, new.tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert rows_of(new) == rows_of(old)
    assert (logits_of(source, pinned_nbytes=0) == logits_of(packed, pinned_nbytes=0)).all()
    assert (logits_of(source, pinned_nbytes=0) == logits_of(packed, pinned_nbytes=1 << 20)).all()
    assert verify(packed).damage == []


@pytest.mark.parametrize("form", FORMS)
def test_unpacking_gives_the_bytes_back(tmp_path, form):
    source = write_source(tmp_path, form)
    unpacked = unpack(pack(source, tmp_path / "packed"), tmp_path / "unpacked")
    stored = {}
    for path in unpacked.glob("*.safetensors"):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                stored[name] = entry["dtype"], tuple(entry["shape"]), data[8 + length + begin : 8 + length + end]
    with open_checkpoint(source) as checkpoint:
        expected = {
            name: (tensor.dtype, tensor.shape, checkpoint.read_rows(tensor, 0, tensor.rows).tobytes())
            if tensor.dtype in ("F32", "F16", "BF16")
            else ("U8", (tensor.rows, tensor.row_nbytes), checkpoint.read_rows(tensor, 0, tensor.rows).tobytes())
            for name, tensor in checkpoint.tensors.items()
        }
        huggingface = checkpoint.format == "huggingface"
    assert stored == expected
    if huggingface:  # the very model again
        assert (logits_of(unpacked) == logits_of(source)).all()


def escaping(source: Path, share: float) -> None:
    """Give that share of the weights of each matrix random bits: escapes, most of them."""
    random = np.random.default_rng(8)
    with open_checkpoint(source) as checkpoint:
        tensors = [t for t in checkpoint.tensors.values() if len(t.shape) == 2]
    for tensor in tensors:
        with open(tensor.parts[0].file, "r+b") as file:
            file.seek(tensor.parts[0].offset)
            bits = np.frombuffer(file.read(tensor.nbytes), "<u2").copy()
            chosen = random.random(len(bits)) < share
            bits[chosen] = random.integers(0, 1 << 16, chosen.sum())
            file.seek(tensor.parts[0].offset)
            file.write(bits.tobytes())


@pytest.mark.parametrize("share", [0.001, 0.02, 0.06, 0.2, 1.0])
def test_escapes_of_any_number_come_back(tmp_path, share):
    source = write_source(tmp_path, "BF16")
    escaping(source, share)
    packed = pack(source, tmp_path / "packed")
    with open_checkpoint(source) as old, open_checkpoint(packed) as new:
        assert rows_of(new) == rows_of(old)
        blocks = [block for tensor in new.tensors.values() for block in tensor.blocks if len(tensor.shape) == 2]
        projections = [block for t in new.tensors.values() if "proj" in t.name for block in t.blocks]
        full = {block.stored for block in projections if block.rows % kernels.PANEL == 0}
        if share < 0.01:
            assert full == {"packed"}
        if share == 1.0:
            assert full == {"rows"}
        for block in blocks:
            assert block.offset % SECTOR == 0
            assert block.rows <= kernels.PANEL or block.nbytes <= shard.BLOCK_NBYTES
    assert verify(packed).damage == []


def test_blocks_fill_the_slots_of_a_ring_and_never_exceed_them():
    for cols in (2048, 4096, 5120, 8192, 14336, 28672):
        from pyllama.checkpoint import Tensor

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shard, "BLOCK_NBYTES", 4 << 20)
            tensor = Tensor("w", "BF16", (16384, cols), ())
            for packed in (True, False):
                pieces = shard.cut(tensor, packed)
                assert sum(piece.rows for piece in pieces) == 16384
                assert all(piece.rows % kernels.PANEL == 0 for piece in pieces)
                sizes = [kernels.packed_nbytes(p.rows, cols) if packed else p.nbytes for p in pieces]
                assert (2 << 20) < min(sizes) and max(sizes) <= 4 << 20


def test_single_rows_of_a_packed_tensor_read_one_panel(tmp_path):
    source = write_source(tmp_path, "tied")
    escaping(source, 0.01)
    packed = pack(source, tmp_path / "packed")
    with open_checkpoint(source) as old, open_checkpoint(packed) as new:
        name = "model.embed_tokens.weight"
        a, b = old.tensors[name], new.tensors[name]
        assert [block.stored for block in b.blocks[:-1]] == ["packed"] * (len(b.blocks) - 1) and len(b.blocks) > 1
        panel = (b.cols + 1) // 2 * 96
        for row in range(a.rows):
            before = new.bytes_read
            assert (old.read_rows(a, row, 1) == new.read_rows(b, row, 1)).all()
            assert new.bytes_read - before < panel + 64 + 8 + 5 * 32 * b.cols // 10  # table, starts, escapes
        random = np.random.default_rng(1)
        for _ in range(100):
            row = int(random.integers(0, a.rows))
            count = int(random.integers(1, a.rows - row + 1))
            assert (old.read_rows(a, row, count) == new.read_rows(b, row, count)).all()


def test_an_untied_embedding_is_stored_as_rows(tmp_path):
    with open_checkpoint(pack(write_source(tmp_path, "BF16"), tmp_path / "packed")) as packed:
        embedding = packed.tensors["model.embed_tokens.weight"]
        assert {block.stored for block in embedding.blocks} == {"rows"}
        packed.read_rows(embedding, 7, 1)
        assert packed.bytes_read == embedding.row_nbytes


def test_the_container_is_safetensors_in_execution_order(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    packed = pack(write_source(tmp_path, "BF16"), tmp_path / "packed")
    with safetensors.safe_open(packed / "model.safetensors", "numpy") as file, open_checkpoint(packed) as checkpoint:
        assert file.metadata()["format"] == "pyllama-packed"
        assert set(file.keys()) == set(checkpoint.tensors)
        assert file.get_tensor("model.layers.0.mlp.up_proj.weight").shape[1] == SECTOR
        assert file.get_slice("model.norm.weight").get_dtype() == "BF16"


def test_blocks_lie_in_execution_order(tmp_path):
    with open_checkpoint(pack(write_source(tmp_path, "BF16"), tmp_path / "packed")) as packed:
        offsets = [block.offset for t in packed.tensors.values() if len(t.shape) == 2 for block in t.blocks]
        assert offsets == sorted(offsets) and all(offset % SECTOR == 0 for offset in offsets)


def test_the_same_source_gives_the_same_bytes(tmp_path):
    source = write_source(tmp_path, "BF16-3")
    one, two = pack(source, tmp_path / "one"), pack(source, tmp_path / "two")
    assert len(list(one.glob("*.safetensors"))) == 3
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}


def test_large_models_become_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "SHARD_NBYTES", 60_000)
    source = write_source(tmp_path, "BF16")
    packed = pack(source, tmp_path / "packed")
    files = sorted(packed.glob("*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    weight_map = json.loads((packed / "model.safetensors.index.json").read_bytes())["weight_map"]
    with open_checkpoint(source) as old, open_checkpoint(packed) as new:
        assert rows_of(new) == rows_of(old)
        assert weight_map == {name: t.blocks[0].file.name for name, t in new.tensors.items()}
    assert verify(packed).damage == []
    files[1].rename(packed / "away")
    with pytest.raises(CheckpointError, match="model-00002"):
        open_checkpoint(packed)


def test_files_of_two_packings_do_not_make_a_model(tmp_path):
    one, two = write_source(tmp_path / "a", "BF16-3"), write_source(tmp_path / "b", "BF16-3")
    escaping(two, 0.001)
    one, two = pack(one, tmp_path / "one"), pack(two, tmp_path / "two")
    name = "model-00002-of-00003.safetensors"
    os.replace(two / name, one / name)
    with pytest.raises(CheckpointError, match="expected the files of one packing"):
        open_checkpoint(one)


# Refusals


def test_what_cannot_be_packed_or_unpacked_is_told_in_a_line(tmp_path):
    source = write_source(tmp_path, "BF16")
    packed = pack(source, tmp_path / "packed")
    for call, message in (
        (lambda: pack(packed, tmp_path / "twice"), "is packed already"),
        (lambda: unpack(source, tmp_path / "x"), "not a packed model"),
        (lambda: pack(source, packed), "already there"),
        (lambda: pack(source, tmp_path / "no" / "x"), "no folder"),
        (lambda: pack(source, source / "config.json"), "already there"),
    ):
        with pytest.raises(RequestError, match=message):
            call()
    (tmp_path / "taken.packing").mkdir()
    (tmp_path / "taken.packing" / "thesis.tex").write_text("precious")
    with pytest.raises(PyllamaError, match="not left by pyllama"):
        pack(source, tmp_path / "taken")
    assert (tmp_path / "taken.packing" / "thesis.tex").read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["BF16", "packed", "taken.packing"]


def test_replacing_a_link_to_somewhere_is_refused(tmp_path):
    source = write_source(tmp_path, "BF16")
    (source / "model.safetensors").rename(tmp_path / "elsewhere")
    (source / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RequestError, match="a link to"):
        pack(source, tmp_path / "packed", replace=True)
    assert (tmp_path / "elsewhere").exists() and not (tmp_path / "packed.packing").exists()


def test_a_file_that_changed_is_not_deleted(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"new")
    with pytest.raises(CheckpointError, match="not deleted"):
        delete(path, (5, 0))
    assert path.exists()


# Damage


def flipped(path: Path, at: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def is_found(folder: Path) -> bool:
    try:
        return bool(verify(folder).damage)
    except PyllamaError:
        return True


def test_a_flipped_bit_anywhere_is_found(tmp_path):
    """Boundaries of everything, and a sample of the rest; what docs/packing.md claims was held once for every byte."""
    config = tiny.tiny_config(num_hidden_layers=1)
    packed = pack(
        tiny.write_huggingface(tmp_path / "m", config, tiny.random_tensors(config, seed=1)), tmp_path / "packed"
    )
    path = packed / "model.safetensors"
    random = np.random.default_rng(2)
    with open_checkpoint(packed) as checkpoint:
        edges = {0, 1, 7, 8, CRC_AT - 1, CRC_AT, CRC_AT + 7, CRC_AT + 8, SECTOR - 1, path.stat().st_size - 1}
        for tensor in checkpoint.tensors.values():
            for block in tensor.blocks:
                edges |= {block.offset - 1, block.offset, block.offset + block.nbytes - 1}
                edges.add(min(block.offset + block.nbytes, path.stat().st_size - 1))
    places = edges | set(random.integers(0, path.stat().st_size, 60).tolist()) | set(range(8, 60, 3))
    assert verify(packed).damage == []
    for at in sorted(places):
        bit = int(random.integers(0, 8))
        flipped(path, at, bit)
        assert is_found(packed), (at, bit)
        flipped(path, at, bit)
    for name in ("config.json",):
        flipped(packed / name, 3, 0)
        assert is_found(packed)
        flipped(packed / name, 3, 0)
    assert verify(packed).damage == []


def test_damage_is_named_by_tensor_and_rows(tmp_path, capsys):
    from pyllama.cli import main

    packed = pack(write_source(tmp_path, "BF16"), tmp_path / "packed")
    with open_checkpoint(packed) as checkpoint:
        tensor = checkpoint.tensors["model.layers.1.mlp.up_proj.weight"]
        block = tensor.blocks[1]
        assert main(["verify", str(packed)]) == 0
    flipped(packed / "model.safetensors", block.offset + 99, 3)
    assert main(["verify", str(packed), "--quiet"]) == 2
    printed = capsys.readouterr()
    assert f"{tensor.name}: rows {block.row} to {block.row + block.rows - 1} are damaged" in printed.out
    assert printed.err == f"pyllama: {packed}: damaged in 1 places, see above\n"
    # The model still opens; whoever reads those rows is told.
    with open_checkpoint(packed) as checkpoint:
        checkpoint.read_rows(tensor, 0, block.row)
        with pytest.raises(CheckpointError, match=rf"rows {block.row} to .* are damaged"):
            checkpoint.read_rows(tensor, 0, tensor.rows)
    with pytest.raises(CheckpointError, match="damaged"):
        logits_of(packed)
    with pytest.raises(CheckpointError, match="up_proj.* are damaged"):
        unpack(packed, tmp_path / "unpacked")
    assert not list(tmp_path.glob("unpacked*"))


def test_info_tells_a_packed_model(tmp_path, capsys):
    from pyllama.cli import main

    source = write_source(tmp_path, "BF16")
    assert main(["info", str(source)]) == 0
    assert "huggingface, 1 file" in capsys.readouterr().out
    assert main(["info", str(pack(source, tmp_path / "p"))]) == 0
    assert "huggingface, packed by pyllama, 1 file" in capsys.readouterr().out
    for path, packed in ((source, False), (tmp_path / "p", True)):
        assert main(["info", "--json", str(path)]) == 0
        assert json.loads(capsys.readouterr().out)["packed"] is packed


def test_verify_checks_the_bounds_of_other_models(tmp_path, capsys):
    from pyllama.cli import main

    source = write_source(tmp_path, "BF16")
    assert main(["verify", str(source)]) == 0
    assert "lie within their files" in capsys.readouterr().out
    os.truncate(source / "model.safetensors", (source / "model.safetensors").stat().st_size - 1)
    assert main(["verify", str(source)]) == 2
    assert "truncated?" in capsys.readouterr().err


def rewritten(path: Path, change) -> bytes:
    """The file with its header's metadata changed, and a checksum that fits."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % SECTOR)
    head = bytearray(len(text).to_bytes(8, "little") + text)
    head[CRC_AT : CRC_AT + 8] = b"%08x" % header_crc32(head)
    return bytes(head) + data[8 + length :]


def tensors_changed(change):
    def changed(header):
        tensors = json.loads(header["__metadata__"]["tensors"])
        change(tensors, header)
        header["__metadata__"]["tensors"] = json.dumps(tensors, separators=(",", ":"))

    return changed


UP = "model.layers.0.mlp.up_proj.weight"


def entry(index, value):
    def change(tensors, header):
        tensors[UP]["blocks"][0][index] = value

    return tensors_changed(change)


def field(key, value):
    return lambda header: header["__metadata__"].update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (entry(0, 33), "impossible sizes"),
        (entry(0, 0), "impossible sizes"),
        (entry(0, -32), "impossible sizes"),
        (entry(0, 2**40), "impossible sizes"),
        (entry(0, True), "impossible sizes"),
        (entry(1, 1), "impossible sizes"),
        (entry(1, 2**61), "impossible sizes"),
        (entry(2, 2**32), "impossible sizes"),
        (entry(3, False), "impossible sizes"),
        (entry(3, 1), "impossible sizes"),
        (tensors_changed(lambda t, h: t[UP].update(dtype="Q4_0")), "not a description"),
        (tensors_changed(lambda t, h: t[UP].update(dtype="F16")), "impossible sizes"),
        (tensors_changed(lambda t, h: t[UP].update(dtype=["BF16"])), "not a description"),
        (tensors_changed(lambda t, h: t[UP].update(shape=[2**31, 4])), "not a description"),
        (tensors_changed(lambda t, h: t[UP].update(shape=[])), "not a description"),
        (tensors_changed(lambda t, h: t[UP].update(blocks=[])), "not a description"),
        (tensors_changed(lambda t, h: t[UP]["blocks"].pop()), "expected 141 rows"),
        (tensors_changed(lambda t, h: t.pop(UP)), "described without being stored"),
        (tensors_changed(lambda t, h: t.update({UP: 5})), "expected dtype, shape and blocks"),
        (tensors_changed(lambda t, h: h[UP].update(dtype="I8")), "stored as I8"),
        (tensors_changed(lambda t, h: t["model.norm.weight"].update(blocks=[[1, 7, 0, False]])), "impossible"),
        (tensors_changed(lambda t, h: t["model.norm.weight"].update(shape=[27])), "stored as"),
        (field("version", "2"), "version '2'"),
        (field("source", "onnx"), "packed from"),
        (field("rope_interleaved", "True"), "rope_interleaved"),
        (field("shard", "2"), "not shard 1"),
        (field("shards", "3"), "not shard 1"),
        (field("shards", "9" * 99), "shards is"),
        (field("previous", "00000001"), "not shard 1"),
        (field("files", '{"../x":[1,2]}'), "taken along"),
        (field("files", '{"x":[1]}'), "taken along"),
        (field("files", "[]"), "expected a JSON object"),
        (field("tensors", "["), "not valid JSON"),
        (field("more", "x"), "other keys"),
        (field("shard", 1), "other keys"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, change, message):
    packed = pack(write_source(tmp_path, "BF16"), tmp_path / "packed")
    path = packed / "model.safetensors"
    path.write_bytes(rewritten(path, change))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(packed).close()


def test_a_tensor_of_another_shape_than_the_config_wants_is_refused(tmp_path):
    packed = pack(write_source(tmp_path, "BF16"), tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(config | {"intermediate_size": 140}))
    with pytest.raises(CheckpointError, match=r"expected \(140, 54\) from config.json"):
        open_checkpoint(packed)


def test_random_damage_to_headers_never_gets_further_than_an_error(tmp_path):
    """With checksums that fit, as somebody would write them who means harm."""
    packed = pack(write_source(tmp_path, "tied"), tmp_path / "packed")
    path = packed / "model.safetensors"
    sound = path.read_bytes()
    end = 8 + int.from_bytes(sound[:8], "little")
    used = len(sound[:end].rstrip(b" "))
    random = np.random.default_rng(3)
    opened = 0
    for _ in range(400):
        data = bytearray(sound)
        for _ in range(random.integers(1, 4)):
            at = int(random.integers(CRC_AT + 8, used))
            data[at] = int(random.choice(np.frombuffer(b'0123456789[]{},:"\\efalstru', np.uint8)))
        data[CRC_AT : CRC_AT + 8] = b"%08x" % header_crc32(data[:end])
        path.write_bytes(data)
        try:
            with open_checkpoint(packed) as checkpoint:
                opened += 1
                for tensor in checkpoint.tensors.values():
                    try:
                        checkpoint.read_rows(tensor, 0, tensor.rows)
                        checkpoint.read_rows(tensor, tensor.rows - 1, 1)
                    except CheckpointError:
                        pass
        except PyllamaError:
            pass
    assert opened > 0


def test_packed_blocks_that_lie_about_their_escapes_are_refused(tmp_path):
    """The checksum fits, the block does not."""
    source = write_source(tmp_path, "tied")
    escaping(source, 0.01)
    packed = pack(source, tmp_path / "packed")
    path = packed / "model.safetensors"
    with open_checkpoint(packed) as checkpoint:
        tensor = checkpoint.tensors["model.embed_tokens.weight"]
        block = tensor.blocks[0]
    sound = path.read_bytes()
    panels = -(-block.rows // kernels.PANEL)
    starts = 64 + panels * ((tensor.cols + 1) // 2) * 96
    for at in (16, starts, starts + 4, starts + 4 * panels, starts + 4 * (panels + 1)):
        data = bytearray(sound)
        data[block.offset + at : block.offset + at + 4] = (2**32 - 5).to_bytes(4, "little")
        crc32 = zlib.crc32(data[block.offset : block.offset + block.nbytes])
        path.write_bytes(data)

        def change(tensors, header):
            tensors[tensor.name]["blocks"][0][2] = crc32  # noqa: B023 - called at once

        path.write_bytes(rewritten(path, tensors_changed(change)))
        with open_checkpoint(packed) as checkpoint:
            moved = checkpoint.tensors[tensor.name]
            with pytest.raises(CheckpointError, match="are damaged"):
                checkpoint.read_rows(moved, 0, block.rows)
            for row in range(block.rows):
                try:
                    checkpoint.read_rows(moved, row, 1)
                except CheckpointError:
                    pass
        with pytest.raises(PyllamaError):
            logits_of(packed, pinned_nbytes=0)
        assert "are damaged" in verify(packed).damage[0]


def test_a_shard_says_what_it_is(tmp_path):
    from pyllama.checkpoint.files import InputFile

    packed = pack(write_source(tmp_path, "BF16"), tmp_path / "packed")
    file = InputFile(packed / "model.safetensors")
    found = read_shard(file)
    fields, stored = read_header(file)
    file.close()
    assert (found.shard, found.shards, found.previous, found.source) == (1, 1, 0, "huggingface")
    assert set(found.files) == {"config.json"} and fields["version"] == "1"
    assert list(found.tensors) == list(stored)
    assert found.tensors[UP]._replace(blocks=()).shape == (141, 54)


def test_a_newer_version_is_unsupported_not_damaged(tmp_path):
    packed = pack(write_source(tmp_path, "BF16"), tmp_path / "packed")
    path = packed / "model.safetensors"
    path.write_bytes(rewritten(path, lambda header: header["__metadata__"].update(version="7", layout="new")))
    with pytest.raises(UnsupportedError, match="version '7'"):
        open_checkpoint(packed)
