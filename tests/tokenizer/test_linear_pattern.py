"""Patterns of tokenizer files: the matches of a backtracking engine,
in time that no pattern and no text can blow up."""

import itertools
import random
import time
import tracemalloc

import pytest
from pattern_reference import compile_with_re

from pyllama.errors import TokenizerError
from pyllama.tokenizer import linear_pattern
from pyllama.tokenizer.linear_pattern import LinearPattern
from pyllama.tokenizer.pattern import GPT2, LLAMA3, QWEN2, TEKKEN, compile_pattern, split_isolated

_CASED = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_SMALL = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# As they stand in the tokenizer.json of models, and in tiktoken's and llama.cpp's tables.
PUBLISHED = {
    "gpt-2": GPT2,
    "llama-3": LLAMA3,
    "qwen2": QWEN2,
    "tekken": TEKKEN,
    "cl100k": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    "cl100k, possessive": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?[{_CASED}]*[{_SMALL}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{_CASED}]+[{_SMALL}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "deepseek-v3": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "deepseek-llm, spaces": r"\s+$",
    "deepseek, scripts": "[一-龥ࠀ-一가-퟿]+",
    "deepseek, signs": r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    "falcon": r"[\p{P}\$\+<=>\^~\|`]+",
    "falcon, digits": r"[0-9][0-9][0-9]",
    "bloom": r" ?[^(\s|.,!?…。，、।۔،)]+",
    "qwen3.5": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "thousands": r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
    "superbpe": r"(?=(\d{3})+(?!\d))".replace(r"\d", "[0-9]"),
    "jais-2": r" ?\p{L}+|" + "".join(rf"\s{{{n}}}(?!\S)|" for n in (64, 32, 16, 8, 4)) + r"\s{1,2}(?!\S)|\s{1}",
    "exaone-moe": r"[^\r\n\p{L}\p{N}]?\p{L}\p{M}*(?: ?\p{L}\p{M}*)*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|" + _TAIL,
    "lines": r"[^\n]+|[\n]+",
    "exact": r"<sentinel:[0-9]+>|IMGIMG[A-I]{1,4}Z|[\t\n]|    |  ",
    "lazy": r"a+?|\s+?|[^\n]{2,3}?",
}
LETTERS = "aAbBsSkKſK \t\n\r  \u2003\u3000\x1c\x85'’.,!/-_#$%123٣½éÉeßǅʰªあ漢字한글ࠀ\u0301\u0903😀\u200d\ud7ff\ufffd"
WORDS = ["'s", "'LL", "'Ve", "don't", "    ", "\r\n", "\n\n\n", "1234567", "HelloWorld", "naïve", "<sentinel:12>", "()"]


def texts(number, seed):
    chooser = random.Random(seed)
    for _ in range(number):
        yield "".join(
            chooser.choice(WORDS)
            if chooser.random() < 0.2
            else chooser.choice(LETTERS) * chooser.choice([1, 1, 1, 2, 7])
            for _ in range(chooser.randrange(40))
        )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_patterns_match_as_before(name):
    pattern, reference = LinearPattern(PUBLISHED[name], name), compile_with_re(PUBLISHED[name])
    for text in texts(400, name):
        expected = [match.span() for match in reference.finditer(text) if match.group()]
        assert [span for span in pattern.spans(text) if span[0] < span[1]] == expected, repr(text)
        assert "".join(split_isolated(pattern, text)) == text


def random_pattern(chooser, depth=0):
    """A pattern of a few characters, so that its parts get in each other's way."""
    kind = chooser.randrange(9) if depth < 4 else 0
    if kind <= 2:
        return chooser.choice(["a", "b", "[ab]", "[^a]", "[a-c]", "c", r"\s", r"\S", r"\p{N}", "(?i:a)"])
    if kind == 3:
        return "".join(random_pattern(chooser, depth + 1) for _ in range(chooser.randint(1, 3)))
    if kind == 4:
        return "(?:" + "|".join(random_pattern(chooser, depth + 1) for _ in range(chooser.randint(2, 3))) + ")"
    if kind == 5:
        return f"(?{chooser.choice('=!')}{random_pattern(chooser, depth + 1)})"
    if kind == 6:
        return random_pattern(chooser, depth + 1) + chooser.choice(["$", "(?!b)", "(?=[ab])"])
    if kind == 7:
        return chooser.choice(["a", "[ab]", r"\s"]) + chooser.choice(["?+", "*+", "++"])
    return f"(?:{random_pattern(chooser, depth + 1)})" + chooser.choice(
        ["?", "*", "+", "??", "*?", "+?", "{2}", "{0,2}", "{1,3}", "{2,}", "{1,2}?"]
    )


def test_random_patterns_match_as_a_backtracking_engine_does():
    """But where an empty way round a loop or an empty match comes in: there engines differ among themselves."""
    import re

    chooser = random.Random(4)
    compared = 0
    for _ in range(4000):
        text_of = random_pattern(chooser)
        try:
            pattern, reference = LinearPattern(text_of, "x"), compile_with_re(text_of)
        except TokenizerError as error:
            assert "possessive" in str(error) or "kinds" in str(error), text_of
            continue
        if any(body.match("") for body in loops_of(text_of)) or reference.match(""):
            continue
        for _ in range(12):
            text = "".join(chooser.choice("aabbc A1\n") for _ in range(chooser.randrange(14)))
            try:
                expected = [match.span() for match in reference.finditer(text)]
            except re.error:
                continue
            if any(start == stop for start, stop in expected):
                continue
            compared += 1
            assert list(pattern.spans(text)) == expected, (text_of, text)
    assert compared > 8000


def loops_of(pattern):
    """The bodies of the groups in it, compiled."""
    import re

    found, stack = [], []
    for at, character in enumerate(pattern):
        if character == "(":
            stack.append(at)
        elif character == ")":
            body = pattern[stack.pop() : at + 1]
            if not body.startswith(("(?=", "(?!")):
                found.append(re.compile(compile_with_re(body).pattern))
    return found


HOSTILE = [
    r"(?:a|a)*b", r"(?:a+)+$", r"(?:(?:a*)*)*b", r"(?:a|aa)+$", r"(?:a|a?)+$", r"(?:a*)*$", r"(?:[a-z]+\s?)*x",
    r"(?:a|b|ab)*c", r"(a?){40}a{40}", r"(?:a?a?a?a?a?a?a?a?)*x", r"a*a*a*a*a*a*a*a*b", r"\s+$", r"\s*x",
    r"a+b|a+c|a+d",
    r"(?=a*b)a", r"(?!a*b)c", r"(?=(?:a|a)*b)a|(?=(?:aa?)*c)a", r"(?:(?=a*b)a)*c",
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
    r"(?:\p{L}|\p{Lu}|\p{Ll})*\p{N}", r"(?:a{1,50}){1,50}b", r"(?:a|b)*a(?:a|b){12}c", r"(?i:a|A)*x",
    r"(?:.|\n)*x".replace(".", "[^\n]"),
    r"(?:a*?)*?b", r"(?:a+?)+?$", r"(?:\s|\s\s)*x", r"(?:a|a|a|a|a|a|a|a)*\S{3}x", r"[ab]*[bc]*[ca]*x",
]  # fmt: skip


@pytest.mark.parametrize("pattern", HOSTILE)
@pytest.mark.parametrize(
    "text", ["a" * 40 + "x", "a" * 20_000 + "x", " " * 20_000 + "y", "ab" * 9000, "1" * 20_000 + "a"]
)
def test_hostile_patterns_take_no_time(pattern, text):
    """Or are refused: by a count of steps, not by a clock."""
    started = time.process_time()
    try:
        compiled = LinearPattern(pattern, "x")
        assert "".join(split_isolated(compiled, text)) == text
    except TokenizerError as error:
        assert "steps a character" in str(error) and "\n" not in str(error)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("pattern", [pattern for pattern in HOSTILE[:8]])
def test_what_backtracks_for_ever_elsewhere_matches_here(pattern):
    text = "a" * 24 + "!"
    expected = [match.group() for match in compile_with_re(pattern).finditer(text[-9:]) if match.group()]
    assert [piece for piece in LinearPattern(pattern, "x").findall(text[-9:]) if piece] == expected
    LinearPattern(pattern, "x").findall(text)


@pytest.mark.parametrize(
    "pattern",
    [
        "(?:a{1000}){1000}", "a{4096}{4096}{4096}", "(?:(?:(?:){4096}){4096}){4096}", "(?:(?:|){999}){999}", "a{9999}",
        "(?:a?){4096}{9}", "(?:[ab]{0,4000}){0,4000}", "(" * 3000, "(" * 60 + "a" + ")" * 60, "a" * 5000,
        "[" + "a-" * 3000,
        "(?:" * 500 + "a" + ")*" * 500, "|" * 4097, "".join(f"(?=a{'b' * n}c)" for n in range(9)),
        "(?<=a)b", r"\p{Greek}", "(", ")", "a{99999}", "(?P<x>a)", "[[:alpha:]]", r"\bx", "a**", "*a", "|*",
        "(?!a)*", "[]a]",
        "[b-a]", r"[a-\s]", "[a", "(?:ab)++", "(?:a|bc)*+x", "a{3,2}", r"\k<a>", "(?#x)", ".", "^a", r"\d",
        "a{1,3}+", "\\",
    ],
)  # fmt: skip
def test_what_costs_much_to_compile_or_is_not_understood_is_refused_at_once(pattern):
    started = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(TokenizerError) as caught:
            LinearPattern(pattern, "tokenizer.json")
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 2
    assert str(caught.value).startswith("tokenizer.json: pattern") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("pattern", [LLAMA3, TEKKEN, "(?:a|b)*a(?:a|b){12}c", "(?:a{1,50}){1,50}b"])
def test_memory_is_bounded_whatever_the_text(pattern):
    chooser = random.Random(3)
    compiled = LinearPattern(pattern, "x")
    text = "".join(chooser.choice("ab") for _ in range(30_000)) + "".join(map(chr, range(0x400, 0xD800)))
    tracemalloc.start()
    try:
        compiled.findall(text)
    except TokenizerError as error:
        assert "steps a character" in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 60_000_000


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("run", [" ", "\n", "a", "A", "1", ".", "漢", "'", "\u0301", " a", "A1", "\r\n ", " \n"])
def test_published_patterns_take_linear_time_on_runs(name, run):
    """16 times the text, never refused, in far less than 256 times the time."""
    compiled = LinearPattern(PUBLISHED[name], "x")
    times = []
    for count in (1000, 16_000):
        text = run * count + "x"
        compiled.findall(text[:50])
        started = time.process_time()
        compiled.findall(text)
        times.append(time.process_time() - started)
    assert times[1] < 80 * max(times[0], 0.002), times


def test_a_budget_that_is_used_up_is_one_line(monkeypatch):
    monkeypatch.setattr(linear_pattern, "_STEPS", 10)
    with pytest.raises(TokenizerError, match="x: pattern 'a.a.b': more than 48 steps a character"):
        LinearPattern("a*a*b", "x").findall("")


def test_two_threads_may_share_a_pattern():
    from concurrent.futures import ThreadPoolExecutor

    compiled = LinearPattern(LLAMA3, "x")
    many = list(texts(60, "threads"))
    expected = [LinearPattern(LLAMA3, "x").findall(text) for text in many]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            assert list(pool.map(compiled.findall, many)) == expected


def test_other_threads_run_while_a_long_text_is_split():
    """One call into C for a whole text would hold the interpreter's lock, and every connection with it."""
    import threading

    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.005)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        compile_pattern(LLAMA3, "x").findall("Some words, and 12345 more.\n" * 20_000)
    finally:
        done.set()
        thread.join()
    assert max(b - a for a, b in itertools.pairwise(ticks)) < 0.5
