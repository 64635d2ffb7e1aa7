"""Clients that never read, never send or never go: each is let go in time, and leaves nothing behind."""

import json
import os
import socket
import threading
import time

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from conftest import write_model
from running_server import JSON, MESSAGES, running, wait_until

from pyllama.server import answers, protocol
from pyllama.server.service import Settings

#: Of a request that is not refused for its head.
HALF = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\n" + JSON

CHAT = "/v1/chat/completions"
BODY = {"messages": MESSAGES, "temperature": 0, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
QUICK = Settings(send_timeout_s=1.0, body_timeout_s=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def server(folder):
    with running(folder, QUICK, context_length=2048) as server:
        yield server


def deaf(server, raw):
    """A socket with the smallest of buffers, through which a request was sent and nothing is read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(("127.0.0.1", server.port))
    connection.settimeout(5)
    connection.sendall(raw)
    return connection


def post(path, body, *headers):
    raw = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json", *headers]
    return "\r\n".join([*lines, f"content-length: {len(raw)}", "", ""]).encode() + raw


def connections(server):
    return len(server.server.server_state.connections)


def small_send_buffers(monkeypatch):
    """The system would take an answer of megabytes off the server's hands."""
    watch = protocol._watch_the_peer

    def small(connection, timeout_s):
        watch(connection, timeout_s)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    monkeypatch.setattr(protocol, "_watch_the_peer", small)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("keep_alive", ["keep-alive", "close"])
def test_who_never_reads_is_let_go_also_after_the_answer(server, monkeypatch, stream, keep_alive):
    small_send_buffers(monkeypatch)
    body = BODY | {"stream": stream, "max_tokens": 300}
    sockets = [deaf(server, post(CHAT, body, f"connection: {keep_alive}")) for _ in range(3)]
    wait_until(lambda: server.stats.requests.get("length", 0) + server.stats.requests.get("cancelled", 0) == 3)
    wait_until(lambda: connections(server) == 0, 10)
    assert server.stats.running == server.stats.waiting == 0
    assert server.stats.pages_used == server.stats.pages_kept
    for connection in sockets:
        connection.close()


def test_a_byte_now_and_then_is_as_good_as_nothing(server, monkeypatch):
    small_send_buffers(monkeypatch)
    connection = deaf(server, post(CHAT, BODY | {"stream": True, "max_tokens": 300}))
    wait_until(lambda: connections(server) == 1)
    started = time.monotonic()
    while connections(server):
        assert time.monotonic() - started < 20, "still there"
        connection.recv(1)
        time.sleep(0.2)
    connection.close()


def test_who_reads_slowly_but_reads_gets_it_all(server, monkeypatch):
    small_send_buffers(monkeypatch)
    body = BODY | {"max_tokens": 60}
    whole = server.request("POST", CHAT, body)[1]["choices"][0]["message"]["content"]
    connection = deaf(server, post(CHAT, body | {"stream": True}, "connection: close"))
    read, started = b"", time.monotonic()
    while piece := connection.recv(8192):
        read += piece
        time.sleep(0.15)
    assert time.monotonic() - started > 2 * QUICK.send_timeout_s
    assert b"data: [DONE]" in read
    lines = [line[6:] for line in read.split(b"\r\n") if line.startswith(b"data: {")]
    assert "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines) == whole


def test_what_a_client_is_behind_is_bounded(folder, monkeypatch):
    """Who reads enough to stay, and less than is written, ends with an error; the slot is free at once."""
    small_send_buffers(monkeypatch)
    monkeypatch.setattr(answers, "MAX_BEHIND", 50)
    with running(folder, context_length=2048) as server:
        connection = deaf(server, post(CHAT, BODY | {"stream": True, "max_tokens": 1500}, "connection: close"))
        wait_until(lambda: server.stats.requests.get("cancelled") == 1)
        read = b""
        while piece := connection.recv(65536):
            read += piece
        assert b"the client is 50 tokens behind" in read and b"[DONE]" not in read


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"G",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: ",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{",
        b"POST /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{",
        b"HEAD /health HTTP/1.1\r\nhost: localhost\r\n\r\nGET / HTTP/1.1\r\nx: ",
        b"HEAD /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 50\r\n\r\n",
        # Without a content type, as above, they are refused before their bodies are waited for.
        HALF + b"content-length: 50\r\n\r\n{",
        HALF + b"transfer-encoding: chunked\r\n\r\n2\r\n{",
        HALF + b"expect: 100-continue\r\ncontent-length: 50\r\n\r\n",
    ],
)
@pytest.mark.parametrize("drip", [False, True])
def test_who_never_sends_the_rest_is_let_go(server, sent, drip):
    connection = deaf(server, sent)
    wait_until(lambda: connections(server) == 1)
    started = time.monotonic()
    while connections(server) and time.monotonic() - started < 10:
        time.sleep(0.1)
        if drip:
            try:
                connection.send(b"x")
            except OSError:
                break
    wait_until(lambda: connections(server) == 0, 10)
    connection.close()


def test_pipelined_requests_that_nobody_reads(server, monkeypatch):
    small_send_buffers(monkeypatch)
    connection = deaf(server, b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n" * 300)
    wait_until(lambda: connections(server) == 0, 15)
    connection.close()


def test_pipelined_requests_are_answered_in_order(server):
    connection = deaf(server, b"".join(post("/tokenize", {"prompt": "a" * n}) for n in range(1, 9)))
    read = b""
    while read.count(b"max_model_len") < 8:
        read += connection.recv(65536)
    counts = [int(part.split(b",")[0]) for part in read.split(b'"count":')[1:]]
    assert counts == sorted(counts) and len(counts) == 8
    connection.close()


def test_who_idles_makes_room_for_who_asks(folder):
    settings = Settings(max_connections=6)
    with running(folder, settings) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        idle += [deaf(server, b"GET / HTTP/1.1\r\nhost: ") for _ in range(3)]
        wait_until(lambda: connections(server) == 6)
        assert server.request("GET", "/health")[0] == 503, "who came just now may be about to ask"
        time.sleep(protocol.MIN_IDLE_S)
        for _ in range(12):
            assert server.request("GET", "/health")[0] == 200
        for connection in idle:
            connection.close()


def test_who_is_at_work_makes_no_room(folder):
    with running(folder, Settings(max_connections=3), slow_s=0.05) as server:
        working = [server.open(CHAT, BODY | {"stream": True, "max_tokens": 100}) for _ in range(3)]
        wait_until(lambda: server.stats.running == 3)
        assert server.request("GET", "/health")[0] == 503
        for connection in working:
            connection.close()
        wait_until(lambda: server.stats.running == 0)
        assert server.request("GET", "/health")[0] == 200


def test_the_system_is_asked_to_notice_peers_that_vanish(server):
    connection = deaf(server, b"")
    wait_until(lambda: connections(server) == 1)
    (one,) = server.server.server_state.connections
    theirs = one.transport.get_extra_info("socket")
    assert theirs.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        assert theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 2000
    connection.close()


def test_a_hundred_of_all_kinds_leave_nothing(folder, monkeypatch):
    small_send_buffers(monkeypatch)
    with running(folder, Settings(send_timeout_s=1.0, body_timeout_s=1.0, max_connections=64), max_running=4) as server:
        server.post(CHAT, BODY | {"max_tokens": 2})
        before = len(os.listdir("/proc/self/fd")), threading.active_count()
        kinds = [
            post(CHAT, BODY | {"stream": True, "max_tokens": 100}),
            post(CHAT, BODY | {"max_tokens": 100, "n": 2}),
            b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n" * 100,
            HALF + b"content-length: 50\r\n\r\n{",
            b"GET / HTTP/1.1\r\nx",
        ]
        sockets = []
        for number in range(100):
            try:
                sockets.append(deaf(server, kinds[number % len(kinds)]))
            except OSError:  # refused while it still sent
                pass
        wait_until(lambda: server.request("GET", "/health")[0] == 200, 30)
        wait_until(lambda: connections(server) == 0, 30)
        wait_until(lambda: server.stats.running == server.stats.waiting == 0)
        for connection in sockets:
            connection.close()
        assert server.stats.pages_used == server.stats.pages_kept
        assert len(os.listdir("/proc/self/fd")) <= before[0] and threading.active_count() <= before[1]
