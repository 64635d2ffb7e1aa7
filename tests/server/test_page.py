"""The web page in a real browser against a real server: what a person sees, presses, and finds again after a reload.

Without Chromium and its driver only the files are looked at.
"""

import asyncio
import os
import re
import threading
import time
from html.parser import HTMLParser
from importlib.resources import files

import browser as browser_module
import pytest
from browser import ENTER, ESCAPE, SHIFT, Browser, until

import pyllama

for name in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(name)

from pyllama.engine import AsyncEngine
from pyllama.server.app import _PAGE_HEADERS
from pyllama.server.hooks import Hooks
from pyllama.server.run import Server, bind, url_of
from pyllama.server.service import Settings

EMULATED = os.environ.get("PYLLAMA_EMULATED") == "1"
in_browser = pytest.mark.skipif(
    EMULATED or not (browser_module.CHROMIUM and browser_module.DRIVER), reason="no chromium with chromedriver here"
)
STATIC = files("pyllama.server") / "static"
KEY = "correct-horse"


# --- the files ---


def test_the_page_is_in_the_package_and_links_its_own_files_only():
    class Links(HTMLParser):
        found: list[str] = []
        inline: list[str] = []

        def handle_starttag(self, tag, attributes):
            given = dict(attributes)
            self.found += [given[name] for name in ("src", "href", "action") if name in given]
            self.inline += [name for name in given if name.startswith("on") or name == "style"]
            self.inline += [tag] * (tag == "style" or (tag == "script" and "src" not in given))

    page = Links()
    page.feed((STATIC / "index.html").read_text(encoding="utf-8"))
    assert sorted(page.found) == [
        "static/highlight.js", "static/icon.svg", "static/markdown.js", "static/page.css", "static/page.js"
    ]  # fmt: skip
    assert page.inline == []
    assert all((STATIC.parent / link).is_file() for link in page.found)
    assert "url(" not in (STATIC / "page.css").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["highlight.js", "markdown.js", "page.js"])
def test_the_script_never_makes_markup_of_text(name):
    script = (STATIC / name).read_text(encoding="utf-8")
    assert re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|DOMParser", script) == []
    assert "require-trusted-types-for 'script'" in _PAGE_HEADERS["content-security-policy"]
    assert "unsafe" not in _PAGE_HEADERS["content-security-policy"]


# --- in the browser ---


class Slow:
    """Called before each layer; sleeps when told to, as a board does that reads its layers from a disk."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self, layer: int) -> None:
        time.sleep(self.seconds)


@pytest.fixture
def served(chat_folder):
    """serve(**options of the engine) -> (url, Slow); the server answers until the test ends."""
    stops = []

    def serve(settings=None, **options):
        slow = Slow()
        model = pyllama.load(chat_folder, on_layer=slow, context_length=512)
        bound = bind("127.0.0.1", 0)
        server = Server(AsyncEngine(model, **options), ("tiny",), settings or Settings(stop_timeout_s=0), Hooks())
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
        thread.start()

        def stop():
            slow.seconds = 0.0
            server.should_exit = True
            thread.join(60)
            bound.close()
            model.close()

        stops.append(stop)
        until(lambda: server.started)
        return url_of(bound), slow

    yield serve
    for stop in stops:
        stop()


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(window):
    """The browser; at the end nothing must be on its console that the test did not fetch with complaints()."""
    window.size(1000, 700)
    window.colours("light")
    window.complaints()
    yield window
    assert window.complaints() == []
    window.run("localStorage.clear()")
    window.open("about:blank")


def opened(page, url):
    page.open(url)
    page.wait("$('model').textContent === 'tiny'")


def set_settings(page, **values):
    page.click("#settings-open")
    for name, value in values.items():
        page.run("document.querySelector(`[name=${arguments[0]}]`).value = arguments[1]", name, str(value))
    page.click("#settings-form button[type=submit]")
    # The dialog's close event, which gives the focus back, comes a moment after it is no longer open.
    page.wait("!$('settings').open && document.activeElement.id === 'text'")


def texts(page, selector):
    return page.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)


def press(page, label):
    """The last button of a message that says so."""
    page.run(
        "[...document.querySelectorAll('.message button')].findLast((b) => b.textContent === arguments[0]).click()",
        label,
    )


def put(page, *contents):
    """A conversation of these messages, a person's first, as if it had been had."""
    page.run(
        """current = newConversation();
        current.messages = arguments[0].map((content, i) => ({role: i % 2 ? "assistant" : "user", content, stats: ""}));
        conversations.set(current.id, current); keep(current); drawList(); drawLog()""",
        list(contents),
    )


@in_browser
def test_a_message_is_answered_and_both_are_there_after_a_reload(page, served, chat_folder):
    url, _ = served()
    opened(page, url)
    set_settings(page, temperature=0, max_tokens=12, system="be brief")
    assert page.run("return document.activeElement.id") == "text"
    page.keys("hello")
    page.keys(ENTER, holding=SHIFT)
    page.keys("and hello" + ENTER)
    page.wait("!live() && document.querySelectorAll('.message').length === 2")
    with pyllama.load(chat_folder) as model:
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello\nand hello"}]
        expected = model.generate(messages, temperature=0, max_tokens=12).read()
    assert page.run("return current.messages[1].content") == expected
    assert re.search(r"12 tokens · [\d.]+ tok/s · first after [\d.]+ s", texts(page, ".assistant .foot")[0])
    assert page.run("return $('text').value") == ""
    shown = texts(page, "#log .message .body")
    page.reload()
    page.wait("document.querySelectorAll('.message').length === 2")
    assert texts(page, "#log .message .body") == shown
    assert texts(page, "#conversations .open") == ["hello"]
    assert page.run("return settings.temperature") == "0"


@in_browser
def test_the_next_turn_sends_the_conversation_so_far(page, served, chat_folder):
    url, _ = served()
    opened(page, url)
    set_settings(page, temperature=0, max_tokens=6)
    for text in ("one", "two"):
        page.keys(text + ENTER)
        page.wait(f"!live() && title(current) && current.messages.at(-2)?.content === '{text}'")
    first, second = page.run("return [current.messages[1].content, current.messages[3].content]")
    with pyllama.load(chat_folder) as model:
        turns = [("user", "one"), ("assistant", first), ("user", "two")]
        messages = [{"role": role, "content": content} for role, content in turns]
        assert second == model.generate(messages, temperature=0, max_tokens=6).read()


@in_browser
@pytest.mark.parametrize("how", ["escape", "button"])
def test_an_answer_can_be_stopped_and_frees_its_slot(page, served, how):
    url, slow = served(max_running=1)
    opened(page, url)
    slow.seconds = 0.05
    page.keys("hello" + ENTER)
    page.wait("live() && live().tokens > 1")
    if how == "escape":
        page.keys(ESCAPE)
    else:
        page.click("#stop")
    page.wait("!live()")
    assert "stopped" in texts(page, ".assistant .foot")[0]
    assert page.run("return document.activeElement.id") == "text"
    until(lambda: page.run("return fetch('health').then((r) => r.json()).then((h) => h.requests.running)") == 0)
    assert page.run("return $('send').hidden") is False


@in_browser
def test_a_slow_board_shows_the_layer_and_the_place_in_the_queue(page, served):
    url, slow = served(max_running=1)
    opened(page, url)
    slow.seconds = 1.5
    page.run(
        """window.other = new AbortController();
        fetch("v1/chat/completions", {method: "POST", headers: {"content-type": "application/json"},
            signal: other.signal, body: JSON.stringify({messages: [{role: "user", content: "first"}], user: "other"})
        }).catch(() => {})"""
    )
    until(lambda: page.run("return fetch('health').then((r) => r.json()).then((h) => h.requests.running)") == 1)
    page.keys("second" + ENTER)
    page.wait("$('status').textContent.includes('place 1 in the queue')")
    page.run("other.abort()")
    page.wait("/reading.* · layer \\d of \\d/.test($('status').textContent) && !$('layers').hidden")
    page.keys(ESCAPE)
    page.wait("!live()")
    assert "stopped" in texts(page, ".assistant .foot")[0]
    slow.seconds = 0.0


@in_browser
def test_an_answer_that_a_reload_cut_off_is_kept_as_far_as_it_came(page, served):
    url, slow = served()
    opened(page, url)
    slow.seconds = 0.05
    page.keys("hello" + ENTER)
    page.wait("live() && live().message.content.length > 3")
    page.reload()
    page.wait("document.querySelectorAll('.message').length === 2")
    assert len(page.run("return current.messages[1].content")) > 3
    assert "not finished" in texts(page, ".assistant .foot")[0]


@in_browser
def test_conversations_can_be_chosen_and_deleted(page, served):
    url, _ = served()
    opened(page, url)
    set_settings(page, max_tokens=2)
    for text in ("first", "second"):
        page.click("#new")
        page.keys(text + ENTER)
        page.wait("!live() && current.messages.length === 2")
    assert texts(page, "#conversations .open") == ["second", "first"]
    page.click("#conversations li:nth-child(2) .open")
    assert texts(page, ".user .body") == ["first"]
    page.click("#conversations li:nth-child(2) .delete")
    page.click("#confirm-yes")
    assert texts(page, "#conversations .open") == ["second"]
    page.reload()
    page.wait("document.querySelectorAll('.message').length === 2")
    assert texts(page, ".user .body") == ["second"]
    page.click("#settings-open")
    page.click("#forget")
    page.click("#confirm-yes")
    assert page.run("return Object.keys(localStorage).filter((key) => key.includes('conversation'))") == []


@in_browser
def test_text_of_the_model_is_text(page, served):
    url, _ = served()
    opened(page, url)
    hostile = "<img src=x onerror=alert(1)>\n\n"
    hostile += "```html\n<script>alert(1)</script>\n```\n**<b>** `<i>` & [a](javascript:1)"
    page.run(
        """current.messages.push({role: "user", content: "q"}, {role: "assistant", content: arguments[0], stats: ""});
        conversations.set(current.id, current); keep(current); drawLog()""",
        hostile,
    )
    assert page.run("return [...document.querySelectorAll('.assistant .body *')].map((e) => e.localName)") == [
        "p", "div", "div", "span", "button", "pre", "code", "span", "span", "span", "span", "span",
        "p", "strong", "code",
    ]  # fmt: skip
    assert texts(page, ".assistant .body p") == ["<img src=x onerror=alert(1)>", "<b> <i> & [a](javascript:1)"]
    assert texts(page, ".assistant pre") == ["<script>alert(1)</script>"]


MARKDOWN = """# Title
A *little* **bold** ~~no~~ `code` and [a link](https://example.org/a?b=1), https://example.org/c.
Second line with snake_case_names and 2 * 3 * 4.

- one
- two
  1. inner
  2. more
- [x] done

> quoted
> - in it

| a | b |
|---|--:|
| 1 | `x\\|y` |

---
```python
def f(x):  # why
    return "s" + 1
```
"""


@in_browser
def test_markdown_becomes_elements(page, served):
    url, _ = served()
    opened(page, url)
    put(page, "q", MARKDOWN)
    tree = page.run(
        """const tree = (e) => e.localName + (e.children.length ? `(${[...e.children].map(tree).join(" ")})` : "");
        return [...document.querySelector(".assistant .body").children].map(tree)"""
    )
    assert tree == [
        "h2", "p(em strong del code a a)", "ul(li li(ol(li li)) li(input))", "blockquote(p ul(li))",
        "div(table(thead(tr(th th)) tbody(tr(td td(code)))))", "hr",
        "div(div(span button) pre(code(span span span span span)))",
    ]  # fmt: skip
    assert texts(page, ".body a") == ["a link", "https://example.org/c"]
    assert page.run("return [...document.querySelectorAll('.body a')].map((a) => [a.href, a.rel])") == [
        [href, "noopener noreferrer nofollow"] for href in ("https://example.org/a?b=1", "https://example.org/c")
    ]
    assert "snake_case_names and 2 * 3 * 4." in texts(page, ".body p")[1]
    assert texts(page, "pre span") == ["def", "# why", "return", '"s"', "1"]
    assert texts(page, "td") == ["1", "x|y"]
    page.run("navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }")
    page.click(".code button")
    page.wait("window.copied === 'def f(x):  # why\\n    return \"s\" + 1'")


@in_browser
@pytest.mark.parametrize(
    "text", ["*" * 50_000, "[" * 50_000, "> " * 20_000, "`a" * 5_000, "- " * 20_000, "|" * 9_000 + "\n" + "|-" * 9_000,
             "".join("  " * i + "- a\n" for i in range(300)), "<think>" * 5_000, "_a" * 30_000, "https://" * 9_000],
)  # fmt: skip
def test_whatever_a_model_writes_is_drawn_in_time(page, served, text):
    url, _ = served()
    opened(page, url)
    assert (
        page.run(
            "const begun = performance.now(); partsOf(arguments[0]).map(partElement); return performance.now() - begun",
            text,
        )
        < 2000
    )


@in_browser
def test_a_person_edits_regenerates_renames_searches_and_exports(page, served):
    url, _ = served()
    opened(page, url)
    set_settings(page, temperature=0, max_tokens=2)
    put(page, "first question", "one", "second", "two")
    press(page, "Regenerate")
    page.wait("!live() && current.messages.length === 4 && current.messages[3].content !== 'two'")
    page.run("[...document.querySelectorAll('.user button')].find((b) => b.textContent === 'Edit').click()")
    assert page.run("return document.activeElement.value") == "first question"
    page.run("document.activeElement.value = 'edited'")
    page.keys(ENTER)
    page.wait("!live() && current.messages.length === 2 && current.messages[0].content === 'edited'")
    page.click("#conversations .edit")
    page.keys("My name" + ENTER)
    assert texts(page, "#conversations .open") == ["My name"]
    put(page, "something else", "with a needle")
    assert texts(page, "#conversations .open") == ["something else", "My name"]
    page.run("$('search').focus()")
    page.keys("NEEDLE")
    assert texts(page, "#conversations .open") == ["something else"]
    page.run(
        """$('search').value = '';
        URL.createObjectURL = (blob) => { blob.text().then((text) => (window.saved = text)); return '#'; }"""
    )
    page.click("#export")
    page.wait("window.saved === '# something else\\n\\n## You\\n\\nsomething else\\n\\n## Model\\n\\nwith a needle\\n'")


@in_browser
def test_two_conversations_run_at_once(page, served):
    url, slow = served(max_running=2)
    opened(page, url)
    set_settings(page, max_tokens=8)
    slow.seconds = 0.1
    page.keys("first" + ENTER)
    page.wait("live() && live().tokens > 0")
    page.click("#new")
    assert page.run("return [live(), $('send').hidden]") == [None, False]
    page.keys("second" + ENTER)
    page.wait("live() && live().tokens > 0 && running.size === 2")
    assert page.run("return document.querySelectorAll('#conversations .running').length") == 2
    page.wait("running.size === 0")
    assert page.run("return [...conversations.values()].map((one) => one.messages.length)") == [2, 2]
    assert [foot.count("8 tokens") for foot in texts(page, ".assistant .foot")] == [1]


@in_browser
def test_an_empty_conversation_has_examples_and_the_header_the_context(page, served):
    url, _ = served()
    opened(page, url)
    set_settings(page, max_tokens=2, top_k=5, min_p=0.1, thinking="off")
    assert page.run("return $('context').textContent") == "context 512"
    assert len(texts(page, ".example")) == 3
    assert page.run("return requestOf([])")["chat_template_kwargs"] == {"enable_thinking": False}
    assert page.run("const r = requestOf([]); return [r.top_k, r.min_p]") == [5, 0.1]
    page.click(".example")
    page.wait("!live() && current.messages.length === 2")
    stats = "statsOf({usage: {completion_tokens: 9, completion_tokens_details: {accepted_prediction_tokens: 4}}})"
    assert "4 of them drafted · 1.8 a pass" in page.run(f"return {stats}")


@in_browser
def test_the_policy_keeps_markup_and_foreign_resources_out(page, served):
    url, _ = served()
    opened(page, url)
    assert "TypeError" in page.run("try { $('log').innerHTML = '<b>x</b>'; } catch (error) { return String(error); }")
    assert page.run("return fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    assert all("Content Security Policy" in line or "TrustedHTML" in line for line in page.complaints())


@in_browser
def test_a_key_is_asked_for_and_kept(page, served):
    url, _ = served(Settings(api_key=KEY, stop_timeout_s=0))
    page.open(url)
    page.wait("$('key').open && $('key-title').textContent.includes('API key')")
    assert page.run("return document.activeElement.name") == "api_key"
    assert page.run("return $('status').textContent") == "the server asks for an API key: Settings, API key"
    for wrong in ("guessed", "\u00e4 key"):
        page.keys(wrong + ENTER)
        page.wait("$('key-problem').textContent === 'This key is wrong.'")
        page.run("$('api_key').value = ''; $('key-problem').textContent = ''; $('api_key').focus()")
    page.keys(KEY + ENTER)
    page.wait("$('model').textContent === 'tiny' && !$('key').open")
    page.reload()
    page.wait("$('model').textContent === 'tiny'")
    assert all("401" in line for line in page.complaints())


@in_browser
def test_a_failed_request_says_why_and_can_be_tried_again(page, served):
    url, _ = served()
    opened(page, url)
    page.run("settings = {max_tokens: '3', temperature: '9'}")
    page.keys("hello" + ENTER)
    page.wait("!live() && document.querySelector('.problem')")
    assert "temperature" in texts(page, ".problem")[0]
    page.run("settings = {max_tokens: '3', temperature: '0'}")
    press(page, "Try again")
    page.wait("!live() && current.messages.at(-1).content")
    assert page.run("return current.messages.length") == 2
    assert all("400" in line for line in page.complaints())


@in_browser
def test_settings_out_of_range_are_refused_by_name(page, served):
    url, _ = served()
    opened(page, url)
    page.click("#settings-open")
    page.run("document.querySelector('[name=top_p]').value = '1.5'")
    page.click("#settings-form button[type=submit]")
    assert texts(page, "#settings-problem")[0].startswith("Top p: ")
    page.keys(ESCAPE)
    assert page.run("return [$('settings').open, settings.top_p]") == [False, None]


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_of_360_pixels_has_all_of_it(page, served, scheme):
    page.size(360, 640, phone=True)
    page.colours(scheme)
    url, _ = served()
    opened(page, url)
    page.run("settings = {max_tokens: '300'}")
    page.click("#text")
    page.keys("a" * 80 + "\n")  # on a phone Enter makes a new line
    assert page.run("return [live(), $('text').value.length]") == [None, 81]
    page.click("#send")
    page.wait("!live() && current.messages.length === 2")
    assert page.run("return document.documentElement.scrollWidth") == 360
    assert page.run("return $('log').scrollWidth <= $('log').clientWidth")
    assert page.run("return $('text').getBoundingClientRect().bottom <= innerHeight")
    page.click("#menu")
    page.wait("$('sidebar').getBoundingClientRect().left === 0")
    assert page.run("return document.activeElement.id") == "new"
    page.click("#conversations .open")
    page.wait("$('sidebar').getBoundingClientRect().right <= 0")
    buttons = "[...document.querySelectorAll('header button, #entry button')]"
    heights = page.run(f"return {buttons}.map((button) => button.offsetHeight)")
    assert all(height == 0 or height >= 40 for height in heights)  # a fingertip's
    assert contrast(page, "body") >= 7
    assert contrast(page, ".user .body") >= 7
    assert contrast(page, "#send") >= 4.5
    assert contrast(page, ".foot span") >= 4.5


@in_browser
def test_thoughts_are_folded_stay_as_they_were_opened_and_say_while_nothing_else_is_said(page, served):
    url, _ = served()
    page.open(url)
    put(page, "q", "")
    page.run(
        """const message = current.messages[1];
        running.set(current.id, {message, abort: new AbortController(), begun: Date.now(), tokens: 0});
        window.think = (delta) => { take({choices: [{delta}]}, running.get(current.id)); drawLog(); };"""
    )
    page.run("think({reasoning_content: 'first '})")
    page.wait("document.querySelector('summary')?.textContent === 'Thinking …'")
    assert not page.run("return document.querySelector('details').open")
    page.click("summary")
    page.run("think({reasoning_content: '**second**'})")
    page.wait("document.querySelector('details p').textContent === 'first **second**'")
    page.run("think({content: 'said'})")
    page.wait("document.querySelector('summary').textContent === 'Thoughts'")
    assert texts(page, ".assistant .body > p") == ["said"]
    page.run("running.delete(current.id); keep(current)")
    page.reload()
    page.wait("document.querySelector('summary')?.textContent === 'Thoughts'")
    assert texts(page, "details p") == ["first **second**"]
    page.colours("dark")
    assert contrast(page, "details p") >= 4.5
    page.colours("light")
    assert contrast(page, "summary") >= 4.5


def contrast(page, selector):
    """Of text and what is behind it, as WCAG 2 defines it."""
    return page.run(
        """const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const light = (rgb) => { const [r, g, b] = rgb.match(/[\\d.]+/g).map(Number).map(channel);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        let behind = document.querySelector(arguments[0]);
        const text = light(getComputedStyle(behind).color);
        while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        const back = light(getComputedStyle(behind).backgroundColor);
        return (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);""",
        selector,
    )
