"""The memory that is there: machine and control groups of both versions, on made-up trees."""

import pytest

from pyllama.errors import RequestError
from pyllama.machine import memory as budget
from pyllama.machine.memory import (
    GROUP,
    GROUP_MARGIN,
    MACHINE,
    MARGIN,
    BudgetWarning,
    Limit,
    available_nbytes,
    budget_of,
    default_budget,
    enough_for,
    limits,
    margin,
    parse_size,
    peak_resident_nbytes,
    resident_nbytes,
)


@pytest.mark.parametrize(
    "text, nbytes",
    [("250M", 250 << 20), ("1.5G", 3 << 29), ("2GiB", 2 << 30), ("2gb", 2 << 30), ("1000", 1000), (" 7 k ", 7 << 10),
     (12345, 12345)],
)  # fmt: skip
def test_sizes(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "G", "-1G", "1X", "1e9", "nan", "0", 0, -5, True, "9999999999T"])
def test_what_is_no_size(text):
    with pytest.raises(RequestError, match="memory: got"):
        parse_size(text)


def machine(tmp_path, cgroup, files, available_kb=4_000_000):
    proc, groups = tmp_path / "proc", tmp_path / "sys/fs/cgroup"
    (proc / "self").mkdir(parents=True)
    groups.mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 8000000 kB\nMemFree: 1 kB\nMemAvailable: {available_kb} kB\n")
    (proc / "self/cgroup").write_text(cgroup)
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    return available_nbytes(tmp_path)


def test_without_groups_it_is_the_machine(tmp_path):
    assert machine(tmp_path, "", {}) == 4_000_000 << 10


def test_version_2_counts_cache_as_room_and_looks_at_the_groups_around(tmp_path):
    files = {
        "a/b/memory.max": "1000000000\n",
        "a/b/memory.current": "300000000\n",
        "a/b/memory.stat": "anon 5\ninactive_file 100000000\n",
        "a/memory.max": "max\n",
        "a/memory.current": "1\n",
    }
    assert machine(tmp_path, "0::/a/b\n", files) == 800_000_000


def test_version_2_the_tightest_group_counts(tmp_path):
    files = {
        "a/b/memory.max": "1000000000", "a/b/memory.current": "0",
        "a/memory.max": "500000000", "a/memory.current": "100000000",
    }  # fmt: skip
    assert machine(tmp_path, "0::/a/b\n", files) == 400_000_000


def test_version_1(tmp_path):
    files = {
        "memory/x/memory.limit_in_bytes": "2000000000",
        "memory/x/memory.usage_in_bytes": "1500000000",
        "memory/x/memory.stat": "total_inactive_file 250000000\n",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.usage_in_bytes": "3",
    }
    assert machine(tmp_path, "5:cpu,cpuacct:/x\n4:memory:/x\n0::/\n", files) == 750_000_000


def test_in_a_container_the_group_is_mounted_as_the_root(tmp_path):
    files = {"memory.max": "700000000", "memory.current": "100000000"}
    assert machine(tmp_path, "0::/docker/deadbeef\n", files) == 600_000_000


def test_a_full_group_has_no_room_and_not_less(tmp_path):
    assert machine(tmp_path, "0::/\n", {"memory.max": "5", "memory.current": "9"}) == 0


def test_this_process():
    assert 1 << 20 < resident_nbytes() <= peak_resident_nbytes() + (1 << 20)
    assert default_budget() > 0


@pytest.mark.parametrize(
    "maximum, high, room",
    [("1000000000", "max", 700_000_000), ("1000000000", "500000000", 200_000_000), ("max", "400000000", 100_000_000)],
)
def test_version_2_is_slowed_down_beyond_memory_high_and_that_counts(tmp_path, maximum, high, room):
    files = {"a/memory.max": maximum, "a/memory.high": high, "a/memory.current": "300000000", "a/memory.swap.max": "0"}
    assert machine(tmp_path, "0::/a\n", files) == room


@pytest.mark.parametrize("megabytes", [60, 100, 140, 200, 400, 2000, 8000])
@pytest.mark.parametrize("version", [1, 2])
def test_a_small_group_leaves_a_small_margin(tmp_path, megabytes, version):
    limit, used = megabytes * 1_000_000, 30_000_000
    if version == 2:
        cgroup, files = "0::/a\n", {"a/memory.max": str(limit), "a/memory.current": str(used)}
    else:
        cgroup = "4:memory:/a\n"
        files = {"memory/a/memory.limit_in_bytes": str(limit), "memory/a/memory.usage_in_bytes": str(used)}
    machine(tmp_path, cgroup, files, available_kb=16_000_000)
    left = limit - used + resident_nbytes() - default_budget(tmp_path)
    assert min(MARGIN, max(GROUP_MARGIN, limit // 16)) == pytest.approx(left, abs=2 << 20)
    assert left < limit / 7


@pytest.mark.parametrize("available_mb, left_mb", [(100, 50), (256, 128), (4000, 128)])
def test_a_small_board_keeps_half_of_what_is_free_at_most(available_mb, left_mb):
    assert margin(Limit(MACHINE, 1 << 40, available_mb << 20)) == left_mb << 20


def test_limits_of_the_process_itself_count_what_is_mapped(tmp_path, monkeypatch):
    machine(tmp_path, "", {})
    (tmp_path / "proc/self/status").write_text("VmSize:\t  300000 kB\nVmData:\t  100000 kB\n")
    asked = {budget.resource.RLIMIT_AS: 1 << 30, budget.resource.RLIMIT_DATA: budget.resource.RLIM_INFINITY}
    monkeypatch.setattr(budget.resource, "getrlimit", lambda which: (asked[which], asked[which]))
    assert available_nbytes(tmp_path) == (1 << 30) - (300000 << 10)
    asked[budget.resource.RLIMIT_DATA] = 500 << 20
    assert available_nbytes(tmp_path) == (500 << 20) - (100000 << 10)


def test_a_budget_beyond_the_group_warns_in_one_line(monkeypatch):
    found = [Limit(MACHINE, 8 << 30, 4 << 30), Limit(GROUP, 200_000_000, 150_000_000)]
    monkeypatch.setattr(budget, "limits", lambda: found)
    with pytest.warns(BudgetWarning, match="^memory: 1000 MB is more than the control group has, 200 MB; [^\n]*$"):
        budget_of(1_000_000_000)
    budget_of(200_000_000)  # warnings are errors here


@pytest.mark.parametrize("group_mb", [60, 80, 100, 130])
def test_the_group_that_is_named_is_large_enough(monkeypatch, group_mb):
    def of(nbytes):
        return [Limit(MACHINE, 8 << 30, 4 << 30), Limit(GROUP, nbytes, nbytes - resident_nbytes() - 5_000_000)]

    def default(nbytes):
        return min(limit.room - margin(limit) for limit in of(nbytes)) + resident_nbytes()

    monkeypatch.setattr(budget, "limits", lambda: of(group_mb * 1_000_000))
    text = enough_for(150_000_000)
    named = int(text.split()[-2])
    assert text.startswith(f" (the control group has {group_mb} MB: give it ")
    assert default(named * 1_000_000) >= 150_000_000 > default((named - 2) * 1_000_000)


def test_without_a_tight_group_nothing_is_named(monkeypatch):
    monkeypatch.setattr(budget, "limits", lambda: [Limit(MACHINE, 8 << 30, 1 << 20), Limit(GROUP, 8 << 30, 4 << 30)])
    assert enough_for(1 << 30) == ""
    assert limits  # the real ones: test_this_process
