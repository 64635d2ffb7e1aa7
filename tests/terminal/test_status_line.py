"""The status line of a terminal: what is shown, that it is gone before text comes, and that elsewhere nothing is."""

import io
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time

import pytest

from pyllama.cli.pass_line import PassLine, _Pass
from pyllama.cli.warm_up import WarmUp
from pyllama.errors import PyllamaError
from pyllama.terminal import status_line

DEADLINE_S = 120  # on an emulator everything takes its time


class Screen:
    """What a terminal shows of what was written to it: as much of a VT100 as is needed here."""

    def __init__(self, columns: int = 200):
        self.lines = [""]
        self.row = self.column = 0
        self.saved = (0, 0)
        self.columns = columns
        self.shown: list[str] = []  # every state a line was in when something else began

    def write(self, text: str) -> "Screen":
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[78D]|[\r\n]|[^\x1b\r\n]+", text):
            self._do(part)
        return self

    def _do(self, part: str) -> None:
        if part == "\r":
            self.column = 0
        elif part == "\n" or part == "\x1bD":
            self._down()
        elif part == "\x1b[A":
            self.row = max(0, self.row - 1)
        elif part == "\x1b[B":
            self.row = min(self.row + 1, len(self.lines) - 1)
        elif part == "\x1b7":
            self.saved = (self.row, self.column)
        elif part == "\x1b8":
            self.row, self.column = self.saved
        elif part == "\x1b[K":
            self.lines[self.row] = self.lines[self.row][: self.column]
        elif not part.startswith("\x1b"):
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + part + line[self.column + len(part) :]
            self.column += len(part)
            self.shown.append(self.lines[self.row])

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    @property
    def text(self) -> str:
        return "\n".join(self.lines).rstrip()


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Model:
    """What a pass is seen of."""

    class config:
        num_hidden_layers = 4

    passes = 0
    bytes_read = 0


@pytest.fixture
def at_once(monkeypatch):
    """No patience, and redrawn by hand only."""
    monkeypatch.setattr(status_line, "PATIENCE_S", 0.0)
    monkeypatch.setattr(status_line, "REDRAW_S", 1000.0)


def test_a_pass_shows_layer_rate_and_time_left(at_once, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(status_line.time, "monotonic", lambda: now[0])
    model, stream = Model(), Terminal()
    with PassLine(stream=stream, below=False) as signs:
        signs.watch(model)
        signs.on_layer(0)
        now[0] += 2.0
        model.bytes_read = 900_000_000
        signs.on_layer(1)
        signs.redraw()
        assert Screen().write(stream.getvalue()).text == "first pass  layer 2 of 4  450 MB/s from disk  0:08 left"
        now[0] += 8.0
        signs.clear()
        assert Screen().write(stream.getvalue()).text == ""
        model.passes = 1
        signs.on_layer(0)  # a pass like the last one: 10 seconds
        now[0] += 1.0
        signs.redraw()
        assert Screen().write(stream.getvalue()).text == "layer 1 of 4  0:09 left"
        now[0] += 20.0
        signs.on_layer(3)  # it has outlived the last one: by its layers then, the head as one more
        signs.redraw()
        assert Screen().write(stream.getvalue()).text == "layer 4 of 4  0:14 left"
    assert Screen().write(stream.getvalue()).text == ""


def test_before_there_is_anything_to_go_by_no_time_is_told():
    assert "left" not in _Pass(Model(), 0).line(None)


def test_a_line_below_leaves_half_a_line_of_text_and_the_cursor_alone(at_once):
    stream = Terminal()
    with PassLine(stream=stream, below=True) as signs:
        stream.write("Once upon")
        signs.show("layer 3 of 32")
        signs.redraw()
        assert Screen().write(stream.getvalue()).lines == ["Once upon", "layer 3 of 32"]
        signs.clear()
        stream.write(" a time")
        assert Screen().write(stream.getvalue()).text == "Once upon a time"
        signs.show("layer 4 of 32")
        signs.redraw()
        signs.redraw()
    stream.write(", there\n")
    assert Screen().write(stream.getvalue()).text == "Once upon a time, there"


def test_what_is_over_within_a_second_is_not_mentioned(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(status_line.time, "monotonic", lambda: now[0])
    stream = Terminal()
    with PassLine(stream=stream, below=False) as signs:
        signs.show("loading")
        now[0] = 0.99
        signs.redraw()
        assert stream.getvalue() == ""
        signs.show("loading the rest")  # the patience is with the whole
        now[0] = 1.0
        signs.redraw()
        assert "loading the rest" in stream.getvalue()


def test_a_thread_draws_while_a_layer_takes_its_time(monkeypatch):
    monkeypatch.setattr(status_line, "PATIENCE_S", 0.0)
    monkeypatch.setattr(status_line, "REDRAW_S", 0.001)
    stream = Terminal()
    with PassLine(stream=stream, below=False) as signs:
        signs.watch(Model())
        signs.on_layer(0)
        while "layer 1 of 4" not in stream.getvalue():
            time.sleep(0.001)
    assert not [thread for thread in threading.enumerate() if thread.name == "pyllama-signs"]


@pytest.mark.parametrize("quiet, stream", [(True, Terminal()), (False, io.StringIO())])
def test_quiet_or_without_a_terminal_nothing_is_written_and_no_thread_started(quiet, stream, at_once):
    with PassLine(quiet=quiet, stream=stream) as signs:
        signs.show("loading")
        signs.watch(Model())
        signs.on_layer(0)
        signs.redraw()
        assert signs._thread is None
    assert stream.getvalue() == ""


def test_a_terminal_that_goes_away_does_not_stop_the_work(at_once):
    class Gone(Terminal):
        def write(self, text):
            raise OSError(5, os.strerror(5))

    with PassLine(stream=Gone(), below=False) as signs:
        signs.show("loading")
        signs.redraw()
        assert not signs.enabled
        signs.on_layer(0)
        signs.clear()


def test_a_narrow_terminal_gets_a_line_that_fits(at_once, monkeypatch):
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((20, 5)))
    stream = Terminal()
    stream.fileno = lambda: 2
    with PassLine(stream=stream, below=False) as signs:
        signs.show("x" * 50)
        signs.redraw()
        assert Screen().write(stream.getvalue()).text == "x" * 19


# --- the commands, on a pseudo-terminal ---

# Layers that take their time; the line is drawn from the first moment on.
SLOW = """
import sys, time
from pyllama.terminal import status_line
from pyllama.decoder import Decoder
status_line.PATIENCE_S, status_line.REDRAW_S = 0.0, 0.002
good = Decoder._mlp_block
def slow(self, layer):
    time.sleep(0.05)
    good(self, layer)
Decoder._mlp_block = slow
from pyllama.cli import main
sys.exit(main(sys.argv[1:]))
"""


def on_terminal(*args, typed: str = "", stdout=None) -> str:
    """All that a command with slow layers writes to its terminal, which is its stderr, and its stdout if not given."""
    master, slave = pty.openpty()
    stdout = slave if stdout is None else stdout
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, args)], stdin=slave, stdout=stdout, stderr=slave, close_fds=True
    )
    os.close(slave)
    written = b""
    until = time.monotonic() + DEADLINE_S
    try:
        if typed:
            os.write(master, typed.encode())
        while time.monotonic() < until:
            if select.select([master], [], [], 0.05)[0]:
                try:
                    data = os.read(master, 65536)
                except OSError:  # nobody has it open any more
                    break
                written += data
                if not data:
                    break
    finally:
        process.kill() if time.monotonic() >= until else None
        process.wait(DEADLINE_S)
        os.close(master)
    assert process.returncode == 0, written
    return written.decode("utf-8", "replace")


def test_run_shows_its_passes_and_leaves_nothing_but_the_text(base_folder):
    common = ["run", base_folder, "--prompt", "hello", "--max-tokens", "4", "--seed", "1"]
    command = [sys.executable, "-m", "pyllama", *map(str, common)]
    plain = subprocess.run(command, capture_output=True, timeout=DEADLINE_S)
    screen = Screen().write(on_terminal(*common))
    assert any("first pass  layer 1 of 2" in line for line in screen.shown)
    assert any(re.match(r"layer 2 of 2 .* left", line) for line in screen.shown)
    assert screen.text == plain.stdout.decode().replace("\r\n", "\n").rstrip()
    quiet = on_terminal(*common, "--quiet")
    assert "layer" not in quiet and "\x1b" not in quiet


def test_run_into_a_file_shows_its_passes_on_the_terminal_alone(base_folder, tmp_path):
    common = ["run", base_folder, "--prompt", "hello", "--max-tokens", "3", "--json"]
    with open(tmp_path / "out", "wb") as out:
        written = on_terminal(*common, stdout=out)
    screen = Screen().write(written)
    assert any("layer 1 of 2" in line for line in screen.shown) and screen.text == ""
    assert (tmp_path / "out").read_bytes().startswith(b'{"text"')


def test_chat_shows_its_passes_between_prompt_and_answer(chat_folder):
    screen = Screen().write(on_terminal("chat", chat_folder, "--max-tokens", "3", typed="hello\n/exit\n"))
    assert any("layer 1 of 2" in line for line in screen.shown)
    assert "layer" not in screen.text and "> " in screen.text


@pytest.mark.parametrize("ends", [None, PyllamaError("no such file"), "stopped"])
def test_a_chats_first_pass_takes_its_line_along(monkeypatch, ends):
    monkeypatch.setattr(status_line, "PATIENCE_S", 0.0)
    terminal, stopped = Terminal(), threading.Event()
    line = PassLine(stream=terminal, below=False)

    class Chat:
        def warm_up(self, on_layer):
            line.show("layer 1 of 2")
            line.redraw()
            if ends == "stopped":
                stopped.wait(DEADLINE_S)
            if isinstance(ends, PyllamaError):
                raise ends
            on_layer(1)

    warm_up = WarmUp(Chat(), line.clear)
    if ends == "stopped":
        warm_up._stopping = True
        stopped.set()
    warm_up.stop()
    line.redraw()  # as it would be drawn from now on, while a person types
    assert "layer 1 of 2" in terminal.getvalue()
    assert Screen().write(terminal.getvalue()).lines == [""]
    line.close()
