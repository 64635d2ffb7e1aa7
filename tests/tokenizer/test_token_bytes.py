"""Strings of a file read together are those read one by one, whatever bytes they are."""

import itertools

import numpy as np
import pytest

from pyllama.checkpoint.string_list import PREFIX, StringList
from pyllama.errors import TokenizerError
from pyllama.tokenizer import token_bytes

CASES = {
    "none": [],
    "one that is empty": [b""],
    "text": [b"a", "\u0120the".encode(), b"", "\U0001f999 \u00e9".encode(), b"end"],
    "no UTF-8": [b"a", b"\xff\xfe", b"\xc3", b"b"],
    "a character in two strings": [b"x\xc3", b"\xa9y", b"z"],
    "more than a chunk": [b"%d\xc3\xa9" % i for i in range(token_bytes.CHUNK + 3)],
    "a bad one behind a chunk": [b"a"] * token_bytes.CHUNK + [b"\x80", b"b"],
}


def stored(strings: list[bytes]) -> StringList:
    blob = b"".join(len(string).to_bytes(PREFIX, "little") + string for string in strings)
    ends = itertools.accumulate((PREFIX + len(string) for string in strings), initial=PREFIX)
    return StringList(blob, np.array(list(ends), np.uint32))


@pytest.mark.parametrize("strings", CASES.values(), ids=list(CASES))
def test_strings_of_a_file_are_those_read_one_by_one(strings):
    together = list(token_bytes.packed(stored(strings), 1 << 20, "here"))
    apart = list(token_bytes.packed(list(stored(strings)), 1 << 20, "here"))
    assert [chunk.text for chunk in together] == [chunk.text for chunk in apart]
    assert [chunk.lengths.tolist() for chunk in together] == [chunk.lengths.tolist() for chunk in apart]


def test_too_long_and_too_many_are_refused_alike():
    long = stored([b"a", b"b" * (token_bytes.MAX_TOKEN_LENGTH + 1)])
    for strings in (long, list(long)):
        with pytest.raises(TokenizerError, match=rf"here: a string of {token_bytes.MAX_TOKEN_LENGTH + 1} characters"):
            list(token_bytes.packed(strings, 10, "here"))
    for strings in (stored([b"a"] * 3), ["a"] * 3):
        with pytest.raises(TokenizerError, match="here: more than 2 strings"):
            list(token_bytes.packed(strings, 2, "here"))
