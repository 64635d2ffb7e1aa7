"""What is in the cache, model by model, what is removed and what stays, and files read where they are."""

import random
from pathlib import Path

import pytest
import tiny
from hub_server import Repo, own_caches, serving

from pyllama import hub as pyllama_hub
from pyllama.checkpoint.gguf import open_gguf
from pyllama.errors import HubError, NoRangesError
from pyllama.hub import http, resolve
from pyllama.hub.fetch import Wanted
from pyllama.hub.find import NotInCacheError, demo_path
from pyllama.hub.installed import installed, remove
from pyllama.hub.listing import list_files
from pyllama.hub.names import parse_name
from pyllama.hub.remote_file import RemoteFile

GGUF = {
    "config.json": b"{}",
    "tiny-Q4_K_M.gguf": b"4" * 1000,
    "tiny-Q8_0.gguf": b"8" * 2000,
    "tiny-BF16-00001-of-00002.gguf": b"5" * 1000,
    "tiny-BF16-00002-of-00002.gguf": b"6" * 1500,
}
WHOLE = {"config.json": b'{"model_type": "llama"}', "model.safetensors": random.Random(1).randbytes(5000)}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    own_caches(tmp_path, monkeypatch)
    monkeypatch.setattr(http, "RETRY_DELAYS_S", (0.0,) * 3)
    return tmp_path


@pytest.fixture
def hub(monkeypatch):
    with serving() as served:
        served.repos |= {"acme/quants": Repo(dict(GGUF)), "acme/whole": Repo(dict(WHOLE))}
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


def table():
    return {model.name: model.nbytes for model in installed()}


def test_models_are_listed_by_the_names_that_resolve(hub):
    assert installed() == []
    pyllama_hub.pull("acme/whole")
    pyllama_hub.pull("acme/quants:Q4_K_M")
    assert table() == {"acme/quants": 1000, "acme/whole": 5000}
    pyllama_hub.pull("acme/quants:BF16")
    assert table() == {"acme/quants:BF16": 2500, "acme/quants:Q4_K_M": 1000, "acme/whole": 5000}
    assert all(model.whole and resolve(model.name) == model.path for model in installed())
    demo_path().parent.mkdir(parents=True)
    demo_path().write_bytes(b"demo")
    assert table()["smollm2"] == 4


def test_what_is_not_whole_is_told(hub, home):
    pyllama_hub.pull("acme/whole", weights=False)
    (model,) = installed()
    assert (model.name, model.whole) == ("acme/whole", False)


def test_removing_a_quantization_keeps_the_others(hub):
    for quantization in ("Q4_K_M", "Q8_0"):
        pyllama_hub.pull(f"acme/quants:{quantization}")
    assert remove("acme/quants:Q4_K_M") == 1000
    assert table() == {"acme/quants": 2000}
    with pytest.raises(NotInCacheError):
        remove("acme/quants:Q4_K_M")
    assert remove("acme/quants") >= 2000
    assert installed() == []


def test_a_file_that_another_revision_needs_stays(hub):
    pyllama_hub.pull("acme/whole")
    old = hub.repos["acme/whole"].commit
    hub.repos["acme/whole"].files["config.json"] = b'{"model_type":  "llama"}'
    pyllama_hub.pull("acme/whole")
    assert sorted(table()) == ["acme/whole", f"acme/whole@{old}"]
    remove(f"acme/whole@{old}")
    assert table() == {"acme/whole": 5000}
    assert (resolve("acme/whole") / "model.safetensors").read_bytes() == WHOLE["model.safetensors"]


def test_what_is_not_there_cannot_be_removed(home):
    for name in ("acme/none", "smollm2"):
        with pytest.raises(NotInCacheError, match="nothing to remove"):
            remove(name)
    with pytest.raises(HubError):
        remove("../etc")


def test_a_header_is_read_where_the_file_is(hub, tmp_path):
    config = tiny.tiny_config()
    path = tiny.write_gguf(tmp_path / "m.gguf", config, tiny.random_tensors(config))
    hub.repos["acme/real"] = Repo({"m.gguf": path.read_bytes() + bytes(8 << 20)})
    seen: list[Wanted] = []

    class EnoughError(Exception):
        pass

    def before(wanted):
        seen.append(wanted)
        raise EnoughError

    with pytest.raises(EnoughError):
        pyllama_hub.pull("acme/real", before=before)
    assert seen[0].nbytes == path.stat().st_size + (8 << 20) and seen[0].weights == ["m.gguf"]
    with open_gguf(Path("m.gguf"), seen[0].open) as remote, open_gguf(path) as local:
        assert remote.config == local.config and set(remote.tensors) == set(local.tensors)
        name = next(iter(local.tensors))
        assert (remote.read_rows(remote.tensors[name], 0, 1) == local.read_rows(local.tensors[name], 0, 1)).all()
    assert all("range" in request.headers for request in hub.file_requests("storage"))


def test_pieces_of_a_file_survive_a_bad_connection(hub):
    listing = list_files(parse_name("acme/whole"))
    file = RemoteFile(listing, "model.safetensors")
    hub.faults.drop_after, hub.faults.drops = 700, 2
    assert file.read(1000, 3000) == WHOLE["model.safetensors"][1000:4000]
    with pytest.raises(HubError, match="ends at 5000"):
        file.read(4000, 1001)
    hub.faults.drops, hub.faults.no_ranges = 0, True
    assert file.read(0, 10) == WHOLE["model.safetensors"][:10]
    with pytest.raises(NoRangesError):
        file.read(5, 10)
    with pytest.raises(HubError, match="lacks nothing"):
        RemoteFile(listing, "nothing")
