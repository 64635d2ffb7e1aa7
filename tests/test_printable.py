"""What a file calls itself, on a terminal: one short line that steers nothing; and what a model writes there."""

import logging
import unicodedata

import pytest

from pyllama.errors import CheckpointError, PyllamaError
from pyllama.printable import LINE_LENGTH, one_line, visible

HOSTILE = [
    "a\x1b[31m\nb",
    "m\x1b]0;owned\x07",
    "\x9b31m",
    "a\rb",
    "a\x00b",
    "a\x7fb",
    "a\u202eb",
    "a\u2066b\u2069",
    "a\u2028b",
    "a\u200bb",
    "\ufeffa",
    "a\ud800b",
    "\U000e0041",
    "a\u061cb",
    "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\",
    "\x90q\x9c",
    "a\x0bb\x0cc",
    "\x85",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_message_is_one_line_without_controls(text):
    for shown in (one_line(text), str(PyllamaError(text)), f"{CheckpointError(text)}"):
        assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
        assert not set(shown) & set("\u202e\u2066\u2069\u200b\ufeff\u061c\U000e0041")


@pytest.mark.parametrize(
    "text", ["plain", "Wörter", "日本語", "עברית", "👩\u200d👩\u200d👧", "می\u200cخواهم", "tab is not: \\t"]
)
def test_text_of_people_stays(text):
    assert one_line(text) == text == visible(text)


@pytest.mark.parametrize("length", [0, 1, LINE_LENGTH - 1, LINE_LENGTH, LINE_LENGTH + 1, 5000, 10**7])
def test_a_long_name_loses_its_middle(length):
    shown = one_line("a" * length + "\x1b")
    assert len(shown) <= LINE_LENGTH and shown.endswith("\\x1b")
    if length + 4 <= LINE_LENGTH:
        assert shown == "a" * length + "\\x1b"
    assert len(one_line("\x1b" * length)) <= LINE_LENGTH


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a\nb\tc\r\nd", "a\nb\tc\nd"),
        ("a\rb", "a\\rb"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("\x08", "\\x08"),
    ],
)
def test_a_models_text_keeps_its_lines_on_a_terminal_and_steers_nothing(text, shown):
    assert visible(text) == shown


def test_a_line_of_the_log_is_one_line():
    from pyllama.cli.serve import _lines_of_the_log

    formatter = _lines_of_the_log()
    record = logging.LogRecord("pyllama", logging.WARNING, "", 0, "bad: %s", ("x\npyllama: forged\x1b[2J",), None)
    assert formatter.format(record) == "pyllama: bad: x\\npyllama: forged\\x1b[2J"
    try:
        raise ValueError("a\x1b[31mb")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    lines = formatter.format(record).split("\n")
    assert lines[0].startswith("pyllama: bad") and lines[1].startswith("Traceback") and "\x1b" not in "".join(lines)
