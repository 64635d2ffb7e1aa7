"""Lines end between words, as the text comes: what was written is played back on a screen and read there."""

import re

import pytest

from pyllama.terminal.word_wrap import WordWrap, columns_of


def screen(written: str, columns: int) -> list[str]:
    """The lines of a terminal of so many columns, which wraps by itself where nobody else does."""
    lines, column = [[]], 0
    for token in re.findall(r"\x1b\[(?:\d+D|K)|.|\n", written):
        if token.endswith("D") and token[0] == "\x1b":
            column -= int(token[2:-1])
            assert column >= 0
        elif token == "\x1b[K":
            del lines[-1][column:]
        elif token == "\n":
            lines.append([])
            column = 0
        else:
            width = columns_of(token, column)
            assert column + width <= columns, "the terminal would wrap"
            del lines[-1][column:]
            lines[-1] += [token] + [""] * (width - 1) if width else []
            column += width
    return ["".join(line).rstrip() for line in lines]


TEXT = "The quick brown fox jumps over the lazy dog, again and again.\n\n  Indented, and a-rather-long-compound word."


@pytest.mark.parametrize("columns", [21, 24, 30, 80, 200])
@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_words_stay_whole_however_the_pieces_are_cut(columns, step):
    wrap = WordWrap(lambda: columns)
    written = "".join(wrap.push(TEXT[i : i + step]) for i in range(0, len(TEXT), step))
    lines = screen(written, columns)
    assert all(len(line) < columns for line in lines)
    words = TEXT.split()
    if columns >= 30:
        assert [word for line in lines for word in line.split()] == words
    assert "".join(lines).replace(" ", "") == TEXT.replace(" ", "").replace("\n", "")
    assert "" in lines and any(line.startswith("  Indented") for line in lines)


def test_a_word_longer_than_a_line_is_cut():
    wrap = WordWrap(lambda: 21)
    assert screen(wrap.push("ab " + "x" * 50), 21) == ["ab", "x" * 20, "x" * 20, "x" * 10]


def test_wide_characters_take_two_columns_and_break_anywhere():
    wrap = WordWrap(lambda: 21)
    lines = screen(wrap.push("日本語" * 10), 21)
    assert lines[0] == "日本語" * 3 + "日" and "".join(lines) == "日本語" * 10
    assert columns_of("日") == 2 and columns_of("\u0301") == 0 and columns_of("\t", 3) == 5


def test_the_width_is_that_of_the_moment():
    width = 40
    wrap = WordWrap(lambda: width)
    first = wrap.push("some words that fit into forty\n")
    width = 25
    assert max(map(len, screen(first + wrap.push("some words that do not fit into twenty"), 40)[1:])) < 25
