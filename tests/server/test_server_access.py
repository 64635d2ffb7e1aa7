"""Whose requests are answered: other pages, names that others own, preflights, paths as clients write them."""

import http.client
import itertools
import socket

import pytest
from running_server import JSON, MESSAGES, running

pytest.importorskip("starlette")

from starlette.datastructures import Headers

from pyllama.server import origin
from pyllama.server.service import Settings

CHAT = {"messages": MESSAGES, "max_tokens": 1}
FOREIGN = "http://evil.example"
# What OpenAI's JavaScript client sends from a browser.
STAINLESS = [
    "authorization",
    "content-type",
    "x-stainless-arch",
    "x-stainless-async",
    "x-stainless-custom-poll-interval",
    "x-stainless-helper-method",
    "x-stainless-lang",
    "x-stainless-os",
    "x-stainless-package-version",
    "x-stainless-poll-helper",
    "x-stainless-retry-count",
    "x-stainless-runtime",
    "x-stainless-runtime-version",
    "x-stainless-timeout",
    "openai-organization",
    "openai-project",
    "openai-beta",
]


@pytest.fixture(scope="module")
def open_server(chat_folder):
    """Some pages may use it."""
    allowed = ("http://page.example", "HTTPS://Shop.example:443/", "app://obsidian.md", "null")
    with running(chat_folder, Settings(cors_origins=allowed)) as server:
        yield server


def head(server, path):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("HEAD", path)
    response = connection.getresponse()
    raw = response.read()
    connection.close()
    return response.status, raw


def answered(server):
    return sum(server.stats.requests.values())


# --- pages of other origins ---


@pytest.mark.parametrize(
    "page",
    [
        FOREIGN,
        "https://evil.example",
        "null",
        "http://localhost:PORT",
        "http://127.0.0.1:1",
        "http://127.0.0.1",
        "http://127.0.0.1:PORT0",
        "https://127.0.0.1",
        "http://127.0.0.2:PORT",
        "http://[::1]:PORT",
        "file://",
        "http://",
        "http://127.0.0.1:PORT.evil.example",
        "http://127.0.0.1:PORT@evil.example",
        "http://evil.example/127.0.0.1:PORT",
        "http://evil.example#127.0.0.1:PORT",
        "chrome-extension://abcdef",
        "app://127.0.0.1:PORT",
        "ws://127.0.0.1:PORT",
        "",
        " ",
        "http://127.0.0.1:PORT, http://evil.example",
        "http://127.0.0.1:99999999",
        "http://[",
        "\xff\xfe",
    ],
)
def test_no_page_of_another_origin_makes_it_work(server, page):
    page = page.replace("PORT", str(server.port))
    before = answered(server)
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "x"}),
        ("/tokenize", {"prompt": "x"}),
    ):
        status, answer, headers = server.request("POST", path, body, {"origin": page})
        assert status == 403 and answer["error"]["code"] == "invalid_origin" and "--cors" in answer["error"]["message"]
        assert not [name for name in headers if name.startswith("access-control")]
    assert server.request("GET", "/v1/models", headers={"origin": page})[0] == 403
    assert server.request("OPTIONS", "/v1/chat/completions", headers={"origin": page})[0] == 403
    assert answered(server) == before


def test_its_own_page_and_programs_are_served(server):
    own = [f"http://127.0.0.1:{server.port}", f"HTTP://127.0.0.1:{server.port}"]
    for headers in (
        {},
        *({"origin": page} for page in own),
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
        {"origin": own[0], "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"},
        {"x-forwarded-host": "evil.example", "x-forwarded-for": "6.6.6.6"},
    ):
        assert server.request("POST", "/v1/chat/completions", CHAT, headers)[0] == 200
    for host, page in (
        ("localhost:80", "http://localhost"),
        ("localhost", "https://localhost"),
        ("[::1]:5", "http://[::1]:5"),
        ("10.1.2.3:443", "https://10.1.2.3"),
        ("LOCALHOST:7", "http://localhost:7"),
    ):
        assert server.request("GET", "/health", headers={"host": host, "origin": page})[0] == 200
    # What a proxy says it was asked for is not believed: a page could say it too, in a browser that asked for leave.
    forged = {"origin": FOREIGN, "x-forwarded-host": "evil.example", "forwarded": "host=evil.example"}
    assert server.request("GET", "/health", headers=forged)[0] == 403


def test_what_carries_no_origin_is_told_by_where_the_browser_says_it_comes_from(server):
    """A picture, a script, a frame, a form with GET."""
    for site, mode, dest in itertools.product(
        ("cross-site", "same-site", "Cross-Site"),
        ("no-cors", "navigate", "cors", "websocket"),
        ("image", "script", "iframe", "embed", "empty", "audio"),
    ):
        headers = {"sec-fetch-site": site, "sec-fetch-mode": mode, "sec-fetch-dest": dest}
        for path in ("/", "/health", "/metrics", "/v1/models", "/static/page.js"):
            assert server.request("GET", path, headers=headers)[0] == 403, headers
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert server.request("GET", "/", headers=link)[0] == 200, "a link to the page was followed"
    assert server.request("POST", "/v1/chat/completions", CHAT, link)[0] == 403, "a form was sent"


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "text/plain",
        "text/plain;charset=UTF-8",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain; application/json",
        "application/jsonx",
        "application/json, text/plain",
        "text/json",
        "*/*",
    ],
)
def test_a_type_that_a_browser_sends_unasked_is_not_json(server, kind):
    """Also without an Origin: browsers once left it out."""
    before = answered(server)
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        connection = socket.create_connection(("127.0.0.1", server.port))
        line = b"" if kind is None else b"content-type: " + kind.encode() + b"\r\n"
        connection.sendall(
            b"POST %s HTTP/1.1\r\nhost: localhost\r\n%scontent-length: 2\r\n\r\n{}" % (path.encode(), line)
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 415")
        connection.close()
    assert answered(server) == before


def test_a_websocket_is_no_way_around(server):
    connection = socket.create_connection(("127.0.0.1", server.port))
    lines = (
        "GET /v1/chat/completions HTTP/1.1",
        "host: localhost",
        "upgrade: websocket",
        "connection: upgrade",
        "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
        "sec-websocket-version: 13",
        f"origin: {FOREIGN}",
        "",
        "",
    )
    connection.sendall("\r\n".join(lines).encode())
    assert connection.recv(1000).startswith(b"HTTP/1.1 403")
    connection.close()


def test_names_are_compared_as_names(server, chat_folder):
    for host in ("LocalHost:80", "localhost.", "127.0.0.1", "[::1]", "[fe80::1]:9", "0.0.0.0:1"):
        assert server.request("GET", "/health", headers={"host": host})[0] == 200, host
    for host in (
        "evil.example.",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1:80@evil.example",
        "[",
        "a b",
        "[::1",
        "0x7f.1.evil.example:80",
        "localhost:80:evil",
    ):
        status, answer, _ = server.request("GET", "/v1/models", headers={"host": host})
        assert status in (400, 403) and answer["error"]["message"], host
    with running(chat_folder, Settings(allowed_hosts=("Board.LAN",))) as named:
        assert named.request("GET", "/health", headers={"host": "board.lan:8000"})[0] == 200
        own = {"host": "board.lan", "origin": "https://board.lan"}
        assert named.request("POST", "/v1/chat/completions", CHAT, own)[0] == 200, "a proxy in front speaks TLS"


def test_whoever_has_the_key_may_come_from_anywhere(chat_folder):
    """A page cannot have it unless it was told; a proxy in front may have changed the host's name."""
    with running(chat_folder, Settings(api_key="sesame-open")) as server:
        key = {"authorization": "Bearer sesame-open"}
        for page in ("https://board.example", "app://obsidian.md", "null"):
            assert server.request("POST", "/v1/chat/completions", CHAT, key | {"origin": page})[0] == 200
            assert server.request("POST", "/v1/chat/completions", CHAT, {"origin": page})[0] == 401
        assert server.request("GET", "/nothing", headers=key | {"host": "["})[0] == 404
        status, answer, _ = server.request("GET", "//nothing", headers=key | {"host": "a b]["})
        assert (status, answer["error"]["message"]) == (404, "no such path: /nothing")


def test_origins_are_compared_as_browsers_write_them():
    for given, same in (
        ("HTTP://LocalHost:3000/", "http://localhost:3000"),
        ("https://a.example:443", "https://a.example"),
        ("http://a.example:80/", "http://a.example"),
        ("http://a.example:8080", "http://a.example:8080"),
        ("app://x", "app://x"),
        ("null", "null"),
        ("*", "*"),
    ):
        assert origin.canonical(given) == same
    allowed = frozenset({"http://a.example"})
    assert origin.foreign(Headers({"origin": "http://a.example"}), "POST", allowed) is None
    two = Headers(raw=[(b"host", b"localhost"), (b"origin", b"http://a.example"), (b"origin", FOREIGN.encode())])
    assert "evil" in origin.foreign(two, "POST", allowed)
    assert origin.foreign(two, "POST", frozenset({"*"})) is None


# --- preflights ---


def test_an_allowed_page_may_send_the_headers_that_its_client_sends(open_server):
    for page in ("http://page.example", "https://shop.example", "app://obsidian.md", "null"):
        asking = {
            "origin": page,
            "access-control-request-method": "POST",
            "access-control-request-headers": ",".join(STAINLESS),
        }
        for path in ("/v1/chat/completions", "/v1/models/", "/tokenize"):
            status, _, headers = open_server.request("OPTIONS", path, headers=asking)
            assert (status, headers["access-control-allow-origin"]) == (204, page)
            assert set(STAINLESS) <= set(headers["access-control-allow-headers"].replace(" ", "").split(","))
            assert {"GET", "POST"} <= set(headers["access-control-allow-methods"].replace(" ", "").split(","))
            assert "origin" in headers["vary"] and "access-control-allow-private-network" not in headers
        local = asking | {"access-control-request-private-network": "true"}
        headers = open_server.request("OPTIONS", "/v1/models", headers=local)[2]
        assert headers["access-control-allow-private-network"] == "true"
        status, _, headers = open_server.request("POST", "/v1/chat/completions", CHAT, {"origin": page})
        assert (status, headers["access-control-allow-origin"]) == (200, page)
        status, _, headers = open_server.request("POST", "/v1/chat/completions", b"{", {"origin": page})
        assert (status, headers["access-control-allow-origin"]) == (400, page), "a page may see why"


def test_what_is_no_header_is_not_said_to_be_one(open_server):
    for names in ("<script>", "a:b", "x" * 5000, "a\x7fb", "\xff"):
        asking = {"origin": "http://page.example", "access-control-request-headers": names}
        headers = open_server.request("OPTIONS", "/v1/models", headers=asking)[2]
        assert headers["access-control-allow-headers"] == "authorization, content-type"


@pytest.mark.parametrize(
    "page",
    ["http://page.example.evil.example", "http://page.example:81", "https://page.example", "http://x.page.example"],
)
def test_a_page_that_only_looks_like_an_allowed_one(open_server, page):
    asking = {"origin": page, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    status, _, headers = open_server.request("OPTIONS", "/v1/chat/completions", headers=asking)
    assert status == 403 and "access-control-allow-origin" not in headers
    assert open_server.request("POST", "/v1/chat/completions", CHAT, {"origin": page})[0] == 403


def test_all_pages_if_that_is_said(chat_folder):
    with running(chat_folder, Settings(cors_origins=("*",))) as server:
        asking = {"origin": FOREIGN, "access-control-request-headers": ", ".join(STAINLESS)}
        status, _, headers = server.request("OPTIONS", "/v1/chat/completions", headers=asking)
        assert (status, headers["access-control-allow-origin"]) == (204, "*")
        assert "authorization" in headers["access-control-allow-headers"], "a star would not cover it"
        assert (
            server.request("POST", "/v1/chat/completions", CHAT, {"origin": FOREIGN, "sec-fetch-site": "cross-site"})[0]
            == 200
        )


# --- paths and methods ---

ROUTES = [
    ("POST", "/v1/chat/completions", CHAT, 200),
    ("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1}, 200),
    ("POST", "/tokenize", {"prompt": "x"}, 200),
    ("POST", "/detokenize", {"tokens": [65]}, 200),
    ("POST", "/v1/embeddings", {"input": "x"}, 400),
    ("GET", "/v1/models", None, 200),
    ("GET", "/v1/models/tiny", None, 200),
    ("GET", "/health", None, 200),
    ("GET", "/metrics", None, 200),
    ("GET", "/openapi.json", None, 200),
    ("GET", "/static/page.js", None, 200),
    ("GET", "/", None, 200),
]


@pytest.mark.parametrize("method, path, body, expected", ROUTES)
def test_slashes_too_many_change_nothing(server, method, path, body, expected):
    for written in (path, path + "/", path + "//", path.replace("/", "//"), "/" + path):
        status, _, headers = server.request(method, written, body)
        assert status == expected and "location" not in headers, written
        if method == "GET":
            assert head(server, written) == (200, b"")
        wrong = "GET" if method == "POST" else "POST"
        status, answer, headers = server.request(wrong, written, b"{}" if wrong == "POST" else None)
        assert (status, set(answer["error"])) == (405, {"message", "type", "param", "code"}) and method in headers[
            "allow"
        ]


def test_other_methods_and_paths_are_errors_in_openais_form(server):
    for method, path in itertools.product(
        ("PUT", "DELETE", "PATCH", "OPTIONS"), ("/v1/chat/completions", "/v1/models")
    ):
        status, answer, headers = server.request(method, path)
        assert status == 405 and answer["error"]["type"] == "invalid_request_error" and headers["allow"]
    for path in (
        "/v1",
        "/v1/",
        "/v1/responses/resp_1",
        "/chat/completions",
        "/%00",
        "/v1/models/../x",
        "/static//x",
        "/v1/%2e%2e",
    ):
        status, answer, _ = server.request("GET", path)
        assert status == 404 and answer["error"]["message"]
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(b"BREW /v1/models HTTP/1.1\r\nhost: localhost\r\n" + JSON + b"\r\n")
    assert connection.recv(1000).startswith(b"HTTP/1.1 405")
    connection.close()


def test_nothing_that_is_answered_is_guessed_to_be_something_else(server):
    for path in ("/v1/models", "/nothing", "/", "/metrics"):
        assert server.request("GET", path)[2]["x-content-type-options"] == "nosniff"
