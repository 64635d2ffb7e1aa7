"""Models by name on the command line: listed, removed, offered to be pulled, refused before they are; and servers."""

import json
import os
import signal

import pytest
import tiny
from command_line import pyllama_process
from hub_server import Repo, own_caches, serving

from pyllama import hub as pyllama_hub
from pyllama.cli import build_parser, main
from pyllama.cli.ps import servers


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    own_caches(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def hub(monkeypatch, chat_folder, tmp_path):
    config = tiny.tiny_config()
    good = tiny.write_gguf(tmp_path / "g.gguf", config, tiny.random_tensors(config)).read_bytes()
    extra = {"general.architecture": "mamba"}
    bad = tiny.write_gguf(tmp_path / "b.gguf", config, tiny.random_tensors(config), extra=extra).read_bytes()
    with serving() as served:
        served.repos["acme/chat"] = Repo({path.name: path.read_bytes() for path in chat_folder.iterdir()})
        served.repos["acme/gguf"] = Repo({"m-Q8_0.gguf": good})
        served.repos["acme/mamba"] = Repo({"m-Q8_0.gguf": bad})
        served.repos["acme/t5"] = Repo({"config.json": b'{"model_type": "t5"}', "model.safetensors": bytes(1000)})
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


def test_list_and_rm(hub, capsys):
    assert main(["list"]) == 0
    assert capsys.readouterr().out.startswith("no models in ")
    for name in ("acme/chat", "acme/gguf"):
        pyllama_hub.pull(name)
    assert main(["ls", "-q"]) == 0
    assert capsys.readouterr().out == "acme/chat\nacme/gguf\n"
    assert main(["list", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [(m["name"], m["family"], m["whole"]) for m in models] == [
        ("acme/chat", "llama", True),
        ("acme/gguf", "llama", True),
    ]
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(m["path"] in line for m, line in zip(models, lines, strict=True))
    assert main(["rm", "acme/chat", "acme/gguf"]) == 0
    assert capsys.readouterr().out.count(": removed, ") == 2
    assert main(["rm", "acme/chat"]) == 2
    assert "nothing to remove" in capsys.readouterr().err


@pytest.mark.parametrize("name, family", [("acme/mamba", "mamba"), ("acme/t5", "t5")])
def test_what_cannot_run_is_not_fetched(hub, capsys, name, family):
    assert main(["pull", name]) == 2
    error = capsys.readouterr().err
    assert family in error and error.count("\n") == 1
    weights = [request for request in hub.file_requests("storage") if "range" not in request.headers]
    assert weights == []


def test_a_model_that_is_not_here_is_offered(hub, terminal, home):
    t = terminal("run", "acme/chat", "hello", "-n", "4")
    t.read_until(r"acme/chat is not here; fetch [\d.]+ KB\? \[Y/n\] ")
    t.type("n\n")
    assert t.wait() == 2
    assert "not in the cache" in t.output
    t = terminal("run", "acme/chat", "hello", "-n", "4")
    t.read_until(r"\[Y/n\] ")
    t.type("\n")
    assert t.wait() == 0, t.output
    assert main(["run", "acme/chat", "-p", "hello", "-n", "4"]) == 0


def test_nobody_is_asked_through_a_pipe(hub, capsys):
    assert main(["info", "acme/chat"]) == 2
    assert "pyllama pull acme/chat" in capsys.readouterr().err
    assert hub.requests == []


def test_ps_finds_servers(chat_folder, capsys):
    pytest.importorskip("starlette")
    process = pyllama_process("serve", chat_folder, "--port", 0, "--quiet")
    try:
        (server,) = [server for server in servers(build_parser()) if server["pid"] == process.pid]
        assert (server["model"], server["host"], server["port"]) == (str(chat_folder), "127.0.0.1", 0)
        assert main(["ps"]) == 0
        assert f"{process.pid} " in capsys.readouterr().out
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert all(server["pid"] != process.pid for server in servers(build_parser()))


def test_ps_takes_nothing_else_for_a_server(tmp_path):
    lines = {
        "10": [b"grep", b"pyllama", b"serve"],
        "20": [b"python3", b"-m", b"pyllama", b"run", b"m", b"serve"],
        "30": [b"/usr/bin/python3", b"/usr/local/bin/pyllama", b"serve", b"m.gguf", b"--port", b"81"],
        "40": [b"pyllama", b"serve", b"m", b"--of-a-later-version"],
        "50": [],
    }
    for pid, words in lines.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_bytes(b"".join(word + b"\0" for word in words))
        (tmp_path / pid / "status").write_text("Name:\tx\nVmRSS:\t  2048 kB\n")
    expected = {"pid": 30, "model": "m.gguf", "host": "127.0.0.1", "port": 81, "rss_bytes": 2 << 20}
    assert list(servers(build_parser(), tmp_path)) == [expected]
    assert os.getpid() not in [server["pid"] for server in servers(build_parser())]
