"""The memory that is there: machine and control groups of both versions, on made-up trees."""

import pytest

from pyllama.budget import available_nbytes, default_budget, parse_size, peak_resident_nbytes, resident_nbytes
from pyllama.errors import RequestError


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
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    root.mkdir()
    (proc / "meminfo").write_text(f"MemTotal: 8000000 kB\nMemFree: 1 kB\nMemAvailable: {available_kb} kB\n")
    (proc / "self/cgroup").write_text(cgroup)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return available_nbytes(proc, root)


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
