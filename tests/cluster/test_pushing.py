"""Parts written to boards, which are this machine: whole under their names or not at all, resumed, checked, named."""

import filecmp
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import tiny

from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.digest import weights_digest
from pyllama.cli import main
from pyllama.cluster import pushing, receiver, remote
from pyllama.cluster.hosts import parse_hosts
from pyllama.cluster.own_part import board_of, open_part, parts_folder
from pyllama.cluster.pushing import push
from pyllama.cluster.remote import Remote
from pyllama.errors import BoardError
from pyllama.packing import pack, verify
from pyllama.terminal.progress import Progress

HOSTS = "localhost,localhost=0.5,localhost"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [Path(pushing.__file__).parents[2], *sys.path])))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_random(tmp_path_factory.mktemp("model") / "m")


@pytest.mark.parametrize("file_nbytes", [3_000, 1 << 20])
def test_a_part_is_what_pack_writes(model, tmp_path, monkeypatch, file_nbytes):
    from pyllama.packing import journal

    monkeypatch.setattr(pushing, "FILE_NBYTES", file_nbytes)
    monkeypatch.setattr(journal, "SHARD_NBYTES", file_nbytes)
    hosts = parse_hosts(HOSTS)
    progress = Progress(quiet=True)
    results = push(str(model), hosts, progress)
    assert progress.done == progress.total > 0
    for result in results:
        assert result.error is None and not result.before
        packed = pack(model, tmp_path / str(result.host.place), board=board_of(hosts, result.host.place))
        names = sorted(os.listdir(packed))
        assert filecmp.cmpfiles(packed, result.path, names, shallow=False) == (names, [], [])
        assert not verify(Path(result.path)).damage
        with open_part(str(model), result.host.place, [1, 0.5, 1]) as part:
            assert part.share.place == result.host.place
    assert all(result.before for result in push(str(model), hosts))


class Stopping(Progress):
    """Ends the work of a board that has got half of its part."""

    def __init__(self):
        super().__init__(quiet=True)

    def advance(self, count):
        super().advance(count)
        if self.done > self.total // 2:
            raise BoardError("stopped")


def test_it_goes_on_where_it_was_stopped(model, monkeypatch):
    monkeypatch.setattr(pushing, "FILE_NBYTES", 3_000)
    hosts = parse_hosts("localhost")
    (result,) = push(str(model), hosts, Stopping())
    assert str(result.error) == "stopped"
    folder = parts_folder(str(model))
    (begun,) = folder.iterdir()
    assert begun.name == "1-of-1.packing"
    whole = {path.name: path.stat().st_ino for path in begun.glob("model-*.safetensors")}
    assert whole
    damaged = max(whole)
    with open(begun / damaged, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    del whole[damaged]
    (result,) = push(str(model), hosts)
    assert result.error is None and [path.name for path in folder.iterdir()] == ["1-of-1"]
    assert not verify(Path(result.path)).damage
    assert {name: (Path(result.path) / name).stat().st_ino for name in whole} == whole


def test_another_model_takes_its_place(model, tmp_path):
    hosts = parse_hosts(HOSTS)
    source = shutil.copytree(model, tmp_path / "m")
    push(str(source), hosts)
    shutil.rmtree(source)
    tiny.write_random(source, 7)
    results = push(str(source), hosts)
    assert not any(result.before or result.error for result in results)
    with open_part(str(model), 0, [1, 0.5, 1]) as part, open_checkpoint(source) as whole:
        assert part.share.digest == weights_digest(whole)


def test_what_was_damaged_is_written_anew(model):
    hosts = parse_hosts("localhost")
    (result,) = push(str(model), hosts)
    with open(Path(result.path) / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    (result,) = push(str(model), hosts)
    assert not result.before and result.error is None and not verify(Path(result.path)).damage


def test_a_full_disk_is_told_of_that_board_alone(model, capsys, monkeypatch, tmp_path):
    code = (
        "import shutil, os\n"
        "from pyllama.cluster import receiver\n"
        "real = shutil.disk_usage\n"
        "shutil.disk_usage = lambda p: real(p)._replace(free=10) if '2-of-3' in os.fspath(p) else real(p)\n"
        "receiver.main()\n"
    )
    monkeypatch.setattr(remote, "words_of", lambda module: [sys.executable, "-c", code])
    assert main(["cluster", "push", str(model), "--hosts", "localhost,localhost,localhost", "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert err.startswith("pyllama: localhost: ") and "2-of-3: " in err and "10 B free; free some" in err
    assert err.count("\n") == 1


def test_what_is_sent_damaged_is_refused(model, monkeypatch):
    real = pushing._RemoteSink.write

    def write(self, data, at, direct=False):
        real(self, data, at, direct)
        self._digest.update(b"x")

    monkeypatch.setattr(pushing._RemoteSink, "write", write)
    (result,) = push(str(model), parse_hosts("localhost"))
    assert str(result.error) == "localhost: model.safetensors: came damaged; push again"
    assert not list(parts_folder(str(model)).iterdir())  # there was no file that another push could go on with


@pytest.mark.parametrize(
    "code, told",
    [
        ("import sys; sys.exit('ssh: connect to host pi2 port 22: No route to host')", "No route to host"),
        ("import no_such_module_of_pyllama", "localhost: no pyllama at .* there, expected the same path as here"),
        ("pass", "localhost: the connection was lost"),
        ("print('x' * 100000)", "localhost: the connection was lost"),
        (
            "import pyllama.cluster.remote as r; r.__version__ = '0.0.1'; r.accept()",
            "localhost: pyllama 0.0.1, expected .* as here",
        ),
    ],
)
def test_a_board_that_does_not_answer(monkeypatch, code, told):
    monkeypatch.setattr(remote, "words_of", lambda module: [sys.executable, "-c", code])
    with pytest.raises(BoardError, match=told) as error:
        Remote("localhost", "pyllama.cluster.receiver")
    assert "\n" not in str(error.value)


def test_a_receiver_is_not_of_the_folder_where_the_user_stands(shadowed, model):
    (result,) = push(str(model), parse_hosts("localhost"))
    assert result.error is None


def test_what_a_login_shell_prints_is_passed_over(monkeypatch, model):
    code = "print('Welcome to pi2!', flush=True); from pyllama.cluster.receiver import main; main()"
    monkeypatch.setattr(remote, "words_of", lambda module: [sys.executable, "-c", code])
    (result,) = push(str(model), parse_hosts("localhost"))
    assert result.error is None


def test_a_name_that_leaves_the_folder_is_refused():
    for name in ("../x", "a/b", ".hidden", ""):
        with pytest.raises(receiver.ClosedError):
            receiver._sound_name(name)


def test_what_it_was_made_of_is_written_down(model):
    (result,) = push(str(model), parse_hosts("localhost"))
    assert len(json.loads((Path(result.path) / receiver.PUSHED).read_text())) == 64
