"""Session pages belong to one user and one model: links, other users' things, pipes and forged files are left alone."""

import os
import socket
import stat

import numpy as np
import pytest

from pyllama.engine import page_store
from pyllama.engine.page_store import PageStore, pages_name
from pyllama.engine.private_folder import PrivateFolder
from pyllama.errors import RequestError

NBYTES = 4096
MODEL = "0123456789abcdef"
PATH = [np.arange(32, dtype="<i4").tobytes(), np.arange(32, 50, dtype="<i4").tobytes()]


def page(seed=1):
    return np.frombuffer(np.random.default_rng(seed).bytes(NBYTES), np.uint8).copy()


def store_of(root, model=MODEL, max_nbytes=10**9):
    return PageStore(root, model, NBYTES, max_nbytes)


def loaded(store, stored):
    """The page that is read, or None."""
    out = np.full(NBYTES, 0xEE, np.uint8)
    return out if store.load(stored, out) else None


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_what_is_saved_is_read_again_and_is_the_users_alone(tmp_path):
    old = os.umask(0)
    try:
        store = store_of(tmp_path / "sessions")
        stored = store.save(PATH, page())
    finally:
        os.umask(old)
    assert np.array_equal(loaded(store_of(tmp_path / "sessions"), stored), page())
    assert [s.path for s in store_of(tmp_path / "sessions").scan()] == [tuple(PATH)]
    folder = tmp_path / "sessions" / MODEL
    assert (mode(tmp_path / "sessions"), mode(folder), mode(folder / stored.name)) == (0o700, 0o700, 0o600)


@pytest.mark.parametrize("before", [0o755, 0o777, 0o1777, 0o770, 0o750, 0o701])
def test_a_directory_that_is_open_to_others_is_closed(tmp_path, before, caplog):
    root = tmp_path / "sessions"
    (root / MODEL).mkdir(parents=True)
    root.chmod(before)
    (root / MODEL).chmod(before)
    store_of(root)
    assert mode(root) & 0o777 == 0o700 and mode(root / MODEL) & 0o777 == 0o700
    assert f"had mode {before & 0o777:o}, now 700" in caplog.text


def test_what_else_lies_in_the_directory_is_not_touched(tmp_path):
    other = tmp_path / "Photographs"
    other.mkdir()
    other.chmod(0o755)
    (other / "x.page").write_bytes(bytes(5 * NBYTES))
    store = store_of(tmp_path, max_nbytes=1)
    assert not store.has_room()
    assert mode(other) == 0o755 and (other / "x.page").exists()


def test_a_file_system_that_keeps_it_open_is_refused(tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    monkeypatch.setattr(os, "fchmod", lambda descriptor, mode: None)  # as a FAT stick does it
    with pytest.raises(RequestError, match="has mode 777, which others may write to; expected 700"):
        store_of(tmp_path)


def test_another_users_directory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(RequestError, match=f"belongs to user {os.getuid()}, expected one of your own"):
        store_of(tmp_path)


def test_another_users_link_to_ones_own_directory_is_refused(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "own")
    store_of(tmp_path / "link")  # as systemd makes them for StateDirectory with DynamicUser
    lstat = os.lstat

    def of_a_stranger(path):
        found = lstat(path)
        return os.stat_result([*found[:4], 4321, *found[5:10]])

    monkeypatch.setattr(os, "lstat", of_a_stranger)
    with pytest.raises(RequestError, match="link of user 4321's"):
        store_of(tmp_path / "link")


def test_a_link_in_place_of_the_models_folder_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sessions").mkdir()
    (tmp_path / "sessions" / MODEL).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RequestError, match="session directory"):
        store_of(tmp_path / "sessions")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "file"])
@pytest.mark.parametrize("when", ["before", "while it runs"])
def test_nothing_is_written_through_what_lies_in_a_pages_place(tmp_path, kind, when):
    root, victim = tmp_path / "sessions", tmp_path / "victim"
    name = store_of(root).save(PATH, page()).name
    (root / MODEL / name).unlink()

    def lay():
        if kind != "dangling":
            victim.write_text("precious")
        place = root / MODEL / name
        if kind == "hard link":
            os.link(victim, place)
        elif kind == "file":
            place.write_bytes(b"other")
        else:
            place.symlink_to(victim)

    if when == "before":
        lay()
        store = store_of(root)
        assert not list(store.scan())
    else:
        store = store_of(root)
        lay()
    stored = store.save(PATH, page())
    assert np.array_equal(loaded(store, stored), page())
    assert not (root / MODEL / name).is_symlink() and mode(root / MODEL / name) == 0o600
    assert not victim.exists() if kind == "dangling" else kind == "file" or victim.read_text() == "precious"


def test_temporary_names_cannot_be_foretold_and_are_never_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    store = store_of(tmp_path / "sessions")
    monkeypatch.setattr(page_store.secrets, "token_hex", lambda count: "ab")
    (tmp_path / "sessions" / MODEL / ".ab.tmp").symlink_to(victim)
    assert store.save(PATH, page()) is None
    assert victim.read_text() == "precious"


def test_a_directory_that_is_moved_away_takes_its_pages_along(tmp_path):
    """The folder above may be others' to change: what was opened stays what it was."""
    victim = tmp_path / "victim"
    victim.mkdir()
    root = tmp_path / "sessions"
    store = store_of(root)
    root.rename(tmp_path / "moved")
    root.symlink_to(victim)
    (victim / MODEL).mkdir()
    stored = store.save(PATH, page())
    assert (tmp_path / "moved" / MODEL / stored.name).exists() and not list((victim / MODEL).iterdir())


@pytest.mark.parametrize(
    "kind", ["pipe", "socket", "folder", "link to itself", "link to a page", "zero", "second name"]
)
def test_what_is_no_plain_file_is_never_waited_for_or_used(tmp_path, kind, caplog):
    store = store_of(tmp_path)
    stored = store.save(PATH, page())
    place = tmp_path / MODEL / stored.name
    kept = tmp_path / "kept"
    place.rename(kept)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as s:
            here = os.getcwd()
            os.chdir(place.parent)  # a socket's path has to be short
            s.bind(place.name)
            os.chdir(here)
    elif kind == "folder":
        place.mkdir()
    elif kind == "second name":
        os.link(kept, place)
    else:
        place.symlink_to({"link to itself": place, "link to a page": kept, "zero": "/dev/zero"}[kind])
    assert loaded(store, stored) is None
    assert not list(store_of(tmp_path).scan())
    assert "ignored and removed" in caplog.text
    assert place.exists() == (kind == "folder")
    assert kept.exists()


def test_a_file_replaced_between_look_and_open_is_not_read(tmp_path, monkeypatch):
    store = store_of(tmp_path)
    stored = store.save(PATH, page())
    place = tmp_path / MODEL / stored.name
    place.unlink()
    os.mkfifo(place)
    monkeypatch.setattr(PrivateFolder, "is_file", lambda self, name: True)
    assert loaded(store, stored) is None


@pytest.mark.parametrize("at", [0, 5, 20, 47, 48, 60, 51 + 200, -1, -NBYTES])
def test_one_changed_bit_anywhere_is_found(tmp_path, at):
    store = store_of(tmp_path)
    stored = store.save(PATH, page())
    file = tmp_path / MODEL / stored.name
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1
    file.write_bytes(raw)
    assert loaded(store, stored) is None and not file.exists()


@pytest.mark.parametrize("size", [0, 1, 14, 50, 51, 52, 300, 51 + 200 + NBYTES - 1, 51 + 200 + NBYTES + 1, 1 << 40])
def test_files_of_another_size_cost_nothing(tmp_path, size):
    """A file with holes may claim a terabyte."""
    store = store_of(tmp_path)
    stored = store.save(PATH, page())
    os.truncate(tmp_path / MODEL / stored.name, size)
    assert loaded(store, stored) is None


def test_a_path_as_long_as_the_header_can_say_is_not_read(tmp_path):
    file = tmp_path / MODEL / "x.page"
    store = store_of(tmp_path)
    nbytes = 0xFFFFFFFC
    file.write_bytes(page_store._HEADER.pack(page_store._MAGIC, bytes(32), nbytes))
    os.truncate(file, page_store._HEADER.size + nbytes + NBYTES)
    assert not list(store.scan()) and not file.exists()


def test_another_models_page_in_the_folder_is_not_used(tmp_path):
    """Two models of one shape: their pages differ in nothing but what was computed."""
    stored = store_of(tmp_path, "aa").save(PATH, page())
    store = store_of(tmp_path, "bb")
    os.rename(tmp_path / "aa" / stored.name, tmp_path / "bb" / stored.name)
    assert loaded(store, stored) is None


def test_a_model_changed_in_one_row_has_pages_of_its_own(tmp_path):
    """model_digest reads one row of each tensor; an edited file is told by its time."""
    from conftest import write_model

    import pyllama

    write_model(tmp_path / "model")
    names = []
    for _ in range(2):
        with pyllama.load(tmp_path / "model") as model:
            names.append(pages_name(model.checkpoint, "f16"))
            file = model.checkpoint.files[0]
        assert file.stat().st_size
        with open(file, "r+b") as handle:
            handle.seek(-4, os.SEEK_END)
            last = handle.read(4)
            handle.seek(-4, os.SEEK_END)
            handle.write(bytes([last[0] ^ 1]) + last[1:])
        os.utime(file, ns=(1, 10**18 + len(names)))
    assert names[0] != names[1]


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "open"])
def test_a_disk_that_fails_anywhere_leaves_nothing_half_done(tmp_path, monkeypatch, call, caplog):
    store = store_of(tmp_path)

    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    if call == "write":
        create = PrivateFolder.create

        def begun(self, name):
            with create(self, name) as handle:
                handle.write(b"some")
            full()

        monkeypatch.setattr(PrivateFolder, "create", begun)
    elif call == "open":
        monkeypatch.setattr(PrivateFolder, "create", full)
    else:
        monkeypatch.setattr(os, call, full)
    assert store.save(PATH, page()) is None
    assert store.save(PATH, page()) is None
    monkeypatch.undo()
    assert caplog.text.count("no space left on device; nothing more is saved") == 1
    assert not list((tmp_path / MODEL).iterdir())


def test_the_unit_keeps_its_state_to_itself():
    from pyllama.service.unit import shipped

    settings = shipped().splitlines()
    assert "StateDirectoryMode=0700" in settings and "UMask=0077" in settings
