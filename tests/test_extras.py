"""Optional parts are named by the packages they consist of, in quotes."""

import shlex
from importlib import metadata

import pytest

from pyllama.extras import how_to_install


@pytest.mark.parametrize("extra, package", [("server", "uvicorn"), ("grammar", "llguidance")])
def test_the_command_is_safe_in_a_shell_and_names_no_other_project(extra, package, monkeypatch):
    def without(name):
        raise metadata.PackageNotFoundError(name)

    for requires in (metadata.requires, without, lambda name: [f"{package}<1,>=0.3; extra == '{extra}'"]):
        monkeypatch.setattr(metadata, "requires", requires)
        words = shlex.split(how_to_install(extra))
        assert words[:2] == ["pip", "install"] and any(word.startswith(package) for word in words[2:])
        assert not any(word.startswith("pyllama") for word in words)
