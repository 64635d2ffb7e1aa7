"""`pyllama plan --draft`: who might draft, what each would change, by rates that it names."""

import json

import conftest
import pytest
from hub_server import own_caches
from published_shapes import LLAMA_7B, QWEN_05B

from pyllama.checkpoint.outline import outline
from pyllama.cli import main, plan_draft
from pyllama.cli.plan import make_report
from pyllama.cli.plan_lines import lines
from pyllama.drafting.copies import copy_destination
from pyllama.hub.cache import hub_cache
from pyllama.planning.drafting import SOURCE, TOKENS_A_PASS, Candidate
from pyllama.planning.memory import TooSmallError, make_plan
from pyllama.planning.time import BOARDS
from pyllama.quantizing.prospect import prospect

COMMIT = "0" * 40
RATES = BOARDS["pi5"]
BIG = outline(LLAMA_7B, "BF16")
SIBLING = Candidate("sibling", "acme/small", prospect(outline(QWEN_05B, "BF16"), "q4_k_m"), hub_cache())
COPY = Candidate("copy", "a copy in q3_k_s", prospect(BIG, "q3_k_s"))
LOOKUP = Candidate("lookup", "look-up")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    own_caches(tmp_path, monkeypatch)


@pytest.fixture
def found(monkeypatch):
    """Who is found, in place of what the caches hold."""
    drafters = [SIBLING, COPY, LOOKUP]
    monkeypatch.setattr(plan_draft, "candidates", lambda asked, *_: [] if asked == "off" else drafters)
    return drafters


def report_of(budget, draft="auto"):
    return make_report(BIG, budget, asked_context=512, kv_dtype="f16", rates=lambda _: RATES, draft=draft)


def plan_of(report):
    return report["plan"], sum(report["plan"][name] for name in PARTS)


PARTS = ("interpreter", "cache", "activations", "ring", "drafter", "branches", "pinned")


def test_auto_takes_the_first_that_pays(found):
    report = report_of(2 << 30)
    assert json.loads(json.dumps(report)) == report
    draft, (plan, spent) = report["draft"], plan_of(report)
    assert draft["asked"] == "auto" and draft["rates"] == SOURCE and "borrowed" in SOURCE
    assert draft["chosen"]["name"] == "acme/small" and draft["chosen"] in draft["candidates"]
    assert (plan["drafter"], plan["branches"]) == (draft["chosen"]["drafter"], draft["chosen"]["branches"])
    assert plan["drafter"] > 300_000_000 and plan["branches"] > 0 and spent == plan["budget"] == 2 << 30
    chosen = draft["chosen"]
    assert report["forecast"]["token_s"] == chosen["token_s"] < chosen["off_s"] / 3
    assert chosen["tokens_a_pass"] == TOKENS_A_PASS["sibling"].tokens("tree", chosen["nodes"])
    assert chosen["token_s"] == pytest.approx((chosen["pass_s"] + chosen["draft_s"]) / chosen["tokens_a_pass"])
    assert [row["fits"] for row in draft["candidates"]] == [True, False, True]  # a copy of a 7B needs 3 GB
    assert report["packed"]["draft"]["chosen"]["token_s"] == report["packed"]["forecast"]["token_s"]
    assert report["packed"]["forecast"]["token_s"] < report["forecast"]["token_s"]


def test_the_text_says_who_drafts_and_by_which_rates(found):
    text = list(lines(report_of(6 << 30)))
    assert text[0].startswith("runs in 6G, reading ") and text[0].endswith(", drafted by acme/small")
    assert all(len(line) < 125 for line in text)
    at = next(i for i, line in enumerate(text) if line.startswith("draft "))
    assert "acme/small, with the same tokenizer: a tree of " in text[at] and text[at + 1].strip() == SOURCE
    assert any(line.startswith("  drafter ") for line in text) and any(line.startswith("  branches ") for line in text)
    at = next(i for i, line in enumerate(text) if line.startswith("drafted (the same text)"))
    assert [line.split("  ")[0] for line in text[at + 1 : at + 5]] == [
        "by nobody", "by acme/small", "by a copy in q3_k_s", "by look-up",
    ]  # fmt: skip
    assert "pyllama quantize" in text[at + 5] and "--draft" in text[at + 5]
    assert any(line.startswith("a token undrafted, with ") for line in text)


def test_a_copy_that_was_not_made_is_shown_and_not_taken(found):
    found[:] = [COPY, LOOKUP]
    report = report_of(8 << 30)
    copy, lookup = report["draft"]["candidates"]
    assert copy["token_s"] < lookup["token_s"] and not copy["here"] and copy["path"] is None
    assert report["draft"]["chosen"] == lookup
    assert "no smaller model that was pulled has the same tokenizer; one of the same family would draft" in list(
        lines(report)
    )
    found[:] = [COPY]
    assert report_of(8 << 30, "self")["draft"]["chosen"]["name"] == "a copy in q3_k_s"  # asked for
    assert report_of(8 << 30)["draft"]["chosen"] is None


def test_auto_goes_on_where_the_first_does_not_pay(found):
    found[:] = [Candidate("sibling", "acme/half", outline(LLAMA_7B, "BF16"), hub_cache()), *found]
    report = report_of(8 << 30)
    assert report["draft"]["chosen"]["name"] == "acme/small"
    assert [row["fits"] for row in report["draft"]["candidates"]] == [False, True, True, True]


def test_with_nothing_streamed_nobody_is_looked_for(monkeypatch):
    monkeypatch.setattr(plan_draft, "candidates", lambda *_: pytest.fail("nothing is streamed"))
    report = report_of(20 << 30)
    assert report["plan"]["streamed"] == 0
    assert report["draft"] == {"asked": "auto", "rates": SOURCE, "chosen": None, "candidates": []}
    assert not any("draft" in line for line in lines(report))


def test_a_drafter_that_would_not_pay_is_left_out(found):
    found[:] = [Candidate("sibling", "acme/half", outline(LLAMA_7B, "BF16"))]
    budget = 20 << 30
    report = report_of(budget, "acme/half")
    row = report["draft"]["candidates"][0]
    assert row["fits"] and not row["pays"] and row["token_s"] > row["off_s"]
    assert report["draft"]["chosen"] is None
    assert report["plan"]["drafter"] == 0 and report["forecast"]["token_s"] == row["off_s"]
    assert any("would not pay, and is left out" in line for line in lines(report))


def test_no_room_for_a_drafter_is_an_error_only_where_it_was_asked_for(found, monkeypatch):
    found[:] = [SIBLING]
    small = 400 << 20
    monkeypatch.setattr("pyllama.cli.plan._interpreter", lambda tokenizer: 60 << 20)
    report = report_of(small)
    assert report["draft"]["candidates"][0]["fits"] is False and report["draft"]["chosen"] is None
    assert report["plan"]["drafter"] == 0
    assert any(line.split() == ["by", "acme/small", "no", "room"] for line in lines(report))
    with pytest.raises(TooSmallError, match="this model and its drafter need at least"):
        report_of(small, "acme/small")


def test_off_predicts_what_a_plan_without_drafter_does(found):
    off = make_report(BIG, 2 << 30, asked_context=512, kv_dtype="f16", rates=lambda _: RATES)
    assert off["draft"]["asked"] == "off"
    assert report_of(2 << 30)["draft"]["chosen"]["off_s"] == pytest.approx(off["forecast"]["token_s"], rel=0.01)


# --- on files ---


def model_in(folder, **config):
    folder.mkdir(parents=True)
    return conftest.write_model(folder, **config)


def pulled(name, **config):
    folder = hub_cache() / f"models--acme--{name}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return model_in(folder / "snapshots" / COMMIT, **config)


@pytest.fixture
def target(tmp_path):
    """Five megabytes of weights: a model that is too large for whoever takes its plan's rest away."""
    return model_in(
        tmp_path / "target", hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64
    )  # fmt: skip


def planned(capsys, *words):
    arguments = ["plan", *map(str, words), "--disk", "10M", "--dram", "10G", "--context", "64", "--json", "--quiet"]
    assert main(arguments) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def tight(target, monkeypatch):
    """A --memory for which about a third of the target's weights stay, with a process of a fixed size."""
    from pyllama.checkpoint import open_checkpoint
    from pyllama.cli import plan

    monkeypatch.setattr(plan, "_interpreter", lambda tokenizer: 60 << 20)
    with open_checkpoint(target) as checkpoint:
        whole = make_plan(checkpoint, 1 << 40, context_length=64, interpreter=60 << 20)
    return str(whole.besides + whole.weights // 3)


def test_look_up_streams_and_takes_no_model(target, tight, capsys):
    draft = planned(capsys, target, "--memory", tight, "--draft", "lookup")["draft"]
    (row,) = draft["candidates"]
    assert (row["kind"], row["drafter"], row["path"]) == ("lookup", 0, None) and row["here"]


def test_auto_looks_among_what_was_pulled_and_beside_the_model(target, tight, capsys):
    pulled("small", hidden_size=32, intermediate_size=64)
    pulled("other", hidden_size=32, intermediate_size=64, vocab_size=1000)
    draft = planned(capsys, target, "--memory", tight)["draft"]
    assert [row["name"] for row in draft["candidates"]] == ["acme/small", "a copy in q3_k_s", "look-up"]
    assert [row["here"] for row in draft["candidates"]] == [True, False, True]
    assert main(["quantize", str(target), "--draft", "--quiet"]) == 0
    place = copy_destination(target)
    assert capsys.readouterr().out == f"{place}\n"
    for asked, memory in (("auto", tight), ("self", "1G")):
        draft = planned(capsys, target, "--memory", memory, "--draft", asked)["draft"]
        copy = next(row for row in draft["candidates"] if row["kind"] == "copy")
        assert draft["asked"] == asked and copy["here"] and copy["path"] == str(place)


def test_a_named_drafter_must_have_the_same_tokenizer(target, tmp_path, capsys):
    small = model_in(tmp_path / "small", hidden_size=32, intermediate_size=64)
    draft = planned(capsys, target, "--memory", "1G", "--draft", small)["draft"]
    (row,) = draft["candidates"]
    assert (row["name"], row["kind"], row["path"], row["shape"]) == ("small", "sibling", str(small), "chain")
    tokenizer = json.loads((small / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["!"], vocab["#"] = vocab["#"], vocab["!"]
    (small / "tokenizer.json").write_text(json.dumps(tokenizer))
    words = ["plan", str(target), "--memory", "1G", "--board", "pi5", "--draft"]
    assert main([*words, str(small)]) == 2
    error = capsys.readouterr().err
    assert "another vocabulary: its token 33 is '#'" in error and error.count("\n") == 1
    assert main([*words, "nobody"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pyllama: nobody: no such file or folder") and error.count("\n") == 1
