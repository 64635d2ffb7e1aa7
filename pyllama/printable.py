"""Text that files, models and clients wrote -> text that steers no terminal and stays on its line."""

import re

# C0 and C1 controls, and what reorders or hides the text around it: bidirectional marks, line separators, zero-width
# characters, tags, half characters. The joiners of scripts and emoji (U+200C, U+200D) stay.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all of Cc but tab and newline

LINE_LENGTH = 900


def one_line(text: str, length: int = LINE_LENGTH) -> str:
    """A message or a name as one short line: what cannot be seen is escaped, what is too long loses its middle."""
    text = _UNSEEN.sub(_escape, text[: 2 * length] + text[2 * length :][-length:])
    if len(text) <= length:
        return text
    tail = length // 3  # where messages say what to do
    return f"{text[: length - tail - 5]} ... {text[-tail:]}"


def visible(text: str) -> str:
    """A text of several lines, for a terminal: control characters but tabs and newlines are escaped."""
    return _STEERING.sub(_escape, text.replace("\r\n", "\n"))


def _escape(match: "re.Match[str]") -> str:
    return match[0].encode("unicode_escape").decode()
