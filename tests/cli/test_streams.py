"""Standard streams that are closed, full, cut off or of another encoding: no traceback, and exit code 0 or 2."""

import codecs
import io
import json
import os
import subprocess
import sys

import pytest

from pyllama.cli import run as run_module
from pyllama.cli import streams
from pyllama.errors import RequestError

RUN = ["run", "MODEL", "--prompt", "hello", "--max-tokens", "4", "--quiet"]
COMMANDS = {
    "run": RUN,
    "run --json": [*RUN, "--json", "--verbose"],
    "run, no prompt": ["run", "MODEL", "--quiet"],
    "chat": ["chat", "MODEL", "--max-tokens", "2", "--temp", "0", "--quiet"],
    "info": ["info", "MODEL"],
    "info --json": ["info", "MODEL", "--json"],
    "info --template": ["info", "MODEL", "--template"],
    "plan": ["plan", "MODEL", "--disk", "1G", "--dram", "9G", "--board", "pi5", "--memory", "1G"],
    "verify": ["verify", "MODEL"],
    "help": ["--help"],
    "run --help": ["run", "--help"],
    "version": ["--version"],
    "no command": [],
    "unknown": ["run", "MODEL", "--nonsense"],
    "no model": ["info", "/nowhere"],
    "serve --help": ["serve", "--help"],
}
STREAMS = [
    "<&-",
    ">&-",
    "2>&-",
    "<&- >&- 2>&-",
    ">/dev/full",
    "2>/dev/full",
    ">/dev/full 2>/dev/full",
    "| head -c 1",
    "</dev/null",
    "<&- 2>/dev/full",
    "0</dev/null 1<&0",
    "2</dev/null",
]


def shell(words, model, how, environment=None, text=b"hello\n"):
    words = [str(model) if word == "MODEL" else word for word in words]
    command = f'"$@" {how}; echo "code $?" >&9' if "|" not in how else f'{{ "$@"; echo "code $?" >&9; }} {how}'
    read, write = os.pipe()
    code = f"exec 9>&{write}; {command}"
    done = subprocess.run(
        ["bash", "-c", code, "sh", sys.executable, "-m", "pyllama", *words],
        input=text,
        capture_output=True,
        pass_fds=[write],
        env=os.environ | (environment or {}),
        timeout=120,
    )
    os.close(write)
    with open(read) as file:
        code = int(file.read().split()[-1])
    return code, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


FEW = (">&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full")
MATRIX = [(name, how) for name in COMMANDS for how in (STREAMS if name in ("run", "chat", "no model") else FEW)] + [
    ("run, no prompt", "<&-"),
    ("run, no prompt", "</dev/null"),
    ("info", "| head -c 1"),
]


@pytest.mark.parametrize("command, how", MATRIX)
def test_no_stream_makes_a_traceback(chat_folder, command, how):
    code, out, err = shell(COMMANDS[command], chat_folder, how)
    assert code in (0, 2) and "Traceback" not in err and "Exception" not in err, (code, err)
    if command == "run" and how in ("<&-", "2>&-", "2>/dev/full", "<&- 2>/dev/full", "</dev/null"):
        assert code == 0 and out.endswith("\n") and len(out) > 1
    if command == "run, no prompt" and how in ("<&-", "</dev/null"):
        assert code == 2 and err == f"pyllama: {run_module.NO_PROMPT}\n"
    if how == ">/dev/full" and command in ("run", "info", "verify"):
        assert code == 2 and err == "pyllama: standard output: no space left on device\n"


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "utf-16"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0"},
    ],
)
@pytest.mark.parametrize(
    "words, text",
    [
        ([*RUN[:3], "Wörter 日本 \U0001f600", *RUN[4:], "--json"], b""),
        ([*RUN[:2], "--json", "--max-tokens", "4", "--quiet"], "Wörter 日本 \U0001f600".encode()),
        (["chat", "MODEL", "--max-tokens", "2", "--quiet"], "Wörter 日本 \U0001f600\n".encode()),
    ],
)
def test_a_locale_changes_no_prompt_and_stops_no_answer(chat_folder, environment, words, text):
    code, out, err = shell(words, chat_folder, "", environment, text)
    assert code == 0 and "Traceback" not in err, err
    if words[0] == "run" and environment.get("PYTHONIOENCODING") != "utf-16":
        expected = [*RUN[:3], "Wörter 日本 \U0001f600", *RUN[4:], "--json"]
        expected = json.loads(shell(expected, chat_folder, "", text=b"")[1])
        assert json.loads(out)["token_ids"] == expected["token_ids"]


def test_bytes_that_are_no_utf8_on_the_command_line_are_refused(chat_folder):
    command = [sys.executable, "-m", "pyllama", "run", str(chat_folder), "--prompt", b"a\xff", "--quiet"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 2 and done.stderr == b"pyllama: 'a\\udcff': not UTF-8, expected text\n"


# --- text of files and pipes ---


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_the_text(encoding):
    assert streams.read_text(io.BytesIO("Erzähl mir 😀\n".encode(encoding)), "f") == "Erzähl mir 😀\n"
    assert streams.read_text(io.BytesIO(codecs.BOM_UTF16_BE + "ä".encode("utf-16-be")), "f") == "ä"


def test_only_the_first_mark_is_one():
    assert streams.read_text(io.BytesIO("\ufeff\ufeffa\ufeff".encode()), "f") == "\ufeffa\ufeff"


@pytest.mark.parametrize(
    "raw, message",
    [
        (b"a\xffb", "f: byte 1 is not UTF-8, expected text"),
        (b"\xff\xfea", "f: byte 2 is not UTF-16, expected text"),
        ("ab".encode("utf-16-le"), "f: holds NUL bytes"),
        (b"\0" * 9, "f: holds NUL bytes"),
        (b"\xed\xa0\x80", "f: byte 0 is not UTF-8"),
        (b"a" * (streams.MAX_INPUT_NBYTES + 1), "f: more than 16777216 bytes, expected a prompt"),
    ],
)
def test_what_is_no_text_is_refused(raw, message):
    with pytest.raises(RequestError) as caught:
        streams.read_text(io.BytesIO(raw), "f")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "path, message",
    [
        ("/nowhere", "/nowhere: no such file or directory"),
        ("/tmp", "/tmp: is a directory"),
        ("/dev/zero", "/dev/zero: more than"),
        ("a" * 5000, ""),
        ("/proc/self/mem", "/proc/self/mem: "),
    ],
)
def test_files_that_hold_no_prompt(chat_folder, path, message):
    code, out, err = shell(["run", "MODEL", "--quiet", "--file", path], chat_folder, "")
    assert code == 2 and err.count("\n") == 1 and err.startswith(f"pyllama: {message}") and len(err) < 1000


def test_a_prompt_may_come_through_a_named_pipe(chat_folder):
    code, out, err = shell(
        [*RUN[:2], *RUN[4:], "--json", "--file", "/dev/stdin"], chat_folder, "", text=b"\xef\xbb\xbfhello"
    )
    expected = json.loads(shell([*RUN, "--json"], chat_folder, "", text=b"")[1])
    assert code == 0 and json.loads(out)["token_ids"] == expected["token_ids"], err


def test_a_chat_through_a_pipe_drops_the_mark(chat_folder):
    plain, marked = (
        shell(COMMANDS["chat"], chat_folder, "", text=raw)[1] for raw in (b"hello\n", b"\xef\xbb\xbfhello\n")
    )
    assert plain == marked
    assert shell(COMMANDS["chat"], chat_folder, "", text=b"\xff\xfeh\0")[0] == 2


def test_a_terminal_is_shown_control_characters_and_a_pipe_gets_them(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, expected in ((Terminal(), "\\x1b[2Ja\n"), (io.StringIO(), "\x1b[2Ja\n")):
        monkeypatch.setattr(sys, "stdout", stream)
        streams.prepare()
        streams.prepare()
        print("\x1b[2Ja")
        assert stream.getvalue() == expected
