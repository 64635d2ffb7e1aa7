"""A pseudo-terminal for the tests of the command line."""

import pytest
from command_line import Terminal


@pytest.fixture
def terminal(tmp_path):
    opened = []

    def start(*args, **environment):
        environment = {"TERM": "dumb", "XDG_STATE_HOME": str(tmp_path / "state")} | environment
        opened.append(Terminal(*args, environment=environment))
        return opened[-1]

    yield start
    for each in opened:
        each.close()
