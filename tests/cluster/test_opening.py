"""What is said before any pass: hosts that make no sense, boards that differ."""

import pytest
import tiny

import pyllama
from pyllama.cluster.front import ClusterDecoder, ClusterError
from pyllama.errors import RequestError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_random(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize(
    "names", ["", "localhost,", "local host", "localhost=0", "localhost=x", "-oProxyCommand=x", "/no/file"]
)
def test_nonsense_is_refused(folder, names):
    with pytest.raises(RequestError, match="hosts"):
        pyllama.load(folder, context_length=128, hosts=names)


def test_this_machine_must_be_one_of_them(folder):
    with pytest.raises(RequestError, match="none of them is this machine"):
        pyllama.load(folder, context_length=128, hosts="198.51.100.1,203.0.113.1")


@pytest.mark.parametrize(
    "waits, told", [([0.9, 0.02, 0.8], "pi2"), ([0.1, 0.12, 0.05], None), ([0.5], None), ([0, 0], None)]
)
def test_the_board_that_others_wait_for_is_named(waits, told):
    decoder = object.__new__(ClusterDecoder)
    decoder._job = FakeJob()
    decoder._job.signs = [{"waits": of} for of in waits]
    assert decoder.slowest == told
    decoder._job = None
    assert decoder.slowest is None


class FakeJob:
    @staticmethod
    def name(rank):
        return f"pi{rank + 1}"


@pytest.mark.parametrize(
    "other, told",
    [
        ({"version": "0.0.1"}, "pi2: pyllama 0.0.1, expected 9 as on pi1"),
        ({"digest": "bbbb"}, "pi2: m is another model there than on pi1 .digest bbbb, expected aaaa."),
        ({"error": "m: no such model"}, "pi2: m: no such model"),
        (
            {"digest": "bbbb", "part": "/parts/m/2-of-2"},
            "pi2: /parts/m/2-of-2: of another model than on pi1 .digest bbbb",
        ),
    ],
)
def test_boards_that_differ_are_named(other, told):
    decoder = object.__new__(ClusterDecoder)
    decoder._asked = type("Asked", (), {"model": "/models/m", "digest": "aaaa"})
    alike = {"version": "9", "digest": "aaaa", "error": None}
    decoder._check_alike(FakeJob, [alike, alike])
    with pytest.raises(ClusterError, match=told):
        decoder._check_alike(FakeJob, [alike, alike | other])
    decoder._asked.digest = "cccc"  # the front end's model has changed since the parts were made
    with pytest.raises(ClusterError, match="pi1: m is another model there than m here .digest aaaa, expected cccc"):
        decoder._check_alike(FakeJob, [alike, alike])
