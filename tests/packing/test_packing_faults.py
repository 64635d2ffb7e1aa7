"""Packing that is killed, interrupted or out of disk: nothing half-made, nothing lost, nothing left over."""

import importlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from hub_server import Repo, own_caches, serving
from killing import run_killed

import pyllama
from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.files import InputFile
from pyllama.checkpoint.packed import read_shard
from pyllama.cli import main
from pyllama.errors import CheckpointError, HubError, PackError
from pyllama.hub import http, pull
from pyllama.packing import journal, pack, pull_packed, shard, unpack, verify
from pyllama.packing.workplace import JOURNAL

CONFIG = tiny.tiny_config(hidden_size=96, intermediate_size=160, num_attention_heads=6, head_dim=16, vocab_size=160)
TENSORS = tiny.random_tensors(CONFIG, seed=1)
SHARDS = 3


def write_source(folder: Path, shards: int = SHARDS) -> Path:
    tiny.write_huggingface(folder, CONFIG, TENSORS, shards=shards)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "source")


def stored_rows(path: Path) -> dict[str, bytes]:
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.read_rows(t, 0, t.rows).tobytes() for name, t in checkpoint.tensors.items()}


EXPECTED = {name: tiny.encode_plain("BF16", values) for name, values in TENSORS.items()}


def assert_whole(packed: Path) -> None:
    assert stored_rows(packed) == EXPECTED
    assert verify(packed).damage == []
    names = {"config.json", "tokenizer.json", "model.safetensors.index.json"}
    names |= {f"model-{i:05}-of-{SHARDS:05}.safetensors" for i in range(1, SHARDS + 1)}
    assert {path.name for path in packed.iterdir()} == names


def found_somewhere(source: Path, packed: Path) -> dict[str, bytes]:
    """Every tensor that a finished packed file, or else a source file, holds."""
    from pyllama.checkpoint.packed_rows import read_rows
    from pyllama.checkpoint.safetensors import read_safetensors

    found = {}
    for path in [*source.glob("*.safetensors"), *packed.glob("*.safetensors"), *partly(packed).glob("*.safetensors")]:
        file = InputFile(path)

        def read(span, file=file):
            return np.frombuffer(file.read(span.offset, span.nbytes), np.uint8)

        if path.parent == source:
            for name, tensor in read_safetensors(file).items():
                found[name] = file.read(tensor.parts[0].offset, tensor.nbytes)
        else:
            for name, tensor in read_shard(file).tensors.items():
                found[name] = read_rows(tensor, 0, tensor.rows, read).tobytes()
        file.close()
    return found


def partly(packed: Path) -> Path:
    return packed.with_name(packed.name + ".packing")


# Kills

KILLED = """
from pyllama.packing import pack, journal, pull_packed, shard
count("pwrite", "replace", "rename", "unlink", "fsync", "fdatasync", "mkdir", "open", "listdir")
shard.BLOCK_NBYTES = 8192
pack(sys.argv[1], sys.argv[2], replace=sys.argv[3] == "replace")
"""


STEPS = (3, 11, 24, 40, 57, 75, 96, 120)


def test_a_killed_pack_leaves_nothing_or_a_whole_model(tmp_path, source):
    """At a few steps here; it was held once for all of them, and at 50 random moments."""
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    lived = False
    for step in STEPS:
        packed = tmp_path / f"packed-{step}"
        lived = run_killed(KILLED, step, source, packed, "keep")
        assert {path.name: path.read_bytes() for path in source.iterdir()} == before
        if packed.exists():
            (packed / JOURNAL).unlink(missing_ok=True)
            assert_whole(packed)
        else:
            pack(source, packed)
            assert_whole(packed)
        assert not partly(packed).exists()
        if lived:
            break


def test_a_killed_replace_loses_no_weight_and_goes_on(tmp_path):
    """Killed every few steps of its life, until it is done."""
    for every in (11, 31):
        source, packed = write_source(tmp_path / f"source-{every}"), tmp_path / f"packed-{every}"
        for attempt in range(100):
            lived = run_killed(KILLED, every * (attempt + 1), source, packed, "replace")
            assert found_somewhere(source, packed).items() >= EXPECTED.items()
            if lived:
                break
            assert not packed.exists() or not partly(packed).exists()
            if packed.exists():
                break
        (packed / JOURNAL).unlink(missing_ok=True)
        assert_whole(packed)
        assert not list(source.glob("*.safetensors")) and (source / "config.json").exists()


# Interruptions and going on


@pytest.fixture
def module():
    """The module; the name in the package is the function."""
    return importlib.import_module("pyllama.packing.pack")


def interrupted(module, monkeypatch, number: int, error: BaseException) -> list[str]:
    """The writing of the number-th file ends in `error`; the names of the files begun."""
    begun = []
    real = shard.write_shard

    def write(path, *args, **options):
        begun.append(path.name.removesuffix(".part"))
        if len(begun) == number:
            path.write_bytes(b"half")
            raise error
        return real(path, *args, **options)

    monkeypatch.setattr(module, "write_shard", write)
    return begun


def test_after_ctrl_c_the_finished_files_are_kept(tmp_path, source, module, monkeypatch):
    packed = tmp_path / "packed"
    begun = interrupted(module, monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pack(source, packed)
    assert not packed.exists() and not list(partly(packed).glob("*.part"))
    assert len(list(partly(packed).glob("*.safetensors"))) == 2
    begun.clear()
    pack(source, packed)
    assert begun == ["model-00003-of-00003.safetensors"]
    assert_whole(packed)


def test_ctrl_c_before_anything_is_finished_leaves_nothing(tmp_path, source, module, monkeypatch):
    interrupted(module, monkeypatch, 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "packed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_kept_file_that_got_damaged_is_written_again(tmp_path, source, module, monkeypatch):
    packed = tmp_path / "packed"
    begun = interrupted(module, monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pack(source, packed)
    path = partly(packed) / "model-00002-of-00003.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    begun.clear()
    pack(source, packed)
    assert begun == ["model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"]
    assert_whole(packed)


def test_a_source_that_changed_is_packed_from_the_start(tmp_path, source, module, monkeypatch):
    packed = tmp_path / "packed"
    begun = interrupted(module, monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pack(source, packed)
    os.utime(source / "model-00001-of-00003.safetensors", ns=(1, 1))
    begun[:] = ["counted"] * 5
    pack(source, packed)
    assert len(begun) == 5 + SHARDS
    assert_whole(packed)


def test_an_error_leaves_nothing(tmp_path, source, module, monkeypatch):
    interrupted(module, monkeypatch, 3, OSError(28, "No space left on device"))
    with pytest.raises(PackError, match="packed: the disk is full"):
        pack(source, tmp_path / "packed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_two_at_once_in_one_place_are_refused(tmp_path, source, module, monkeypatch):
    packed = tmp_path / "packed"
    real = shard.write_shard

    def write(path, *args, **options):
        with pytest.raises(PackError, match="another process"):
            pack(source, packed)
        return real(path, *args, **options)

    monkeypatch.setattr(module, "write_shard", write)
    pack(source, packed)
    assert_whole(packed)


# Replacing


def test_replace_deletes_file_by_file(tmp_path, source, module, monkeypatch):
    packed = tmp_path / "packed"
    left = []
    real = shard.write_shard

    def write(path, *args, **options):
        left.append(len(list(source.glob("*.safetensors"))))
        return real(path, *args, **options)

    monkeypatch.setattr(module, "write_shard", write)
    pack(source, packed, replace=True)
    assert left == [3, 2, 1]
    assert sorted(path.name for path in source.iterdir()) == [
        "config.json", "model.safetensors.index.json", "tokenizer.json"]  # fmt: skip
    assert_whole(packed)


def test_a_replace_half_done_is_not_given_up_and_only_finished_with_its_source(tmp_path, source, module, monkeypatch):
    packed = tmp_path / "packed"
    interrupted(module, monkeypatch, 3, OSError(28, "No space left on device"))
    with pytest.raises(PackError, match="the disk is full"):
        pack(source, packed, replace=True)
    assert len(list(source.glob("*.safetensors"))) == 1
    assert len(list(partly(packed).glob("*.safetensors"))) == 2 and not list(partly(packed).glob("*.part"))
    monkeypatch.undo()
    other = write_source(tmp_path / "other")
    with pytest.raises(PackError, match="may be nowhere else"):
        pack(other, packed)
    assert found_somewhere(source, packed).items() >= EXPECTED.items()
    # Without --replace it goes on as well.
    pack(source, packed)
    assert_whole(packed)


def test_a_damaged_file_whose_source_is_gone_is_told_and_kept(tmp_path, source, module, monkeypatch):
    packed = tmp_path / "packed"
    interrupted(module, monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pack(source, packed, replace=True)
    path = partly(packed) / "model-00001-of-00003.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(PackError, match="are damaged.*; its source is gone"):
        pack(source, packed, replace=True)
    assert path.read_bytes() == data and len(list(source.glob("*.safetensors"))) == 1


def test_what_reads_back_differently_is_not_deleted(tmp_path, source, module, monkeypatch):
    """A disk that keeps other bytes than it was given, with a checksum that fits them."""
    real = shard._kernels.pack

    def pack_wrong(matrix, out):
        nbytes = real(matrix, out)
        out[100] ^= 1
        return nbytes

    class Kernels:
        pack = staticmethod(pack_wrong)

        def __getattr__(self, name):
            return getattr(shard_kernels, name)

    shard_kernels = shard._kernels
    monkeypatch.setattr(shard, "_kernels", Kernels())
    with pytest.raises(CheckpointError, match="came out differently"):
        pack(source, tmp_path / "packed", replace=True)
    assert stored_rows(source) == EXPECTED and not list(tmp_path.glob("packed*"))


def test_replace_takes_the_blobs_of_the_hubs_cache_along(tmp_path):
    snapshot = write_source(tmp_path / "models--a--b" / "snapshots" / ("0" * 40))
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for path in snapshot.glob("*.safetensors"):
        path.rename(blobs / path.name)
        path.symlink_to(f"../../blobs/{path.name}")
    packed = pack(snapshot, tmp_path / "packed", replace=True)
    assert_whole(packed)
    assert list(blobs.iterdir()) == [] and not list(snapshot.glob("*.safetensors"))


def test_replace_of_a_gguf_and_of_metas_shards(tmp_path):
    for source in (
        tiny.write_gguf(tmp_path / "a" / "m.gguf", CONFIG, TENSORS, split=2),
        tiny.write_meta(tmp_path / "meta", CONFIG, TENSORS, shards=2),
    ):
        expected = stored_rows(source)
        packed = pack(source, tmp_path / f"{source.name}-packed", replace=True)
        assert stored_rows(packed) == expected and verify(packed).damage == []
        left = list((source if source.is_dir() else source.parent).glob("*"))
        assert [path.name for path in left] == (["params.json"] if source.name == "meta" else [])


# Full disks


def test_too_little_space_is_told_before_anything_is_written(tmp_path, source, module, monkeypatch):
    class Usage:
        free = 100_000

    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(PackError, match=r"of disk space are missing; free some, or give --replace"):
        pack(source, tmp_path / "packed")
    # Room for one file more than there is: enough to replace.
    with open_checkpoint(source) as checkpoint:
        sizes = journal.Journal.of(checkpoint, "", True)
    Usage.free = max(sizes.estimated_nbytes(tensors) for tensors in sizes.shards) + 60_000
    assert Usage.free < sum(sizes.estimated_nbytes(tensors) for tensors in sizes.shards)
    assert_whole(pack(source, tmp_path / "packed", replace=True))


def cli(*arguments: str | Path, limit: int | None = None) -> subprocess.CompletedProcess:
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environment = {**os.environ, "PYTHONPATH": str(Path(pyllama.__file__).parents[1])}
    command = [sys.executable, "-m", "pyllama", *map(str, arguments)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, preexec_fn=small_files if limit else None
    )


@pytest.mark.parametrize("command", ["pack", "unpack"])
def test_a_full_disk_is_one_line_and_no_leftovers(tmp_path, source, command):
    """A limit on the size of files fails as a full disk does, in the middle of a write."""
    model = pack(source, tmp_path / "model") if command == "unpack" else source
    before = sorted(path.name for path in tmp_path.iterdir())
    done = cli(command, model, tmp_path / "new", limit=60_000)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("pyllama: ") and "the disk is full" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
@pytest.mark.parametrize("kilobytes", [8, 40, 100, 160])
def test_a_full_tmpfs_is_one_line_and_no_leftovers(tmp_path, source, module, monkeypatch, kilobytes):
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k"]
    if subprocess.run(["mount", *options, "none", disk], capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        monkeypatch.setattr(module, "_check_space", lambda work, plan: None)
        with pytest.raises(PackError, match="the disk is full"):
            pack(source, disk / "packed")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_killed_unpack_is_begun_again(tmp_path, source):
    packed = pack(source, tmp_path / "packed")
    begun = tmp_path / "un.unpacking"
    begun.mkdir()
    (begun / JOURNAL).write_text(json.dumps({"work": "unpack"}))
    (begun / "model.safetensors.part").write_bytes(b"half")
    assert stored_rows(unpack(packed, tmp_path / "un")) == EXPECTED
    assert not begun.exists()


def test_a_source_that_fails_under_way_is_told(tmp_path, source, monkeypatch):
    """An injected EIO."""
    real = os.preadv

    def failing(fd, buffers, offset):
        if sum(len(buffer) for buffer in buffers) > 4096 and "source" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(5, "Input/output error")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(CheckpointError, match="input/output error"):
        pack(source, tmp_path / "packed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


# Pulling


@pytest.fixture
def hub(tmp_path, monkeypatch):
    own_caches(tmp_path, monkeypatch)
    monkeypatch.setattr(http, "RETRY_DELAYS_S", (0.0,) * 5)
    with serving() as served:
        folder = write_source(tmp_path / "served")
        served.repos["acme/tiny"] = Repo({path.name: path.read_bytes() for path in folder.iterdir()})
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


def weights_cached(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "hf").rglob("*.safetensors"))


def blobs_nbytes(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in (tmp_path / "hf").rglob("blobs/*"))


def test_pull_packs_while_it_fetches(tmp_path, hub, module, monkeypatch, capsys):
    cached = []
    real = shard.write_shard

    def write(path, *args, **options):
        cached.append(weights_cached(tmp_path))
        return real(path, *args, **options)

    monkeypatch.setattr(module, "write_shard", write)
    assert main(["pull", "--pack", str(tmp_path / "packed"), "acme/tiny"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'packed'}\n"
    assert_whole(tmp_path / "packed")
    assert cached == [[f"model-{i:05}-of-00003.safetensors"] for i in (1, 2, 3)]
    assert weights_cached(tmp_path) == [] and blobs_nbytes(tmp_path) < 5000
    assert {p.name: p.read_bytes() for p in (tmp_path / "packed").iterdir()} == {
        p.name: p.read_bytes() for p in pack(tmp_path / "served", tmp_path / "local").iterdir()
    }


def test_pull_goes_on_after_a_broken_connection_and_keeps_what_it_has(tmp_path, hub):
    third = "model-00003-of-00003.safetensors"
    hub.faults.only, hub.faults.statuses = third, [500] * 20
    with pytest.raises(HubError, match="HTTP 500"):
        pull_packed("acme/tiny", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    hub.faults.statuses = []
    hub.requests.clear()
    assert_whole(pull_packed("acme/tiny", tmp_path / "packed"))
    fetched = {request.path.rpartition("/")[2].partition("?")[0] for request in hub.file_requests()}
    assert {name for name in fetched if name.endswith(".safetensors")} == {third}


def test_pull_goes_on_with_the_commit_it_began_with(tmp_path, hub):
    hub.faults.only, hub.faults.statuses = "model-00003-of-00003.safetensors", [500] * 20
    with pytest.raises(HubError):
        pull_packed("acme/tiny", tmp_path / "packed")
    journal = json.loads((partly(tmp_path / "packed") / JOURNAL).read_text())
    assert journal["commit"] == hub.repos["acme/tiny"].commit
    hub.faults.statuses = []
    # The hub has a newer commit by now, and the server here knows none but the newest.
    hub.repos["acme/tiny"].files["README.md"] = b"new"
    with pytest.raises(HubError, match="no revision"):
        pull_packed("acme/tiny", tmp_path / "packed")
    assert len(list(partly(tmp_path / "packed").glob("*.safetensors"))) == 2


def test_pull_leaves_what_was_in_the_cache_before(tmp_path, hub):
    pull("acme/tiny")
    pull_packed("acme/tiny", tmp_path / "packed")
    assert_whole(tmp_path / "packed")
    assert len(weights_cached(tmp_path)) == 3


@pytest.mark.parametrize("form", ["single", "gguf"])
def test_pull_packs_other_forms_when_they_are_there(tmp_path, hub, form):
    if form == "single":
        folder = write_source(tmp_path / "one", shards=1)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
    else:
        folder = tiny.write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS)
        files = {"m.gguf": folder.read_bytes()}
    hub.repos["acme/other"] = Repo(files)
    packed = pull_packed("acme/other", tmp_path / "packed")
    assert stored_rows(packed) == stored_rows(folder)
    assert blobs_nbytes(tmp_path) < 5000


def test_pull_refuses_a_model_it_cannot_run_before_fetching_its_weights(tmp_path, hub):
    files = hub.repos["acme/tiny"].files
    index = json.loads(files["model.safetensors.index.json"])
    index["weight_map"]["model.layers.0.mlp.experts.0.w1"] = "model-00001-of-00003.safetensors"
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    with pytest.raises(CheckpointError, match="experts.0.w1"):
        pull_packed("acme/tiny", tmp_path / "packed")
    assert not list(tmp_path.glob("packed*")) and weights_cached(tmp_path) == []


@pytest.mark.parametrize("kind", tiny.FAMILIES)
def test_pull_packs_every_family_as_published_in_several_files(tmp_path, hub, kind):
    config = tiny.tiny_config(model_type=kind)
    folder = tiny.write_huggingface(tmp_path / "m", config, tiny.random_tensors(config), shards=2)
    hub.repos["acme/family"] = Repo({path.name: path.read_bytes() for path in folder.iterdir()})
    assert stored_rows(pull_packed("acme/family", tmp_path / "packed")) == stored_rows(folder)
    assert blobs_nbytes(tmp_path) < 20_000  # config.json and the like: of the weights none


def test_pull_says_which_file_the_hub_has_not(tmp_path, hub):
    del hub.repos["acme/tiny"].files["model-00002-of-00003.safetensors"]
    with pytest.raises(CheckpointError, match="model-00002-of-00003.safetensors"):
        pull_packed("acme/tiny", tmp_path / "packed")
    assert not list(tmp_path.glob("packed*")) and weights_cached(tmp_path) == []


def test_a_tied_head_without_its_embedding_is_packed_as_the_embedding(tmp_path, hub):
    config = CONFIG | {"tie_word_embeddings": True}
    tensors = {name: values for name, values in TENSORS.items() if name != "model.embed_tokens.weight"}
    folder = tiny.write_huggingface(tmp_path / "tied", config, tensors, shards=2)
    hub.repos["acme/tied"] = Repo({path.name: path.read_bytes() for path in folder.iterdir()})
    packed = pull_packed("acme/tied", tmp_path / "packed")
    assert stored_rows(packed) == stored_rows(folder)
    assert np.frombuffer(stored_rows(packed)["model.embed_tokens.weight"], np.uint16).any()
