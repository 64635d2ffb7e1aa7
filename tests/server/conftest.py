"""A tiny model behind the server, and the same one run alone."""

import pytest

import pyllama


@pytest.fixture(scope="module")
def server(chat_folder):
    for name in ("starlette", "uvicorn", "prometheus_client"):
        pytest.importorskip(name)
    from running_server import running

    with running(chat_folder) as server:
        yield server


@pytest.fixture(scope="module")
def reference(chat_folder):
    """The same model, run alone."""
    with pyllama.load(chat_folder, context_length=512) as model:
        yield model
