"""What a model thinks is told from what it says, wherever the pieces are cut."""

import pytest

from pyllama.generation.thinking import CHANNEL, THINK, ThinkingSplit, begins_in_thought, marks_of


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


@pytest.mark.parametrize("text, begun, expected", CASES)
def test_gemma_thinks_in_a_channel(text, begun, expected):
    def of_channel(text):
        return text.replace("<think>", CHANNEL.opening + "\n").replace("</think>", CHANNEL.closing)

    expected = tuple(map(of_channel, expected))
    if "<thi" in text and "<think>" not in text:
        return  # a part of another mark
    for size in (1, 2, 5, 1000):
        pieces = [of_channel(text)[at : at + size] for at in range(0, len(of_channel(text)), size)]
        assert split(pieces, begun=begun, marks=CHANNEL) == expected


def test_a_template_tells_the_marks():
    assert marks_of("... '<|channel>thought\n' ...") is CHANNEL and CHANNEL.control
    assert marks_of("<think>") is marks_of(None) is THINK and not THINK.control
    assert begins_in_thought("<|turn>model\n<|channel>thought\n", CHANNEL)
    assert not begins_in_thought("<|turn>model\n<|channel>thought\n<channel|>", CHANNEL)


def test_what_is_sure_is_not_held_back():
    splitter = ThinkingSplit()
    assert splitter.push("Hel") == [(False, "Hel")]
    splitter = ThinkingSplit(begun=True)
    assert splitter.push("so <") == [(True, "so")]
    assert splitter.push("3") == [(True, " <3")]


def test_templates_that_begin_the_thought():
    assert begins_in_thought("<|im_start|>assistant\n<think>\n")
    assert not begins_in_thought("<|im_start|>assistant\n<think>\n\n</think>\n\n")
