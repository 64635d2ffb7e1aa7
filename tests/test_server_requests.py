"""Requests that fit what the server publishes, at the edges of it, are answered or refused by name: never a 5xx."""

import json
import random

import pytest
from openapi_values import NAMES, edges
from test_server import JSON, MESSAGES, TOOL_TEMPLATE, WEATHER, running

pytest.importorskip("starlette")

from conftest import write_model  # noqa: E402

from pyllama.server.schemas import openapi  # noqa: E402

CHAT = {"messages": MESSAGES, "max_tokens": 1}
BODIES = {
    path: operations["post"]["requestBody"]["content"]["application/json"]["schema"]
    for path, operations in openapi(False)["paths"].items()
    if "requestBody" in operations.get("post", {})
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("models") / "tiny-tools", template=TOOL_TEMPLATE)
    with running(folder, context_length=64) as server:
        yield server


def is_refusal(status, answer):
    return 400 <= status < 500 and set(answer["error"]) == {"message", "type", "param", "code"} and answer["error"]["message"]


@pytest.mark.parametrize("path", BODIES)
def test_what_fits_the_description_is_no_error_of_the_servers(server, path):
    rng = random.Random(path)
    bodies = edges(BODIES[path], rng)
    assert len(bodies) > (20 if path == "/detokenize" else 100)
    rng.shuffle(bodies)
    for body in bodies[:400]:
        body = {"max_tokens": 2} | body if "completions" in path else body
        status, answer, _ = server.request("POST", path, body | {"stream": False})
        assert status == 200 or is_refusal(status, answer), (status, answer, json.dumps(body)[:2000])
    server.post("/v1/chat/completions", CHAT)
