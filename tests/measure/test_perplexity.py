"""`pyllama perplexity`: figures of tiny models against their definition in plain NumPy, windows, memory, complaints."""

import io
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tiny
from conftest import BEGIN, write_byte_tokenizer, write_model

import pyllama
from pyllama.cli import main
from pyllama.cli.perplexity import _Status
from pyllama.errors import BudgetError, PyllamaError, RequestError
from pyllama.measure.perplexity import Mean, estimates, row_counts, rows_nbytes, text_tokens
from pyllama.measure.scoring import Scoring
from pyllama.measure.windows import Windows

EMULATED = os.environ.get("PYLLAMA_EMULATED") == "1"
TEXT = "hello and hello, said the band to the sand: what a hell of a land! " * 4
CONTEXT = 24
KEYS = ["model", "tokens", "context", "stride", "chunks", "positions", "perplexity", "perplexity_error", "against",
        "seconds", "passes", "bytes_read", "peak_rss_bytes"]  # fmt: skip
AGAINST_KEYS = ["model", "perplexity", "perplexity_error", "log_ratio", "log_ratio_error", "kl", "kl_error",
                "kl_largest", "same_best", "same_best_error"]  # fmt: skip


def write(folder, change=0.0, bos=True, **config):
    """A model of seeded weights, changed by so much, whose tokenizer puts BOS before a text or does not."""
    write_model(folder, template=None, **config)
    made = json.loads((folder / "config.json").read_text())
    tensors, others = (tiny.random_tensors(made, seed=seed) for seed in (1, 2))
    tensors = {name: values + change * others[name] for name, values in tensors.items()}
    tiny.write_huggingface(folder, made, tensors)
    write_byte_tokenizer(folder, None)
    if bos:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        begin = {"SpecialToken": {"id": "<|begin|>", "type_id": 0}}
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [BEGIN], "tokens": ["<|begin|>"]}},
        }
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "one": write(folder / "one"),
        "other": write(folder / "other", change=0.2),
        "no-bos": write(folder / "no-bos", bos=False),
        "short": write(folder / "short", max_position_embeddings=20),
    }


def log_softmax(logits):
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def defined(folder, text, context, stride=None):
    """(windows, scored, vocab_size) log-probabilities and (windows, scored) targets, by the definition, naively."""
    rows, targets = [], []
    with pyllama.load(folder, threads=1, context_length=context) as model:
        ids = model.tokenizer.encode(text)
        starts = range(0, len(ids) - context + 1, context) if stride is None else range(0, len(ids) - context, stride)
        for start in starts:
            window = ids[start : start + context]
            first = context // 2 if stride is None else context - stride - 1
            given = list(window)
            if stride is None and ids[0] == BEGIN:
                given[0] = BEGIN
            rows.append(log_softmax(model.forward(given))[first:-1])
            targets.append(window[first + 1 :])
    return np.array(rows), np.array(targets)


def mean_and_error(values):
    return values.mean(), values.std(ddof=1) / math.sqrt(values.size)


def last(scoring):
    with scoring:
        *_, result = scoring
    return result


@pytest.mark.parametrize("stride", [None, 1, 5, CONTEXT - 1])
@pytest.mark.parametrize("name", ["one", "no-bos"])
def test_the_perplexity_is_that_of_the_definition(models, name, stride):
    logs, targets = defined(models[name], TEXT, CONTEXT, stride)
    nll = -np.take_along_axis(logs, targets[..., None], axis=-1)[..., 0]
    mean, error = mean_and_error(nll.ravel())
    result = last(Scoring(models[name], TEXT, context=CONTEXT, stride=stride, threads=1))
    assert result.chunks == len(logs) > 3
    assert result.positions == nll.size
    assert result.perplexity == pytest.approx(math.exp(mean), rel=1e-13)
    assert result.perplexity_error == pytest.approx(math.exp(mean) * error, rel=1e-12)
    assert result.perplexity > 10 and result.against is None


def test_a_reference_is_compared_by_the_definition(models):
    q, targets = defined(models["one"], TEXT, CONTEXT)
    p, _ = defined(models["other"], TEXT, CONTEXT)
    kl = (np.exp(p) * (p - q)).sum(axis=-1).ravel()
    same = (p.argmax(axis=-1) == q.argmax(axis=-1)).ravel().astype(float)
    log_p, log_q = (np.take_along_axis(logs, targets[..., None], axis=-1).ravel() for logs in (p, q))
    found = last(Scoring(models["one"], TEXT, against=models["other"], context=CONTEXT, threads=1)).against
    assert (found.kl, found.kl_error) == pytest.approx(mean_and_error(kl), rel=1e-12)
    assert found.kl_largest == pytest.approx(kl.max(), rel=1e-12)
    assert (found.same_best, found.same_best_error) == pytest.approx(mean_and_error(same), rel=1e-12)
    assert (found.log_ratio, found.log_ratio_error) == pytest.approx(mean_and_error(log_p - log_q), rel=1e-12)
    assert found.perplexity == pytest.approx(math.exp(-log_p.mean()), rel=1e-13)
    assert 0 < found.same_best < 1 and found.kl > 0.1


def test_a_model_is_no_distance_from_itself(models):
    found = last(Scoring(models["one"], TEXT, against=models["one"], context=CONTEXT, threads=1)).against
    assert (found.kl, found.kl_error, found.kl_largest, found.log_ratio, found.log_ratio_error) == (0, 0, 0, 0, 0)
    assert (found.same_best, found.same_best_error) == (1, 0)


def test_a_chunk_is_worth_the_same_alone_and_among_others(models):
    with Scoring(models["one"], TEXT, context=CONTEXT, threads=1) as scoring:
        together = list(scoring)
        whole = Mean()
        for number, (start, end) in enumerate(scoring.windows):
            (alone,) = estimates(scoring.model, scoring._ids[start:end], Windows(CONTEXT, CONTEXT))
            assert number > 0 or alone == together[0]
            whole.add(np.full(alone.positions, math.log(alone.perplexity)))
            assert whole.exp()[0] == pytest.approx(together[number].perplexity, rel=1e-13)
        assert [e.chunks for e in together] == list(range(1, scoring.windows.count + 1))
        first_two = Windows(len(scoring._ids), CONTEXT, most=2)
        assert list(estimates(scoring.model, scoring._ids, first_two)) == together[:2]


@pytest.mark.parametrize("stride", [None, 5])
def test_the_figures_do_not_depend_on_how_many_rows_a_pass_returns(models, stride):
    with Scoring(models["one"], TEXT, against=models["other"], context=CONTEXT, stride=stride, threads=1) as scoring:
        expected = list(scoring)
        for rows in (1, 2, 7, 1000):
            again = estimates(scoring.model, scoring._ids, scoring.windows, against=scoring.against, rows=rows)
            assert list(again) == expected


def test_the_figures_do_not_depend_on_the_memory(models):
    expected = last(Scoring(models["one"], TEXT, against=models["other"], context=CONTEXT, threads=1))
    with pytest.raises(BudgetError, match=r"these models need at least \d+ MB with a context of 24") as caught:
        Scoring(models["one"], TEXT, against=models["other"], context=CONTEXT, memory="8M")
    memory = caught.value.smallest + (4 << 20)  # the tests' own process has grown a little meanwhile
    scoring = Scoring(models["one"], TEXT, against=models["other"], context=CONTEXT, memory=memory)
    read_by_load = scoring.model.bytes_read
    assert last(scoring) == expected
    assert scoring.model.bytes_read > 2 * read_by_load  # streamed


@pytest.mark.skipif(EMULATED, reason="counts the emulator's memory too")
def test_the_process_stays_within_its_memory(tmp_path):
    """A vocabulary whose rows of logits are most of what there is: 260 rows of two models take 42 MB."""
    folder = write(tmp_path / "wide", vocab_size=20_000)
    path = tmp_path / "text"
    path.write_text(TEXT * 4)
    command = [sys.executable, "-m", "pyllama", "perplexity", folder, path, "--against", folder, "--json"]
    command += ["--context", "520", "--threads", "1", "--memory"]
    refused = subprocess.run([*command, "20M"], capture_output=True, text=True)
    smallest = int(re.search(r"at least (\d+) MB", refused.stderr)[1]) * 10**6
    results = []
    for memory in (smallest, 2 * smallest):
        done = subprocess.run([*command, str(memory)], capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout))
        assert results[-1]["peak_rss_bytes"] <= memory
    assert results[0]["passes"] > results[1]["passes"]
    assert results[0]["against"] == results[1]["against"]


def test_a_text_becomes_tokens_with_bos_before_it_and_no_control_tokens_in_it(models):
    with pyllama.load(models["one"], threads=1, context_length=8) as model:
        ids = text_tokens(model.tokenizer, "a<|im_end|>").tolist()
        assert ids == [BEGIN, *model.tokenizer.encode("a<|im_end|>", add_special_tokens=False)]
        assert ids[1:] == [ord(c) for c in "a<|im_end|>"]
        assert model.tokenizer.adds_bos
    with pyllama.load(models["no-bos"], threads=1, context_length=8) as model:
        assert text_tokens(model.tokenizer, "ab").tolist() == [ord("a"), ord("b")]
        assert not model.tokenizer.adds_bos


def test_windows():
    """The numbers of llama.cpp's perplexity() and perplexity_v2()."""
    windows = Windows(1300, 512)
    assert list(windows) == [(0, 512), (512, 1024)]
    assert (windows.count, windows.first, windows.scored) == (2, 256, 255)
    assert list(Windows(1536, 512, most=1)) == [(0, 512)]
    windows = Windows(1300, 512, stride=256)
    assert list(windows) == [(0, 512), (256, 768), (512, 1024), (768, 1280)]
    assert (windows.first, windows.scored) == (255, 256)
    assert list(Windows(1280, 512, stride=256))[-1] == (512, 1024)
    assert (Windows(3, 3).first, Windows(3, 3).scored) == (1, 1)


@pytest.mark.parametrize(
    "values, expected",
    [
        ((511, 512), "511 tokens of text, expected at least 512 for a context of 512"),
        ((512, 512, 1), "512 tokens of text, expected at least 513 for a context of 512"),
        ((512, 2), "context: 2, expected at least 3"),
        ((512, 8, 8), "stride: 8, expected 1 to 7"),
        ((512, 8, 0), "stride: 0, expected 1 to 7"),
        ((512, 8, None, 0), "chunks: 0, expected at least 1"),
    ],
)
def test_windows_that_cannot_be(values, expected):
    with pytest.raises(RequestError, match=expected):
        Windows(*values)


def test_rows_are_halved_down_to_a_few():
    assert list(row_counts(Windows(512, 512))) == [255, 128, 64, 32, 16, 8]
    assert list(row_counts(Windows(3, 3))) == [1]
    assert rows_nbytes(2, 1000, 2) == 1000 * (2 * 2 * 4 + 6 * 8)


def test_a_mean_that_grows():
    random = np.random.default_rng(3)
    values = 100 + random.normal(size=1000)
    mean = Mean()
    for part in np.split(values, [1, 2, 300]):
        mean.add(part)
    assert (mean.value, mean.error) == pytest.approx(mean_and_error(values), rel=1e-13)
    one = Mean()
    one.add(np.array([800.0]))
    assert one.error == 0 and one.exp() == (math.inf, math.inf)


def test_damaged_weights_are_told(models):
    with Scoring(models["one"], TEXT, context=CONTEXT, threads=1) as scoring:
        forward = scoring.model.decoder.run

        def damaged(*args):
            logits = forward(*args)
            logits[-1, 7] = np.nan
            return logits

        scoring.model.decoder.run = damaged
        with pytest.raises(PyllamaError, match="token 7 has nan.* at position 22"):
            list(scoring)


# --- the command ---


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT + "\n")
    return path


def command(*words):
    return main(["perplexity", "--threads", "1", *map(str, words)])


def told(capsys, *words) -> str:
    assert command(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_json(models, text, capsys):
    expected = last(Scoring(models["one"], TEXT, context=CONTEXT, threads=1))
    assert command(models["one"], text, "--context", CONTEXT, "--json") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert captured.err == ""
    assert list(report) == KEYS
    assert report["perplexity"] == expected.perplexity and report["against"] is None
    assert report["chunks"] == report["passes"] == expected.chunks
    with pyllama.load(models["one"], threads=1, context_length=8) as model:
        assert report["tokens"] == len(model.tokenizer.encode(TEXT))
    assert command(models["one"], text, "--context", CONTEXT, "--json", "--against", models["other"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == KEYS and list(report["against"]) == AGAINST_KEYS
    assert report["against"]["model"] == str(models["other"])


def test_lines(models, text, capsys):
    assert command(models["one"], text, "--context", CONTEXT, "--chunks", "2", "--stride", "8") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\d+ tokens, 2 windows of 24, every 8, 16 tokens scored", first)
    assert re.fullmatch(r"perplexity +\d+\.\d{4} \+/- \d+\.\d{4}", second)
    assert command(models["one"], text, "--against", models["one"], "--context", CONTEXT) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["KL divergence    0.0000 +/- 0.0000, largest 0", "same best token  100.0000 +/- 0.0000 %"]


def test_standard_input_and_the_default_context(models, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert command(models["short"], "-", "--json") == 0
    assert json.loads(capsys.readouterr().out)["context"] == 20  # the model has no more


def test_what_a_terminal_shows_meanwhile(models):
    with Scoring(models["one"], TEXT, context=CONTEXT, chunks=3, threads=1) as scoring:
        status = _Status()
        status.begin(scoring)
        assert status.line() == "chunk 1 of 3  layer 1 of 2"
        status.estimate = next(iter(scoring))
        status.on_layer(1)
        assert re.fullmatch(
            r"chunk 2 of 3  layer 2 of 2  perplexity \d+\.\d{4} \+/- \d+\.\d{4}  \d+:\d\d left", status.line()
        )


def test_texts_that_cannot_be_scored(models, text, tmp_path, capsys):
    empty, short, binary = tmp_path / "empty", tmp_path / "short", tmp_path / "binary"
    empty.write_text("\n")
    short.write_text("some words")
    binary.write_bytes(b"text \xff\xfe text")
    assert f"{empty}: empty, expected a text" in told(capsys, models["one"], empty)
    assert "11 tokens of text, expected at least 512 for a context of 512" in told(capsys, models["one"], short)
    assert f"{binary}: byte 5 is not UTF-8, expected text" in told(capsys, models["one"], binary)
    assert f"{tmp_path / 'none'}: no such file" in told(capsys, models["one"], tmp_path / "none")
    assert "is a directory" in told(capsys, models["one"], tmp_path)
    assert "context: 30, expected at most the model's 20" in told(capsys, models["short"], text, "--context", 30)
    assert "stride: 600, expected 1 to 511" in told(capsys, models["one"], text, "--stride", 600)
    assert "threads: 0, expected 1 to 1024" in told(capsys, models["one"], text, "--threads", "0")


def test_models_whose_tokens_differ_are_not_compared(models, text, tmp_path, capsys):
    def against(folder, change=None):
        if change:
            path = folder / "tokenizer.json"
            tokenizer = json.loads(path.read_text())
            change(tokenizer)
            path.write_text(json.dumps(tokenizer))
        return told(capsys, models["one"], text, "--against", folder, "--context", CONTEXT)

    def rename(tokenizer):
        vocab = tokenizer["model"]["vocab"]
        vocab["!"], vocab["#"] = vocab["#"], vocab["!"]

    def forget_merge(tokenizer):
        del tokenizer["model"]["merges"][0]

    assert "different tokenizers: 269 and 280 tokens" in against(write(tmp_path / "size", vocab_size=280))
    assert "different tokenizers: token 33 is b'!' and b'#'" in against(write(tmp_path / "renamed"), rename)
    assert "at 0 of the text stand token 256 (b'<|begin|>') and token 262 (b'hello')" in against(models["no-bos"])
    message = against(write(tmp_path / "merges"), forget_merge)
    assert "at 1 of the text stand token 262 (b'hello') and token 104 (b'h')" in message


def test_a_model_without_a_tokenizer_is_refused(tmp_path, text, capsys):
    config = tiny.tiny_config()
    folder = tiny.write_huggingface(tmp_path / "bare", config, tiny.random_tensors(config, seed=5))
    assert "no tokenizer, so no text" in told(capsys, folder, text)


@pytest.mark.parametrize(
    "option, expected",
    [("--ppl-stride", "did you mean --stride"), ("--kl-divergence-base", "did you mean --against"),
     ("--ctx-size", "did you mean --context"), ("--n-chunks", "did you mean --chunks")],
)  # fmt: skip
def test_other_programs_words_are_known(models, text, capsys, option, expected):
    assert expected in told(capsys, models["one"], text, option, "8")
