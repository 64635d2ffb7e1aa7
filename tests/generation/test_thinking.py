"""What a model thinks is told from what it says, wherever the pieces are cut."""

import pytest

from pyllama.generation.thinking import ThinkingSplit, begins_in_thought


def split(pieces, **how):
    """(thought, said)"""
    splitter = ThinkingSplit(**how)
    parts = [part for piece in pieces for part in splitter.push(piece)] + splitter.finish()
    return tuple("".join(text for thinking, text in parts if thinking is which) for which in (True, False))


CASES = [
    ("<think>\nhm, 2 < 3\n</think>\n\nyes", False, ("hm, 2 < 3", "yes")),
    ("\n<think></think>yes\n\n", False, ("", "yes\n\n")),
    ("hm\n</thin\n</think>\nyes <think>", True, ("hm\n</thin", "yes <think>")),
    ("<thin ice", False, ("", "<thin ice")),
    ("\n\nplain </think>\n", False, ("", "\n\nplain </think>\n")),
    ("<think>cut off", False, ("cut off", "")),
    ("<thi", False, ("", "<thi")),
    ("", False, ("", "")),
]


@pytest.mark.parametrize("text, begun, expected", CASES)
def test_the_parts_do_not_depend_on_the_cuts(text, begun, expected):
    assert split([text], begun=begun) == split(text, begun=begun) == expected
    for at in range(len(text)):
        assert split([text[:at], text[at:]], begun=begun) == expected


def test_what_is_sure_is_not_held_back():
    splitter = ThinkingSplit()
    assert splitter.push("Hel") == [(False, "Hel")]
    splitter = ThinkingSplit(begun=True)
    assert splitter.push("so <") == [(True, "so")]
    assert splitter.push("3") == [(True, " <3")]


def test_templates_that_begin_the_thought():
    assert begins_in_thought("<|im_start|>assistant\n<think>\n")
    assert not begins_in_thought("<|im_start|>assistant\n<think>\n\n</think>\n\n")
