"""The systemd unit: words and paths in it, what systemd-analyze says of it, and real managers that run it.

Without root, or without systemd, only what needs neither is tested.
"""

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny
from conftest import write_model
from hub_server import Repo, own_caches, serving
from service_managers import Manager, Unavailable

from pyllama import hub as pyllama_hub
from pyllama.cli import build_parser, main
from pyllama.cli.serve import name_of
from pyllama.errors import RequestError
from pyllama.hub.find import demo_path
from pyllama.service import memory_control, needs
from pyllama.service.notify import Notifier
from pyllama.service.quoting import Specifiers, bind_path, command, word
from pyllama.service.unit import Service, render, shipped

for name in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(name)

DOCS = Path(__file__).parents[2] / "docs"
ANALYZE = shutil.which("systemd-analyze")
analyzed = pytest.mark.skipif(ANALYZE is None, reason="no systemd-analyze here")
NASTY = ["", "a b", 'say "hi"', "it's", "100%", "%S $HOME ${HOME} $$", "back\\slash\\n", "é→🦙", "-x", ";", "#", "a:b"]


def settings(text: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


def one_error(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pyllama: ") and captured.err.count("\n") == 1
    return captured.err.removeprefix("pyllama: ").strip()


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
    return value


# --- words ---


def test_words_are_quoted_only_where_they_must_be():
    assert word("/srv/models/a-b_c.gguf") == "/srv/models/a-b_c.gguf"
    assert word("50%") == "50%%"
    assert word('a "b"') == '"a \\"b\\""'
    assert word("$HOME") == '"$HOME"'
    assert word("$HOME", variables=True) == '"$$HOME"'
    assert word("") == '""'
    assert word(Specifiers("%S/x")) == "%S/x"
    assert bind_path("/a:b c") == '"/a\\:b c"'
    assert command("/opt/a b/python", ["-m", "x y"]) == '"/opt/a b/python" -m "x y"'
    with pytest.raises(RequestError, match="systemd runs no program"):
        command("/opt/it's/python", [])


@pytest.mark.parametrize("text", ["a\nb", "\t", "\x7f"])
def test_control_characters_are_refused(text):
    with pytest.raises(RequestError, match="control characters"):
        word(text)


# --- units ---


def make(**more) -> Service:
    return Service(name="pyllama", model="/srv/models/tiny.gguf", nbytes=1 << 30, program=("/bin/true",), **more)


KINDS = {
    "loopback": {},
    "network": {"host": "0.0.0.0", "options": ["--host=0.0.0.0", "--insecure"]},
    "port 80": {"port": 80},
    "key": {"api_key_file": "/etc/pyllama 100%.key"},
    "nasty": {"options": NASTY, "readable": [Path("/home/a:b c/100%"), Path("/home/'\"\\x")]},
    "imports": {"python_path": [Path("/home/a b/100%"), Path("/opt/$x")]},
}


@pytest.mark.parametrize("user", [False, True], ids=["system", "user"])
@pytest.mark.parametrize("kind", KINDS)
@analyzed
def test_verify_says_nothing(kind, user, tmp_path):
    path = tmp_path / "pyllama.service"
    path.write_text(render(make(**KINDS[kind], user=user)), encoding="utf-8")
    # Its exit code is 0 even for settings it does not know. As a system unit in any case: a user's takes a session.
    done = subprocess.run([ANALYZE, "verify", "--man=no", path], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.parametrize("kind", KINDS)
@analyzed
def test_a_system_unit_is_rated_under_2(kind, tmp_path):
    assert rating(tmp_path, render(make(**KINDS[kind]))) < 2.0


@analyzed
def test_the_shipped_unit_is_sound(tmp_path):
    assert rating(tmp_path, shipped()) < 2.0
    path = tmp_path / "pyllama@.service"
    path.write_text(shipped().replace("/usr/bin/pyllama", "/bin/true"))
    done = subprocess.run([ANALYZE, "verify", "--man=no", path], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def rating(folder: Path, text: str) -> float:
    path = folder / "rated.service"
    path.write_text(text, encoding="utf-8")
    options = ["security", "--offline=yes", "--no-pager", path]
    done = subprocess.run([ANALYZE, *options], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    return float(re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)[1])


def test_a_unit_has_its_settings_in_their_sections_and_no_comment_about_nothing():
    text = render(make(readable=[Path("/home/x")]))
    sections = re.split(r"^\[(\w+)\]$", text, flags=re.MULTILINE)
    assert sections[1::2] == ["Unit", "Service", "Install"]
    assert "RequiresMountsFor=/srv/models/tiny.gguf\n" in sections[2]
    assert "BindReadOnlyPaths=/home/x\n" in sections[4]
    assert sections[6].strip() == "WantedBy=multi-user.target"
    assert "EnvironmentFile" not in text and "pyllama@" not in text
    for kind in ({}, {"user": True}):
        lines = render(make(**kind)).splitlines()
        for line, after in zip(lines, [*lines[1:], ""]):
            assert not line.startswith("#") or after, line


def test_the_budget_is_told_to_pyllama_and_fenced_for_systemd():
    text = render(make())
    assert "--memory 1073741824 " in settings(text, "ExecStart")[0]
    assert 1 << 30 < int(settings(text, "MemoryMax")[0]) < 1.2 * (1 << 30)
    assert settings(text, "MemorySwapMax") == ["0"]


def test_time_to_stop_is_longer_than_what_answers_are_given():
    assert settings(render(make(stop_timeout_s=300)), "TimeoutStopSec") == ["370s"]


def test_only_a_loopback_server_is_cut_off_from_the_network():
    assert settings(render(make()), "IPAddressDeny") == ["any"]
    assert settings(render(make(host="0.0.0.0")), "IPAddressDeny") == []
    assert settings(render(make(host="0.0.0.0")), "After") == ["network-online.target"]


def test_the_key_is_handed_over_by_the_manager():
    text = render(make(api_key_file="/etc/key"))
    assert settings(text, "LoadCredential") == ["api-key:/etc/key"]
    assert "--api-key-file ${CREDENTIALS_DIRECTORY}/api-key" in text
    assert "--api-key-file /etc/key" in render(make(api_key_file="/etc/key", user=True))


# --- what a service needs ---


def test_a_model_in_the_hugging_face_cache_is_shown_with_what_its_links_lead_to(tmp_path, chat_folder):
    from pyllama.checkpoint import open_checkpoint

    repository = tmp_path / "models--org--tiny"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for index, file in enumerate(chat_folder.iterdir()):
        shutil.copy(file, blobs / f"{index:040}")
        (snapshot / file.name).symlink_to(f"../../blobs/{index:040}")
    with open_checkpoint(snapshot) as checkpoint:
        assert needs.model_paths(checkpoint) == [snapshot, blobs]
    assert name_of(str(snapshot)) == "org/tiny"
    assert name_of(str(chat_folder)) == "tiny-chat"
    (tmp_path / "link.gguf").symlink_to(blobs / f"{0:040}")
    assert name_of(str(tmp_path / "link.gguf")) == "link"


def test_only_what_would_be_hidden_is_shown_and_nothing_twice():
    paths = ["/usr", "/home/a/venv", "/home/a/venv/lib", "/srv/m", Path("/root", "x"), "/home/a/venv", "/homes"]
    assert needs.hidden(map(Path, paths)) == [Path("/home/a/venv"), Path("/root", "x")]


def test_a_file_that_only_its_owner_reads_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("")
    (tmp_path / "model").chmod(0o755)
    (tmp_path / "model" / "a").chmod(0o644)
    needs.check_readable([tmp_path / "model"])
    (tmp_path / "model" / "a").chmod(0o600)
    with pytest.raises(RequestError, match=r"model/a: mode 600.*chmod -R o\+rX"):
        needs.check_readable([tmp_path / "model"])


@pytest.mark.parametrize(
    ("cgroups", "files", "user", "expected"),
    [
        ("memory 4 21 1", {"memory/tasks": ""}, None, None),
        ("memory 4 21 1", {"memory/tasks": ""}, 1000, "version 1"),
        ("memory 0 85 1", {"cgroup.controllers": "cpu memory pids"}, None, None),
        ("memory 0 85 0", {"cgroup.controllers": "cpu pids"}, None, "cgroup_enable=memory"),  # Raspberry Pi OS
        ("memory 0 85 1", {"cgroup.controllers": "cpu pids"}, None, "unified"),
        ("memory 0 85 1", {"cgroup.controllers": "memory"}, 7, "delegated"),
        (
            "memory 0 85 1",
            {"cgroup.controllers": "memory", "user.slice/user-7.slice/user@7.service/cgroup.controllers": "memory"},
            7,
            None,
        ),
        ("", {"cgroup.controllers": "cpu memory"}, None, None),  # a kernel without version 1
        ("cpu 0 85 1", {"cgroup.controllers": "cpu"}, None, "off"),
    ],
)
def test_whether_the_kernel_keeps_the_fence(tmp_path, cgroups, files, user, expected):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cgroups").write_text(f"#subsys_name\thierarchy\tnum_cgroups\tenabled\n{cgroups}\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    why = memory_control.why_not(user, tmp_path)
    assert why is None if expected is None else expected in why


# --- words to the manager ---


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_states_reach_the_manager(tmp_path, abstract, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = f"@pyllama-{os.getpid()}" if abstract else str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if abstract else address)
        notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"})
        assert notifier.enabled and notifier.watchdog_s == 3.0
        notifier.ready("here\nREADY=0")
        notifier.alive()
        notifier.status("é")
        notifier.stopping("bye")
        assert [manager.recv(1000).decode() for _ in range(4)] == [
            "READY=1\nSTATUS=here READY=0",
            "WATCHDOG=1",
            "STATUS=é",
            "STOPPING=1\nSTATUS=bye",
        ]
    notifier.alive()  # the manager is gone
    notifier.close()
    notifier.alive()


def test_nobody_is_told_where_nobody_asked():
    assert not Notifier.from_environment({}).enabled
    assert not Notifier.from_environment({"NOTIFY_SOCKET": "vsock:2:1"}).enabled
    other = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}
    assert Notifier.from_environment(other).watchdog_s is None
    assert Notifier.from_environment(other | {"WATCHDOG_PID": str(os.getpid())}).watchdog_s == 1.0


# --- the command ---


def dry_run(capsys, *arguments) -> str:
    assert main(["service", "install", *map(str, arguments), "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_every_option_of_serve_goes_into_the_unit_and_comes_out_the_same(chat_folder, capsys, tmp_path):
    (tmp_path / "key").write_text("correct-horse")
    given = [str(chat_folder), "--memory", "300M", "--context", "128", "--kv-dtype", "f32", "--threads", "2"]
    given += ["--host", "0.0.0.0", "--port", "8123", "--alias=-a b", "--alias", "c$d", "--timeout", "60"]
    given += ["--stop-timeout", "3.5", "--api-key-file", str(tmp_path / "key"), "--cors", "http://a"]
    given += ["--max-body", "1M", "--max-connections", "10", "--max-running", "3", "--max-waiting", "0"]
    given += ["--stop", "User:", "--stop=-- "]
    given += ["--chat-template", str(tmp_path / "a.jinja")]
    given += ["--embeddings", "--log-requests", "--no-warm-up"]
    given += ["--session-size", "1M", "--session-dir", str(tmp_path / "s")]
    text = dry_run(capsys, *given, "--user")
    line = settings(text, "ExecStart")[0]
    words = [
        re.sub(r"\\(.)", r"\1", quoted).replace("%%", "%").replace("$$", "$") if quoted else plain
        for quoted, plain in re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', line)
    ]
    assert words[0] == sys.executable
    unit = build_parser().parse_args(words[words.index("serve") :])
    direct = build_parser().parse_args(["serve", *given])
    assert int(unit.memory) == 300 << 20
    unit.memory = direct.memory
    assert unit == direct


def test_paths_become_absolute(chat_folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(chat_folder.parent)
    Path("key").write_text("correct-horse")
    options = ["--user", "--memory", "300M", "--api-key-file", "key", "--session-dir", "s", "--chat-template", "t"]
    text = dry_run(capsys, chat_folder.name, *options)
    line = settings(text, "ExecStart")[0]
    for path in (chat_folder, chat_folder.parent / "key", chat_folder.parent / "s", chat_folder.parent / "t"):
        assert str(path) in line


def test_without_a_budget_the_unit_has_that_of_now(chat_folder, capsys):
    assert re.search(r" --memory [0-9]{8,} ", settings(dry_run(capsys, chat_folder, "--user"), "ExecStart")[0])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--name", "a/b"], "--name: got 'a/b'"),
        (["--name", "x.service"], "--name: got"),
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--session-dir", "s"], "--session-dir: a system service"),
        (["--port", "70000"], "--port: got 70000"),
        (["--memory", "lots"], "memory: got 'lots'"),
        (["--api-key-file", "/nowhere"], "--api-key-file /nowhere: no such file"),
    ],
)
def test_what_cannot_work_is_refused_at_once(chat_folder, capsys, options, complaint):
    assert main(["service", "install", str(chat_folder), *options, "--dry-run"]) == 2
    assert complaint in one_error(capsys)


def test_a_model_that_is_not_there_is_refused(capsys, tmp_path):
    assert main(["service", "install", str(tmp_path / "nothing"), "--user", "--dry-run"]) == 2
    assert "nothing: no such file" in one_error(capsys)


def test_a_key_in_the_environment_is_refused(chat_folder, capsys, monkeypatch):
    monkeypatch.setenv("PYLLAMA_API_KEY", "correct-horse")
    assert main(["service", "install", str(chat_folder), "--user", "--dry-run"]) == 2
    assert one_error(capsys).startswith("PYLLAMA_API_KEY: a service does not see it")


def test_the_system_takes_root(chat_folder, capsys, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(needs, "check_readable", lambda paths: None)
    assert main(["service", "install", str(chat_folder)]) == 2
    assert one_error(capsys).startswith("service install: changes the system, so it takes root")


def test_without_systemd_nothing_is_written(chat_folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["service", "install", str(chat_folder), "--user"]) == 2
    assert "systemctl: not found" in capsys.readouterr().err
    assert not (tmp_path / "config").exists()


def test_logs_and_status_are_those_of_the_service(monkeypatch, tmp_path):
    for program in ("journalctl", "systemctl"):
        (tmp_path / program).write_text('#!/bin/sh\necho "$0 $*" >>"$LOG"\nexit 3\n')
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    assert main(["service", "logs", "--user", "--name", "x", "--lines", "7", "--follow"]) == 3
    assert main(["service", "status"]) == 3
    first, second = (tmp_path / "log").read_text().splitlines()
    assert "--user-unit=x.service" in first and "--lines=7" in first and first.endswith("--follow")
    assert second == f"{tmp_path}/systemctl status --no-pager pyllama.service"


@pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not here, only the tests")
def test_the_page_about_it_has_every_option_of_its_own():
    text = (DOCS / "service.md").read_text(encoding="utf-8")
    for option in ("--user", "--name NAME", "--dry-run", "--lines N", "--follow", "--purge"):
        assert f"`{option}`" in text


# --- real managers ---

# A server whose layers take their time, or for ever, when a file says so.
HELD = """
import sys, time
import pyllama.loading
load = pyllama.loading.load
def held(*args, **kwargs):
    def on_layer(layer):
        try:
            seconds = float(open(FILE).read() or 0)
        except FileNotFoundError:
            seconds = 0
        time.sleep(seconds)
    return load(*args, **kwargs, on_layer=on_layer)
pyllama.loading.load = held
from pyllama.cli import main
sys.exit(main())
"""


@pytest.fixture(scope="module", params=["user", "system"])
def manager(request, tmp_path_factory):
    if os.environ.get("PYLLAMA_EMULATED") == "1":
        pytest.skip("the interpreter is another machine's")
    try:
        with Manager(tmp_path_factory.mktemp(request.param), user=request.param == "user") as manager:
            yield manager
    except Unavailable as why:
        pytest.skip(str(why))


# What does not depend on the sandbox is shown once.
of_a_user = pytest.mark.parametrize("manager", ["user"], indirect=True)


@pytest.fixture(scope="module")
def shown_folder(tmp_path_factory):
    """A model that the service's own user may read."""
    folder = tmp_path_factory.mktemp("shown")
    write_model(folder / "tiny model 100%")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder / "tiny model 100%"


class Installed:
    """A service of a manager, and a client of the server in it."""

    def __init__(self, manager: Manager, model: Path, *options: str):
        self.manager, self.model, self.options = manager, model, options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.which = ["--user"] * manager.user + ["--name", "held"]

    def drop_in(self, text: str, held: Path | None = None) -> None:
        """Change the unit: more settings, and layers that a file holds up."""
        folder = self.manager.units / "held.service.d"
        folder.mkdir(exist_ok=True)
        if held is not None:
            script = self.manager.folder / "held.py"
            script.write_text(HELD.replace("FILE", repr(str(held))))
            program = command(sys.executable, ["-P", str(script), "serve", str(self.model)])
            text += f"\nExecStart=\nExecStart={program} --memory 400M --session-dir %S/held/sessions --stop-timeout 2 "
            text += f"--port {self.port}\n"
            if not self.manager.user:
                text += f"BindReadOnlyPaths={self.manager.folder} {held.parent}\n"
        (folder / "test.conf").write_text(f"[Service]\n{text}\n")

    def install(self):
        arguments = ["service", "install", self.model, *self.which, "--port", self.port, "--memory", "400M"]
        return self.manager.pyllama(*arguments, *self.options)

    def ask(self, text: str, max_tokens: int = 4, key: str = "") -> dict:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "temperature": 0}
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        return json.load(connection.getresponse())

    def show(self, name: str) -> str:
        return self.manager.show("held.service", name)

    def remove(self) -> None:
        self.manager.pyllama("service", "uninstall", *self.which, "--purge", check=False)
        shutil.rmtree(self.manager.units / "held.service.d", ignore_errors=True)
        self.manager.systemctl("daemon-reload")


@pytest.fixture
def service(manager, shown_folder):
    service = Installed(manager, shown_folder)
    yield service
    service.remove()


def test_install_returns_when_it_answers_and_a_restart_brings_texts_back(service):
    manager = service.manager
    done = service.install()
    assert done.stdout.startswith("held is ready")
    assert [service.show(name) for name in ("ActiveState", "SubState", "Type")] == ["active", "running", "notify"]
    assert manager.systemctl("is-enabled", "held.service").stdout.strip() == "enabled"
    text = "hello and " * 12
    first = service.ask(text)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    wait_until(lambda: "1 answered" in service.show("StatusText"))
    assert f"tiny model 100% at http://127.0.0.1:{service.port}" in service.show("StatusText")

    manager.systemctl("restart", "held.service")
    second = service.ask(text)
    assert second["choices"][0]["message"] == first["choices"][0]["message"]
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= second["usage"]["prompt_tokens"] - 32 > 32

    manager.systemctl("stop", "held.service")
    assert [service.show(name) for name in ("Result", "ExecMainStatus")] == ["success", "0"]
    shown = manager.pyllama("service", "status", *service.which, check=False)
    assert shown.returncode == 3 and "inactive (dead)" in shown.stdout
    gone = manager.pyllama("service", "uninstall", *service.which)
    assert gone.stdout.startswith("held is gone")
    assert not (manager.units / "held.service").exists()
    assert service.show("LoadState") == "not-found"


def test_the_process_is_locked_up(service):
    service.install()
    pid = service.show("MainPID")
    status = service.manager.run("cat", f"/proc/{pid}/status").stdout
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    if not service.manager.user:
        assert "CapBnd:\t0000000000000000" in status
        assert int(re.search(r"Uid:\t(\d+)", status)[1]) >= 61184  # a dynamic user
        mounts = service.manager.run("cat", f"/proc/{pid}/mountinfo").stdout
        assert re.search(r" / / ro[, ]", mounts)


def test_a_key_that_only_its_owner_reads_reaches_the_server(service, tmp_path):
    key = tmp_path / "the key"
    key.write_text("correct-horse\n")
    key.chmod(0o600)
    service.options = ("--api-key-file", str(key))
    service.install()
    assert service.ask("hello")["error"]["code"] == "invalid_api_key"
    assert service.ask("hello", key="correct-horse")["choices"]


@of_a_user
def test_a_wrong_option_is_not_tried_again(service):
    service.drop_in("ExecStart=\nExecStart=" + command(sys.executable, ["-P", "-m", "pyllama", "serve", "/nowhere"]))
    done = service.manager.pyllama("service", "install", service.model, *service.which, check=False)
    assert done.returncode == 2 and "systemctl restart held.service:" in done.stderr.splitlines()[-1]
    assert [service.show(name) for name in ("ExecMainStatus", "NRestarts")] == ["2", "0"]


@pytest.fixture
def held(service, tmp_path_factory):
    """A file: seconds that each layer of the service takes."""
    folder = tmp_path_factory.mktemp("held")
    folder.chmod(0o755)
    service.drop_in("WatchdogSec=3s\nTimeoutAbortSec=1s\nRestartSec=100ms", held=folder / "seconds")
    if not service.manager.user:
        os.chmod(service.manager.folder, 0o755)
    return folder / "seconds"


def test_a_hung_engine_is_restarted_and_a_slow_one_is_not(service, held):
    service.install()
    held.write_text("1.2")  # under half of WatchdogSec
    slow = service.ask("hello", max_tokens=2)
    assert slow["usage"]["completion_tokens"] >= 1
    assert service.show("NRestarts") == "0"

    held.write_text("1000")
    before = service.show("MainPID")
    with pytest.raises((http.client.HTTPException, OSError)):
        service.ask("hello again")
    held.write_text("0")
    wait_until(lambda: service.show("NRestarts") == "1" and service.show("ActiveState") == "active")
    assert service.show("MainPID") != before
    assert service.ask("hello")["choices"]


@of_a_user
def test_a_frozen_process_is_restarted(service, held):
    service.install()
    pid = service.show("MainPID")
    service.manager.run("kill", "-STOP", pid)
    wait_until(lambda: service.show("NRestarts") == "1" and service.show("ActiveState") == "active")
    assert service.show("MainPID") != pid
    assert service.ask("hello")["choices"]


@of_a_user
def test_a_stop_ends_what_runs_too_long(service, held):
    service.install()
    held.write_text("1")
    answers = []
    asking = threading.Thread(target=lambda: answers.append(service.ask("hello", max_tokens=200)))
    asking.start()
    wait_until(lambda: "1 running" in service.show("StatusText"))
    started = time.monotonic()
    service.manager.systemctl("stop", "held.service")
    assert time.monotonic() - started < 20  # --stop-timeout 2, a layer, and the interpreter's end
    asking.join(10)
    assert answers and answers[0]["error"]["code"] == "busy"
    assert [service.show(name) for name in ("Result", "ExecMainStatus")] == ["success", "0"]


def test_words_arrive_as_they_were_written(manager):
    folder = manager.folder
    folder.chmod(0o755)
    program = folder / "program 100% $x"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$PYTHONPATH" "$@"\n')
    program.chmod(0o755)
    target = folder / "words"
    text = render(Service(name="words", model="/m", nbytes=1, user=manager.user, options=NASTY,
                          program=(str(program),), python_path=[Path("/a b/$x/100%")],
                          readable=[] if manager.user else [folder]))  # fmt: skip
    # Its output goes to a file of root's.
    left_out = r"^(Type|StateDirectory|RequiresMountsFor|DynamicUser|ProtectSystem)=.*\n"
    text = re.sub(left_out, "", text, flags=re.MULTILINE)
    text = text.replace("[Service]", f"[Service]\nType=oneshot\nStandardOutput=truncate:{target}")
    (manager.units / "words.service").write_text(text)
    manager.systemctl("daemon-reload")
    manager.systemctl("start", "words.service")
    words = target.read_text().split("\n")
    assert words[:2] == [str(program), "/a b/$x/100%"]
    assert words[-len(NASTY) - 1 :] == [*NASTY, ""]


def test_a_models_typed_name_stays_an_alias(chat_folder, capsys, tmp_path, monkeypatch):
    own_caches(tmp_path, monkeypatch)
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.repos["acme/chat"] = Repo({path.name: path.read_bytes() for path in chat_folder.iterdir()})
        pyllama_hub.pull("acme/chat")
    assert "--alias" not in dry_run(capsys, "acme/chat", "--user")  # the path in the cache says as much
    demo_path().parent.mkdir(parents=True)
    config = tiny.tiny_config()
    tiny.write_gguf(demo_path(), config, tiny.random_tensors(config))
    assert "--alias=smollm2" in dry_run(capsys, "smollm2", "--user")


def test_under_sudo_a_model_is_looked_for_where_its_user_has_it(capsys, tmp_path, monkeypatch):
    own_caches(tmp_path / "root", monkeypatch)
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "root"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    homes = {"~pi": str(tmp_path / "pi")}
    monkeypatch.setattr(os.path, "expanduser", lambda path: homes.get(path) or path.replace("~", os.environ["HOME"]))
    config = tiny.tiny_config()
    place = tmp_path / "pi/.cache/pyllama" / demo_path().name
    place.parent.mkdir(parents=True)
    tiny.write_gguf(place, config, tiny.random_tensors(config))
    assert main(["service", "install", "smollm2", "--user", "--dry-run"]) == 2
    assert "pyllama pull smollm2" in one_error(capsys)
    monkeypatch.setenv("SUDO_USER", "pi")
    assert str(place) in dry_run(capsys, "smollm2", "--user")
    assert os.environ["HOME"] == str(tmp_path / "root")


def test_where_no_systemd_answers_nothing_is_written_and_leftovers_go(chat_folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho System has not been booted with systemd >&2\nexit 1\n")
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert main(["service", "install", str(chat_folder), "--user"]) == 2
    assert "systemctl does not answer (System has not been booted" in capsys.readouterr().err
    folder = tmp_path / "config/systemd/user"
    assert not folder.exists()
    assert main(["service", "uninstall", "--user"]) == 2
    assert "no such unit" in capsys.readouterr().err
    (folder / "default.target.wants").mkdir(parents=True)
    (folder / "pyllama.new").write_text("half")
    (folder / "default.target.wants/pyllama.service").symlink_to(folder / "pyllama.service")
    assert main(["service", "uninstall", "--user"]) == 0
    assert [path for path in folder.rglob("*") if not path.is_dir()] == []


def test_sudo_is_told_with_the_whole_path(chat_folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(needs, "check_readable", lambda paths: None)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "bin/pyllama")])
    assert main(["service", "install", str(chat_folder)]) == 2
    assert f"sudo {tmp_path}/bin/pyllama service install ..." in one_error(capsys)


@pytest.mark.parametrize("user", [False, True], ids=["system", "user"])
def test_a_unit_for_boards_lets_ssh_through_and_waits_for_them(chat_folder, capsys, user, tmp_path, monkeypatch):
    hosts = tmp_path / "boards"
    hosts.write_text("localhost\nlocalhost share=0.5\n")
    monkeypatch.chdir(tmp_path)
    Path("its.jinja").write_text("{{ messages[0]['content'] }}")
    words = ["service", "install", str(chat_folder), "--hosts", "boards", "--chat-template", "its.jinja", "--dry-run"]
    assert main([*words, *["--user"] * user]) == 0
    text = capsys.readouterr().out
    assert f"--chat-template={tmp_path}/its.jinja" in text
    assert f"--hosts={hosts}" in text and "--memory" not in settings(text, "ExecStart")[0]
    assert settings(text, "MemoryMax") == ["infinity"]
    assert settings(text, "KillMode") == ["mixed"] and settings(text, "Restart") == ["always"]
    assert "AF_NETLINK" in settings(text, "RestrictAddressFamilies")[0]
    for name in ("DynamicUser", "ProtectHome", "IPAddressDeny", "RestartPreventExitStatus", "StartLimitBurst"):
        assert not settings(text, name)
    assert len(settings(text, "User")) == (not user)
