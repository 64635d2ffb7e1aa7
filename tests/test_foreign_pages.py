"""A page of another origin, in a real browser: whatever it sends to a server on this machine, nothing runs there."""

import asyncio
import http.server
import os
import threading
from contextlib import contextmanager

import browser as browser_module
import pytest
from browser import Browser, until

import pyllama

for name in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(name)

from pyllama.engine import AsyncEngine  # noqa: E402
from pyllama.server.hooks import Hooks  # noqa: E402
from pyllama.server.run import Server, bind  # noqa: E402
from pyllama.server.service import Settings  # noqa: E402

if os.environ.get("PYLLAMA_EMULATED") == "1" or not (browser_module.CHROMIUM and browser_module.DRIVER):
    pytest.skip("no chromium with chromedriver here", allow_module_level=True)

BODY = '{"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "max_tokens": 2}'


class Page(http.server.BaseHTTPRequestHandler):
    """An empty page, whatever is asked for."""

    def do_GET(self):
        body = b"<!doctype html><title>foreign</title><link rel=icon href=data:,><body></body>"
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@contextmanager
def serving(chat_folder, **settings):
    """(port of a server on this machine, its engine)"""
    with pyllama.load(chat_folder, context_length=512) as model:
        bound = bind("127.0.0.1", 0)
        engine = AsyncEngine(model)
        server = Server(engine, ("tiny",), Settings(stop_timeout_s=0, **settings), Hooks())
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
        thread.start()
        until(lambda: server.started)
        try:
            yield bound.getsockname()[1], engine
        finally:
            server.should_exit = True
            thread.join(60)
            bound.close()


@pytest.fixture(scope="module")
def foreign():
    """Port of somebody else's web server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


# Each is a promise of what the page saw of the answer: "" where it saw none.
SENDS = r"""({
  "a Blob without a type": () => post({body: new Blob([body])}),
  "a Blob without a type, unseen": () => post({mode: "no-cors", body: new Blob([body])}),
  "bytes": () => post({mode: "no-cors", body: new TextEncoder().encode(body)}),
  "text": () => post({mode: "no-cors", body}),
  "text said to be JSON": () => post({body, headers: {"content-type": "application/json"}}),
  "with a client's headers": () => post({body, headers: {
    "content-type": "application/json", authorization: "Bearer none", "x-stainless-os": "Unknown",
    "x-stainless-retry-count": "0"}}),
  "a Blob of JSON": () => post({body: new Blob([body], {type: "application/json"})}),
  "text and another type": () =>
    post({mode: "no-cors", body, headers: {"content-type": "text/plain; application/json"}}),
  "no referrer": () => post({mode: "no-cors", referrerPolicy: "no-referrer", body: new Blob([body])}),
  "with cookies": () => post({mode: "no-cors", credentials: "include", body: new Blob([body])}),
  "reading": () => fetch(base + "/v1/models").then((r) => r.text(), () => ""),
  "a beacon": () => Promise.resolve(navigator.sendBeacon(url, new Blob([body]))).then(() => ""),
  "XMLHttpRequest": () => new Promise((done) => {
    const request = new XMLHttpRequest();
    request.open("POST", url);
    request.onload = () => done(request.responseText);
    request.onerror = () => done("");
    request.send(new Blob([body]));
  }),
  "a stream of events": () => new Promise((done) => {
    const source = new EventSource(url);
    source.onmessage = (message) => done(message.data);
    source.onerror = () => { source.close(); done(""); };
  }),
  "a websocket": () => new Promise((done) => {
    const socket = new WebSocket(url.replace("http", "ws"));
    socket.onopen = () => done("open");
    socket.onerror = () => done("");
  }),
  "a picture": () => loaded(document.createElement("img"), "/static/icon.svg"),
  "a script": () => loaded(document.createElement("script"), "/static/page.js"),
  "a sandboxed frame": () => new Promise((done) => {
    onmessage = (message) => done(message.data);
    const frame = document.createElement("iframe");
    frame.sandbox = "allow-scripts";
    frame.srcdoc = `<script>fetch("${url}", {method: "POST", body: new Blob([${JSON.stringify(body)}])})
      .then((r) => r.text(), () => "").then((text) => parent.postMessage(text, "*"))</` + "script>";
    document.body.append(frame);
  }),
})"""
SEND = f"""
const [base, url, body] = [arguments[0], arguments[0] + arguments[1], arguments[2]];
const post = (how) => fetch(url, {{method: "POST", ...how}}).then((r) => r.text(), () => "");
const loaded = (element, path) => new Promise((done) => {{
  element.onload = () => done("loaded");
  element.onerror = () => done("");
  element.src = base + path;
  document.body.append(element);
}});
const sends = {SENDS};
if (arguments[3] === null) return Object.keys(sends);
window.got = null;
sends[arguments[3]]().then((text) => {{ window.got = "saw:" + text; }});
"""
# A form's body is name=value: what makes JSON of it when it is sent as plain text.
FORM = """
const form = document.createElement("form"), input = document.createElement("input");
form.method = "POST"; form.action = arguments[0]; form.enctype = arguments[1]; form.target = "_self";
input.name = arguments[2].slice(0, -2) + ', "x": "'; input.value = '"}';
form.append(input); document.body.append(form); form.submit();
"""
PATHS = ("/v1/chat/completions", "/v1/completions")


def sent(window, how, base, path):
    """What the page saw of the answer."""
    window.run(SEND, base, path, BODY, how)
    return window.wait("window.got").removeprefix("saw:")


def ran(engine):
    stats = engine.stats()
    return stats.passes + stats.waiting + stats.running


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_nothing_that_a_foreign_page_sends_is_run(window, chat_folder, foreign, name):
    with serving(chat_folder) as (port, engine):
        base = f"http://127.0.0.1:{port}"
        window.open(f"http://{name}:{foreign}/")
        ways = window.run(SEND, base, "/", BODY, None)
        assert len(ways) > 15
        for how in ways:
            for path in PATHS:
                assert sent(window, how, base, path) == "", how
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            for path in PATHS:
                window.open(f"http://{name}:{foreign}/")
                window.run(FORM, base + path, kind, BODY)
                assert window.wait("document.body && /invalid_origin/.test(document.body.innerText)"), kind
        assert ran(engine) == 0
        # The same browser on the server's own page.
        window.open(base)
        assert '"choices"' in sent(window, "text said to be JSON", base, PATHS[0]) and ran(engine) > 0
        assert "missing" in sent(window, "a Blob without a type", base, PATHS[0])


def test_a_page_that_may_is_served(window, chat_folder, foreign):
    page = f"http://localhost:{foreign}"
    with serving(chat_folder, cors_origins=(page,)) as (port, engine):
        window.open(page + "/")
        assert '"choices"' in sent(window, "with a client's headers", f"http://127.0.0.1:{port}", PATHS[0])
        before = ran(engine)
        assert before > 0
        window.open(f"http://127.0.0.1:{foreign}/")
        assert sent(window, "with a client's headers", f"http://127.0.0.1:{port}", PATHS[0]) == ""
        assert ran(engine) == before
