"""A server over a model, on a thread, and a client for it that knows nothing of OpenAI.

Importing it skips a test file where the server's dependencies are missing.
"""

import asyncio
import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest

import pyllama

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from pyllama.engine import AsyncEngine
from pyllama.server.hooks import Hooks
from pyllama.server.run import Server, bind
from pyllama.server.service import Settings

MESSAGES = [{"role": "user", "content": "hello and hello"}]
JSON = b"content-type: application/json\r\n"
TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }} answer in <tool_call></tool_call><|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Running:
    """A server on a thread, and a client for it that knows nothing of OpenAI."""

    def __init__(self, model, settings=None, hooks=None, names=("tiny",), **options):
        self.model = model
        self.engine = AsyncEngine(model, **options)
        self.socket = bind("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        self.server = Server(self.engine, names, settings or Settings(), hooks or Hooks())
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve([self.socket])))
        self.thread.start()
        wait_until(lambda: self.server.started)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()
        self.socket.close()

    def request(self, method, path, body=None, headers=None):
        """(status, body, headers); JSON where the answer says so."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"content-type": "application/json"} | (headers or {})
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        raw = response.read()
        connection.close()
        kind = response.getheader("content-type", "")
        return response.status, json.loads(raw) if kind == "application/json" else raw, dict(response.getheaders())

    def post(self, path, body, **headers):
        status, answer, _ = self.request("POST", path, body, headers)
        assert status == 200, answer
        return answer

    def refuse(self, path, body, status=400, **headers):
        got, answer, _ = self.request("POST", path, body, headers)
        assert (got, set(answer)) == (status, {"error"}), answer
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        message = answer["error"]["message"].replace("/v1", "")
        assert "Traceback" not in message and "/" not in message
        return answer["error"]

    def events(self, path, body):
        """The data of every server-sent event, the last one checked and left out."""
        status, raw, headers = self.request("POST", path, body | {"stream": True})
        assert status == 200 and headers["content-type"].startswith("text/event-stream"), raw
        blocks = [block for block in raw.decode().split("\n\n") if block and not block.startswith(":")]
        assert blocks[-1] == "data: [DONE]"
        return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]

    def open(self, path, body):
        """A socket that has sent a request and read nothing."""
        raw = json.dumps(body).encode()
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.sendall(
            b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (path.encode(), len(raw), raw)
        )
        return connection

    @property
    def stats(self):
        return self.engine.stats()


def wait_until(condition, timeout_s=60.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


@contextmanager
def running(folder, settings=None, hooks=None, slow_s=0.0, context_length=512, **options):
    with pyllama.load(folder, context_length=context_length, contexts=8) as model:
        if slow_s:
            extend = model.decoder.extend
            model.decoder.extend = lambda *arguments: (time.sleep(slow_s), extend(*arguments))[1]
        server = Running(model, settings, hooks, **options)
        try:
            yield server
        finally:
            server.stop()
