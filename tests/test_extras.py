"""Optional parts are named by the packages they consist of, in quotes."""

import shlex
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pyllama.extras import how_to_install


@pytest.mark.parametrize("extra, package", [("server", "uvicorn"), ("grammar", "llguidance"), ("cluster", "mpi4py")])
def test_the_command_is_safe_in_a_shell_and_names_no_other_project(extra, package, monkeypatch):
    def without(name):
        raise metadata.PackageNotFoundError(name)

    for requires in (metadata.requires, without, lambda name: [f"{package}<1,>=0.3; extra == '{extra}'"]):
        monkeypatch.setattr(metadata, "requires", requires)
        words = shlex.split(how_to_install(extra, here=False))
        assert words[:2] == ["pip", "install"] and any(word.startswith(package) for word in words[2:])
        assert not any(word.startswith("pyllama") for word in words)


def test_it_goes_where_pyllama_is(monkeypatch, tmp_path):
    """README's first command leaves the environment as it is: not active."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my env/bin/python"))
    for name in ("my env/bin", "other/bin"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "pip").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "other/bin"))
    assert shlex.split(how_to_install("server"))[:4] == [sys.executable, "-m", "pip", "install"]
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert how_to_install("server").startswith("pip install ")
