"""What is told of boards before they run a model: one that is this machine for real, others as they might answer."""

import json
import os
import sys
from pathlib import Path

import pytest
import tiny

import pyllama
from pyllama.cli import main
from pyllama.cluster.hosts import Host, parse_hosts
from pyllama.cluster.pushing import push
from pyllama.errors import BoardError
from pyllama.measure import board, cluster
from pyllama.measure.cluster import check
from pyllama.measure.cluster_lines import lines, planned_lines
from pyllama.planning.boards import GIGABIT

RATES = {"disk_gb_s": 1.0, "dram_gb_s": 10.0, "gflop_s": 50.0, "pack_gb_s": 2.0, "source": {}}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [Path(pyllama.__file__).parents[1], *sys.path])))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.write_random(tmp_path_factory.mktemp("model") / "m"))


def told(**change):
    """What a sound board answers, but for this."""
    return {
        "machine": {"board": "", "cpu": "a core"}, "condition": {"clock_mhz": {}, "throttled": None}, "memory": 1 << 30,
        "disk_free": 1 << 30, "mpi": True, "interfaces": ["eth0", "lo"], "model": None, "rates": RATES, "error": None,
        "clock_s": 0.001, "answer_s": 0.01,
    } | change  # fmt: skip


@pytest.fixture
def answers(monkeypatch):
    """Set to what boards answer."""
    found = []
    monkeypatch.setattr(cluster, "surveys", lambda hosts, model: found)
    return found


def two(**options):
    return check(None, [Host("pi1"), Host("pi2", place=1)], link=GIGABIT, **options)


@pytest.mark.parametrize(
    "change, line",
    [
        ({"reached": False, "error": "ssh: no route to host"}, "pi2: ssh: no route to host"),
        ({"error": "m: no such file or folder"}, "pi2: m: no such file or folder"),
        ({"mpi": False}, "pi2: mpi4py is not installed there"),
        ({"interfaces": ["lo"]}, "pi2: no interface eth0, only lo"),
        ({"clock_s": -3600.0}, "pi2: its clock is -3600 s from this board's"),
        ({"condition": {"clock_mhz": {}, "throttled": {"now": ["under-voltage"], "since_boot": []}}},
         "pi2: its processor is held back: under-voltage"),
    ],
)  # fmt: skip
def test_one_line_for_what_is_wrong(answers, change, line):
    answers += [told(), told(**change)]
    report = two(interface="eth0")
    assert report["wrong"] == [line]
    assert f"! {line}" in list(lines(report))


def test_several_things_are_several_lines(answers):
    answers += [told(mpi=False), told(clock_s=100.0, mpi=False)]
    assert len(two()["wrong"]) == 3


def test_nothing_wrong(answers):
    answers += [told(), told()]
    report = two()
    assert report["wrong"] == [] and "nothing found that is wrong" in list(lines(report))


def test_messages_that_fail_are_a_line(answers, monkeypatch):
    def fail(hosts, interface):
        raise BoardError("pi2: the rank there has ended, or its link is down")

    monkeypatch.setattr(cluster, "measure_link", fail)
    answers += [told(), told()]
    report = check(None, [Host("pi1"), Host("pi2", place=1)])
    assert report["wrong"] == ["pi2: the rank there has ended, or its link is down"] and report["link"] is None


def test_another_model_is_named(answers, model):
    here = {"path": "/m", "part": None, "digest": "a" * 32, "nbytes": 1}
    answers += [told(), told(model=here)]
    report = check(model, [Host("localhost"), Host("pi2", place=1)], link=GIGABIT)
    assert report["wrong"] == ["pi2: /m: another model than here; push it again, or get the same"]


def test_shares_and_seconds_of_one_two_and_three(answers, model):
    slow = {name: value / 4 if isinstance(value, float) else value for name, value in RATES.items()}
    answers += [told(), told(rates=slow), told()]
    hosts = [Host("pi2", place=1), Host("pi1", place=0), Host("pi3", place=2)]
    report = check(model, hosts, link=GIGABIT)
    assert [row["boards"] for row in report["forecast"]] == [1, 2, 3]
    assert report["shares"] == [1.0, pytest.approx(0.25, abs=0.01), 1.0]
    assert "proposed: --hosts pi1=0.25,pi2=1,pi3=1" in list(lines(report))
    assert any("pi3" in line for line in planned_lines(report))


def test_this_machine_for_real(model, monkeypatch):
    """Over a process of its own, as over ssh, with its part of the model; rates measured for a moment."""
    code = (
        "from pyllama.measure import board, rates\n"
        "real = rates.measure\n"
        "rates.measure = lambda files: real(disk_gb_s=1.0, seconds=0.05, nbytes=1 << 20)\n"
        "board.main()\n"
    )
    hosts = parse_hosts("localhost,localhost=0.5")
    push(model, hosts)
    from pyllama.cluster import remote

    monkeypatch.setattr(remote, "words_of", lambda module: [sys.executable, "-c", code])
    report = check(model, hosts, link=GIGABIT)
    assert report["wrong"] == ([] if board._has_mpi() else ["localhost: mpi4py is not installed there"])
    assert [host["model"]["part"] for host in report["hosts"]] == [
        "part 1 of 2 (shares 1, 0.5)", "part 2 of 2 (shares 1, 0.5)"
    ]  # fmt: skip
    assert all(abs(host["clock_s"]) < 5 for host in report["hosts"])
    assert report["hosts"][0]["rates"] == report["hosts"][1]["rates"]
    assert len(report["forecast"]) == 2 and list(lines(report))
    json.dumps(report)


def test_plan_for_boards_that_are_not_here(model, capsys):
    words = ["plan", model, "--hosts", "pi1,pi2,pi3=0.5", "--board", "pi5", "--memory", "200M"]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [host["name"] for host in report["hosts"]] == ["pi1", "pi2", "pi3"] and len(report["forecast"]) == 3
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("runs on 3 boards, all in memory: ")
    assert main([*words, "--draft", "self"]) == 2
    assert capsys.readouterr().err.startswith("pyllama: --hosts: without ")


def test_bench_refuses_what_is_about_one_machine(model, capsys):
    assert main(["bench", "--hosts", "localhost"]) == 2
    assert main(["bench", model, "--hosts", "localhost", "--plot", "x.svg"]) == 2
    assert capsys.readouterr().err.count("pyllama: --hosts: ") == 2
