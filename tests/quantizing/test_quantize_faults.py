"""Quantizing that is killed, interrupted, short of disk or of memory: a whole file, or none."""

import importlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from killing import run_killed

import pyllama
from pyllama.errors import CheckpointError, PackError, RequestError
from pyllama.quantizing import quantize, workplace
from pyllama.quantizing import rows as rows_module

CONFIG = tiny.tiny_config(hidden_size=96, intermediate_size=160, num_attention_heads=6, head_dim=16, vocab_size=160)
TENSORS = tiny.random_tensors(CONFIG, seed=1)
TYPE = "q5_0"


@pytest.fixture
def source(tmp_path):
    return write(tmp_path)


def write(folder: Path) -> Path:
    return tiny.write_gguf(folder / "source.gguf", CONFIG, TENSORS, extra={"tokenizer.ggml.model": "no_vocab"})


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    return quantize(write(folder), folder / "made.gguf", TYPE).read_bytes()


@pytest.fixture
def module(monkeypatch):
    """quantizing.quantize, the module: the package has the function under that name. With marks after every piece."""
    monkeypatch.setattr(workplace, "MARK_NBYTES", 1)
    found = importlib.import_module("pyllama.quantizing.quantize")
    monkeypatch.setattr(found, "_PIECES", (8192, 1))
    return found


def beside(path: Path) -> Path:
    return path.with_name(path.name + workplace.SUFFIX)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Kills

KILLED = """
import importlib
from pyllama.quantizing import quantize, workplace
module = importlib.import_module("pyllama.quantizing.quantize")
count("pwrite", "replace", "rename", "unlink", "rmdir", "fsync", "mkdir", "open", "ftruncate", "listdir")
workplace.MARK_NBYTES = 20_000
module._PIECES = (8192, 1)
quantize(sys.argv[1], sys.argv[2], sys.argv[3])
"""


def test_a_killed_run_leaves_nothing_or_a_whole_file_and_goes_on(tmp_path, source, expected):
    """At a few steps here; it was held once for all of them."""
    life = run_killed(KILLED, 10**6, source, tmp_path / "whole.gguf", TYPE)
    before = source.read_bytes()
    for step in (
        1,
        2,
        4,
        9,
        19,
        life // 2,
        life - 13,
        life - 7,
        life - 5,
        life - 4,
        life - 3,
        life - 2,
        life - 1,
        life,
    ):
        made = tmp_path / f"made-{step}.gguf"
        assert run_killed(KILLED, step, source, made, TYPE) == 0
        assert source.read_bytes() == before
        if made.exists():  # killed when all was done but for the tidying up
            assert made.read_bytes() == expected
            with pytest.raises(RequestError, match="already there"):
                quantize(source, made, TYPE)
        else:
            assert quantize(source, made, TYPE).read_bytes() == expected
        assert not beside(made).exists(), step


def test_killed_again_and_again_it_comes_to_an_end(tmp_path, source, expected):
    made = tmp_path / "made.gguf"
    for attempt in range(60):
        if run_killed(KILLED, 40 + attempt, source, made, TYPE):
            break
    assert made.read_bytes() == expected and left(tmp_path) == ["made.gguf", "source.gguf"]


def interrupted(monkeypatch, after: int, error: BaseException) -> list[str]:
    """From now on what is read is written down, and the piece after so many fails; `after` counts down to that."""
    read: list[str] = []
    real = rows_module._kernels.widen

    class Kernels:
        @staticmethod
        def widen(matrix, out):
            read.append(matrix.dtype)
            if len(read) == after:
                raise error
            return real(matrix, out)

        def __getattr__(self, name):
            return getattr(kernels, name)

    kernels = rows_module._kernels
    monkeypatch.setattr(rows_module, "_kernels", Kernels())
    return read


def test_ctrl_c_keeps_what_was_done(tmp_path, source, expected, module, monkeypatch):
    made = tmp_path / "made.gguf"
    monkeypatch.setattr(workplace, "MARK_NBYTES", 1 << 30)
    read = interrupted(monkeypatch, 30, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        quantize(source, made, TYPE)
    assert not made.exists() and beside(made).is_dir()
    read[:] = [""] * 30
    assert quantize(source, made, TYPE).read_bytes() == expected
    total = len(list(rows_module.pieces(outline_of(source), 8192)))
    assert len(read) - 30 == total - 29


def outline_of(source):
    from pyllama.checkpoint import open_checkpoint
    from pyllama.quantizing.outline import outline
    from pyllama.quantizing.types import file_type

    with open_checkpoint(source) as checkpoint:
        return outline(checkpoint, file_type(TYPE)).tensors


@pytest.mark.parametrize("change", ["source", "type", "byte", "mark", "short"])
def test_what_was_done_for_another_file_or_is_damaged_is_done_again(tmp_path, source, module, monkeypatch, change):
    made = tmp_path / "made.gguf"
    read = interrupted(monkeypatch, 30, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        quantize(source, made, TYPE)
    type = TYPE
    unfinished = beside(made) / workplace.UNFINISHED
    if change == "source":
        os.utime(source, ns=(1, 1))
    elif change == "type":
        type = "q4_1"
    elif change == "byte":
        data = bytearray(unfinished.read_bytes())
        data[4000] ^= 1
        unfinished.write_bytes(data)
    elif change == "mark":
        (beside(made) / workplace.MARK).write_text("[0, 5")
    else:
        os.truncate(unfinished, 5000)
    read[:] = [""] * 30
    whole = quantize(source, tmp_path / "whole.gguf", type).read_bytes()
    everything = len(read)
    read[:] = [""] * 30
    assert quantize(source, made, type).read_bytes() == whole
    assert len(read) == everything


def test_an_error_leaves_nothing(tmp_path, source, module, monkeypatch):
    interrupted(monkeypatch, 30, OSError(28, "No space left on device"))
    with pytest.raises(PackError, match=r"made.gguf: the disk is full"):
        quantize(source, tmp_path / "made.gguf", TYPE)
    assert left(tmp_path) == ["source.gguf"]


def test_a_source_that_changes_under_way_is_told(tmp_path, source, module, monkeypatch):
    real = workplace.GrowingFile.sync

    def sync(self):
        real(self)
        os.utime(source, ns=(5, 5))

    monkeypatch.setattr(workplace, "MARK_NBYTES", 1 << 30)
    monkeypatch.setattr(workplace.GrowingFile, "sync", sync)
    with pytest.raises(CheckpointError, match="source.gguf: changed while it was being quantized"):
        quantize(source, tmp_path / "made.gguf", TYPE)
    assert left(tmp_path) == ["source.gguf"]


def test_two_at_once_in_one_place_are_refused(tmp_path, source, expected, module, monkeypatch):
    made = tmp_path / "made.gguf"
    real = module._write

    def write_twice(*args):
        with pytest.raises(PackError, match="another process is at work in it"):
            quantize(source, made, TYPE)
        real(*args)

    monkeypatch.setattr(module, "_write", write_twice)
    assert quantize(source, made, TYPE).read_bytes() == expected


def test_what_comes_to_be_there_meanwhile_is_not_written_over(tmp_path, source, expected, module, monkeypatch):
    made = tmp_path / "made.gguf"
    real = module._write

    def write_late(*args):
        real(*args)
        made.write_text("precious")

    monkeypatch.setattr(module, "_write", write_late)
    with pytest.raises(PackError, match="has come to exist; what was made is"):
        quantize(source, made, TYPE)
    assert made.read_text() == "precious"
    made.unlink()
    monkeypatch.undo()
    assert quantize(source, made, TYPE).read_bytes() == expected


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path, source):
    made = tmp_path / "made.gguf"
    beside(made).mkdir()
    (beside(made) / "letters.txt").write_text("x")
    with pytest.raises(PackError, match="in the way, and not left by pyllama"):
        quantize(source, made, TYPE)
    (beside(made) / workplace.JOURNAL).write_text(json.dumps({"work": "pack"}))
    with pytest.raises(PackError, match="left by another command"):
        quantize(source, made, TYPE)
    assert (beside(made) / "letters.txt").exists()


# Full disks, small memories


def cli(*arguments: str | Path, limit: int | None = None) -> subprocess.CompletedProcess:
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environment = {**os.environ, "PYTHONPATH": str(Path(pyllama.__file__).parents[1])}
    command = [sys.executable, "-m", "pyllama", *map(str, arguments)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, preexec_fn=small_files if limit else None
    )


def test_a_full_disk_is_one_line_and_no_leftovers(tmp_path, source):
    """A limit on the size of files fails as a full disk does, in the middle of a write."""
    done = cli("quantize", source, tmp_path / "made.gguf", "--type", TYPE, limit=60_000)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"pyllama: {tmp_path}/made.gguf: the disk is full\n"
    assert left(tmp_path) == ["source.gguf"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
@pytest.mark.parametrize("kilobytes", [8, 40, 100, 120])
def test_a_full_tmpfs_is_one_line_and_no_leftovers(tmp_path, source, module, monkeypatch, kilobytes):
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k"]
    if subprocess.run(["mount", *options, "none", disk], capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        monkeypatch.setattr(module, "_check_space", lambda work, made, mark: None)
        with pytest.raises(PackError, match="the disk is full"):
            quantize(source, disk / "made.gguf", TYPE)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_too_little_space_is_told_before_anything_is_written(tmp_path, source, module, monkeypatch):
    class Usage:
        free = 100_000

    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(PackError, match=r"made.gguf: [0-9.]+ KB of disk space are missing; free some"):
        quantize(source, tmp_path / "made.gguf", TYPE)
    assert left(tmp_path) == ["source.gguf"]


def test_a_folder_that_cannot_be_written_is_told(tmp_path, source):
    done = cli("quantize", source, "/proc/made.gguf", "--type", TYPE)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("pyllama: /proc/made.gguf")


MEASURED = """
import sys
from pyllama.machine.memory import peak_resident_nbytes
from pyllama.quantizing import quantize
quantize(sys.argv[1], sys.argv[2], sys.argv[3], memory=int(sys.argv[4]))
print(peak_resident_nbytes())
"""


@pytest.mark.skipif(os.environ.get("PYLLAMA_EMULATED") == "1", reason="counts the emulator's memory too")
@pytest.mark.parametrize("type", ["q4_k_m", "f16"])
def test_the_process_stays_within_its_memory(tmp_path, type):
    """A model of 90 MB, in as little as is possible and in some more."""
    config = tiny.tiny_config(hidden_size=1024, intermediate_size=4096, num_attention_heads=8, num_key_value_heads=8,
                              head_dim=128, vocab_size=4096)  # fmt: skip
    source = tiny.write_gguf(
        tmp_path / "source.gguf", config, tiny.random_tensors(config), extra={"tokenizer.ggml.model": "no_vocab"}
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(pyllama.__file__).parents[1])}

    def run(memory: int) -> subprocess.CompletedProcess:
        made = tmp_path / f"{memory}.gguf"
        command = [sys.executable, "-c", MEASURED, source, made, type, str(memory)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    refused = run(30_000_000)
    least = int(refused.stderr.rpartition("needs at least ")[2].split()[0]) * 1_000_000
    files = set()
    for memory in (least, least + 20_000_000, least + 120_000_000):
        done = run(memory)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) <= memory
        files.add((tmp_path / f"{memory}.gguf").read_bytes())
    assert len(files) == 1
