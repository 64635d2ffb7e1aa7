"""Harmony taken apart: the same however the text is cut, what goes where, and texts that are none."""

import pytest

from pyllama.generation.harmony import Harmony, HarmonySplit, is_harmony, said

THOUGHT = "<|channel|>analysis<|message|>Two and two.<|end|>"
NEXT = "<|start|>assistant"
FINAL = "<|channel|>final<|message|>It is 4.\nYes.<|return|>"
ARGUMENTS = '{"city": "Rome <|en", "days": 2}'
CALLS = {
    "channel first": f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{ARGUMENTS}<|call|>",
    "recipient first": f" to=functions.weather<|channel|>commentary json<|message|>{ARGUMENTS}<|call|>",
    "in analysis": f"<|channel|>analysis to=functions.weather code<|message|>{ARGUMENTS}<|call|>",
    "end not written": f"<|channel|>commentary to=functions.weather<|message|>{ARGUMENTS}",
}


def taken(text, size, prompt_end="<|start|>assistant"):
    """(thought, text, calls)"""
    split, pieces = Harmony(prompt_end), []
    for at in range(0, len(text), size):
        pieces += split.push(text[at : at + size])
    pieces += split.finish()
    thought, shown = ("".join(p.text for p in pieces if p.kind == kind) for kind in ("thinking", "text"))
    return thought, shown, [(p.name, p.text) for p in pieces if p.kind == "call"]


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
@pytest.mark.parametrize(
    "text, expected",
    [
        (THOUGHT + NEXT + FINAL, ("Two and two.", "It is 4.\nYes.", [])),
        (FINAL, ("", "It is 4.\nYes.", [])),
        (THOUGHT.removesuffix("<|end|>"), ("Two and two.", "", [])),  # cut
        (THOUGHT + FINAL, ("Two and two.", "It is 4.\nYes.", [])),  # a header without its beginning
        (THOUGHT.replace("<|end|>", "") + NEXT + FINAL, ("Two and two.", "It is 4.\nYes.", [])),
        (
            "<|channel|>commentary<|message|>I look.<|end|>" + NEXT + CALLS["recipient first"],
            ("", "I look.", [("weather", ARGUMENTS)]),
        ),
        ("<|channel|>commentary<|message|>One.<|end|>" + NEXT + FINAL, ("", "One.\n\nIt is 4.\nYes.", [])),
        ("<|channel|>analysis to=python code<|message|>2+2<|call|>", ("2+2", "", [])),
        ("plain text", ("", "plain text", [])),
        ('{"a": [1]}', ("", '{"a": [1]}', [])),
        ("<|channel|>fin", ("", "", [])),
        ("<|channel|>final<|message|>a <| b <|end| c", ("", "a <| b <|end| c", [])),
        ("", ("", "", [])),
        *[(THOUGHT + NEXT + call, ("Two and two.", "", [("weather", ARGUMENTS)])) for call in CALLS.values()],
    ],
)
def test_an_answer_is_taken_apart_however_it_is_cut(text, expected, size):
    assert taken(text, size) == expected


def test_text_comes_as_soon_as_it_is_certain():
    split = Harmony()
    assert split.push("<|channel|>final<|mess") == []
    assert [p.text for p in split.push("age|>It")] == ["It"]
    assert [p.text for p in split.push(" is <|")] == [" is "]
    assert [p.text for p in split.push("x")] == ["<|x"]
    assert not split.thinking
    assert [p.kind for p in split.push("<|end|><|start|>assistant<|channel|>analysis<|message|>hm")] == ["thinking"]
    assert split.thinking


@pytest.mark.parametrize(
    "prompt_end, text, expected",
    [
        ("<|end|><|start|>assistant<|channel|>final<|message|>It is", " 4.<|return|>", ("", " 4.", [])),
        ("<|start|>assistant<|channel|>analysis<|message|>Two", " and.<|end|>" + NEXT + FINAL,
         (" and.", "It is 4.\nYes.", [])),
        ("in the midst of a long text", " that goes on", ("", " that goes on", [])),
    ],
)  # fmt: skip
def test_an_answer_goes_on_where_the_prompt_stops(prompt_end, text, expected):
    assert taken(text, 3, prompt_end) == expected


def test_a_header_that_never_ends_is_shown():
    text = "<|channel|>" + "x" * 1000
    assert taken(text, 9)[1] == text


def test_what_was_said_and_the_split_of_a_view():
    assert said(THOUGHT + NEXT + FINAL) == ("Two and two.", "It is 4.\nYes.")
    split = HarmonySplit()
    assert split.push(THOUGHT + NEXT + CALLS["channel first"]) + split.finish() == [
        (True, "Two and two."),
        (False, f"weather({ARGUMENTS})"),
    ]
    assert is_harmony("<|start|>{{ x }}<|channel|><|message|>") and not is_harmony("<|start|>") and not is_harmony(None)
