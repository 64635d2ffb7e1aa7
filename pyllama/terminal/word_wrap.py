"""Text in pieces in, the same text out with lines that end between words, as it comes: a word that turns out not to fit
is taken back and begins the next line."""

import unicodedata
from collections.abc import Callable

TAB = 8


class WordWrap:
    """For one text that begins at the left edge.

    columns  asked for at every word: how wide the terminal is
    """

    def __init__(self, columns: Callable[[], int]):
        self._columns = columns
        self._column = 0  # where the cursor is
        self._word = ""  # on the screen and not ended
        self._word_columns = 0

    def push(self, piece: str) -> str:
        """What to write for this piece, which holds no control characters but tabs and newlines."""
        # One column stays empty: a cursor behind the last one is nowhere, and cannot be moved back from there.
        most = max(self._columns() - 1, 20)
        return "".join([self._character(character, most) for character in piece])

    def _character(self, character: str, most: int) -> str:
        if character == "\n":
            return self._new_line()
        width = columns_of(character, self._column)
        if character in " \t":
            if self._column + width > most:
                return self._new_line()
            self._column += width
            self._word, self._word_columns = "", 0
            return character
        before = ""
        if self._column + width > most:
            word, taken = self._word, self._word_columns
            back = 0 < taken < self._column
            before = f"\x1b[{taken}D\x1b[K" if back else ""
            before += self._new_line()
            if back:
                before += word
                self._word, self._word_columns, self._column = word, taken, taken
        self._column += width
        if width == 2:  # scripts of wide characters break anywhere
            self._word, self._word_columns = "", 0
        else:
            self._word += character
            self._word_columns += width
        return before + character

    def _new_line(self) -> str:
        self._column, self._word, self._word_columns = 0, "", 0
        return "\n"


def columns_of(character: str, column: int = 0) -> int:
    """How many columns a terminal gives a character."""
    if character == "\t":
        return TAB - column % TAB
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
