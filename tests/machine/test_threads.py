"""The default number of threads, on made-up boards."""

import pytest

from pyllama.machine.threads import default_threads


def board(tmp_path, siblings, files=(), cgroup="", name="thread_siblings_list"):
    sys, proc = tmp_path / "sys", tmp_path / "proc"
    for cpu, text in enumerate(siblings):
        folder = sys / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / name).write_text(text + "\n")
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(cgroup)
    for path, text in dict(files).items():
        (sys / "fs/cgroup" / path).parent.mkdir(parents=True, exist_ok=True)
        (sys / "fs/cgroup" / path).write_text(text)
    return {"cpus": set(range(len(siblings))), "root": tmp_path}


def test_a_pi_has_four(tmp_path):
    assert default_threads(**board(tmp_path, ["0", "1", "2", "3"])) == 4


def test_rk3588_has_eight_slow_cores_included(tmp_path):
    assert default_threads(**board(tmp_path, [str(i) for i in range(8)])) == 8


@pytest.mark.parametrize("name", ["thread_siblings_list", "core_cpus_list"])
def test_hyperthreads_are_one_core(tmp_path, name):
    assert default_threads(**board(tmp_path, ["0,4", "1,5", "2,6", "3,7"] * 2, name=name)) == 4


def test_affinity_counts(tmp_path):
    made = board(tmp_path, ["0,2", "1,3", "0,2", "1,3"])
    assert default_threads(**{**made, "cpus": {0, 2}}) == 1
    assert default_threads(**{**made, "cpus": {1, 2}}) == 2


def test_without_topology_every_processor_is_a_core(tmp_path):
    assert default_threads(cpus={0, 1, 2}, root=tmp_path) == 3


@pytest.mark.parametrize(
    "limit, threads", [("200000 100000", 2), ("250000 100000", 3), ("1000 100000", 1), ("max 100000", 4)]
)
def test_quota_of_version_2(tmp_path, limit, threads):
    made = board(tmp_path, list("0123"), {"a/cpu.max": limit, "a/b/cpu.max": "max 100000"}, "0::/a/b\n")
    assert default_threads(**made) == threads


def test_quota_of_version_1(tmp_path):
    files = {"cpu/x/cpu.cfs_quota_us": "150000", "cpu/x/cpu.cfs_period_us": "100000", "cpu/cpu.cfs_quota_us": "-1",
             "cpu/cpu.cfs_period_us": "100000"}  # fmt: skip
    assert default_threads(**board(tmp_path, list("0123"), files, "3:cpuset:/\n2:cpu,cpuacct:/x\n0::/\n")) == 2


def test_this_machine():
    assert default_threads() >= 1
