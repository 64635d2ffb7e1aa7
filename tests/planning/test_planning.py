"""`pyllama plan`: predictions from config, index and rates alone, for models that are here and that are not."""

import dataclasses
import json
import os
import re

import pytest
import tiny
from published_shapes import LLAMA_7B, LLAMA_13B, LLAMA_70B

from pyllama import _kernels
from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.huggingface_config import huggingface_config
from pyllama.checkpoint.huggingface_outline import outline_huggingface
from pyllama.checkpoint.outline import outline, stored_nbytes
from pyllama.cli import main
from pyllama.cli.plan import make_report
from pyllama.cli.plan_lines import duration, format_rate, lines, size
from pyllama.errors import BudgetError, CheckpointError, UnsupportedError
from pyllama.measure import disk
from pyllama.measure import rates as measuring
from pyllama.planning import time as forecasting
from pyllama.planning.memory import TooSmallError, make_plan
from pyllama.planning.time import BOARDS, OF_DISK, OF_DRAM, Rates, enough, forecast, packed, what_if

RATES = Rates(disk_gb_s=0.5, dram_gb_s=10, gflop_s=50, pack_gb_s=2)
GIVEN = ["--disk", "450M", "--dram", "10.5G"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = tiny.tiny_config(torch_dtype="bfloat16")
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny.write_huggingface(path, config, tiny.random_tensors(config, seed=3), dtype="BF16", shards=2)
    return path


# --- a model without its files ---


def test_config_and_index_plan_as_the_files_do(folder, tmp_path):
    for name in ("config.json", "model.safetensors.index.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    drawn = outline_huggingface(tmp_path)
    with open_checkpoint(folder) as checkpoint:
        assert drawn.nbytes == checkpoint.nbytes == stored_nbytes(checkpoint)
        assert {n: (t.dtype, t.shape) for n, t in drawn.tensors.items()} == {
            n: (t.dtype, t.shape) for n, t in checkpoint.tensors.items()
        }
        for budget in (90 << 20, 200 << 20):
            assert make_plan(drawn, budget, context_length=64) == make_plan(checkpoint, budget, context_length=64)


@pytest.mark.parametrize("width, said, dtype", [(2, "float32", "BF16"), (2, "float16", "F16"), (4, "bfloat16", "F32")])
def test_the_index_and_not_the_config_tells_how_wide_a_weight_is(tmp_path, width, said, dtype):
    config = tiny.tiny_config(hidden_size=96, intermediate_size=640, vocab_size=1000, torch_dtype=said)
    shapes = tiny.tensor_shapes(config)
    weights = sum(s[0] * (s[1] if len(s) == 2 else 1) for s in shapes.values())
    (tmp_path / "config.json").write_text(json.dumps(config))
    index = {"metadata": {"total_size": width * weights}, "weight_map": dict.fromkeys(shapes, "a.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert {t.dtype for t in outline_huggingface(tmp_path).tensors.values()} == {dtype}


def test_an_index_that_contradicts_the_config_is_refused(tmp_path):
    config = tiny.tiny_config(hidden_size=96, intermediate_size=640, vocab_size=1000, num_hidden_layers=3)
    shapes = tiny.tensor_shapes(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    index = {"metadata": {"total_size": 10_000_000_000}, "weight_map": dict.fromkeys(shapes, "a.safetensors")}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(UnsupportedError, match="10000000000 bytes for .* weights"):
        outline_huggingface(tmp_path)
    del index["weight_map"]["model.layers.2.mlp.up_proj.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="model.layers.2.mlp.up_proj.weight: not in"):
        outline_huggingface(tmp_path)


# --- the prediction ---


def test_the_largest_of_disk_memory_and_compute_is_predicted():
    model = outline(LLAMA_7B, "BF16")
    plan = make_plan(model, 2 << 30, context_length=1024)
    cache = 512 * 2 * 32 * 32 * 128 * 2  # half the context, keys and values of 32 layers in float16
    disk_s = plan.streamed / (0.5e9 * OF_DISK)
    memory_s = (plan.pinned + 2 * plan.streamed + cache) / (10e9 * OF_DRAM)
    predicted = forecast(model, plan, RATES)
    assert predicted.token_s == pytest.approx(max(disk_s, memory_s)) and predicted.bound["token"] == "disk"
    assert predicted.first_s == pytest.approx(plan.stored / (0.5e9 * OF_DISK))
    fast = dataclasses.replace(RATES, disk_gb_s=50)
    assert forecast(model, plan, fast).token_s == pytest.approx(memory_s)
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    attention = 32 * 4 * 4096 * 256
    flop = 512 * (2 * matrices + attention) + 2 * 32000 * 4096
    assert forecast(model, plan, RATES).prompt_s[512] == pytest.approx(flop / 50e9)
    assert predicted.bound["prompt_512"] == "compute" and predicted.bound["prompt_64"] == "disk"
    assert predicted.prompt_s[64] == pytest.approx(disk_s)


def test_a_prompt_longer_than_a_pass_costs_as_many_passes_as_it_needs():
    model = outline(LLAMA_7B, "BF16")
    plan = make_plan(model, 200 << 20, context_length=128, interpreter=45 << 20)
    assert plan.max_pass_tokens < 128
    slow = dataclasses.replace(RATES, disk_gb_s=0.01)
    passes = -(-512 // plan.max_pass_tokens)
    assert forecast(model, plan, slow).prompt_s[512] == pytest.approx(passes * plan.streamed / (0.01e9 * OF_DISK))


def test_with_all_in_memory_the_disk_no_longer_matters_after_the_first_pass():
    model = outline(LLAMA_7B, "BF16")
    plan = make_plan(model, 16 << 30, context_length=1024)
    slow = dataclasses.replace(RATES, disk_gb_s=0.04)
    assert plan.streamed == 0
    assert forecast(model, plan, slow).token_s == forecast(model, plan, RATES).token_s
    assert forecast(model, plan, slow).bound["token"] == "memory"
    assert forecast(model, plan, slow).first_s > 300


def test_packing_what_stays_may_take_longer_than_reading_it():
    model = outline(LLAMA_7B, "BF16")
    plan = make_plan(model, 16 << 30, context_length=1024)
    fast = dataclasses.replace(RATES, disk_gb_s=50, pack_gb_s=0.5)
    assert forecast(model, plan, fast).bound["first"] == "packing"
    streamed = make_plan(packed(model), 16 << 30, context_length=1024)  # packed already
    assert forecast(packed(model), streamed, fast).bound["first"] != "packing"


def test_packing_saves_a_quarter_of_what_is_read_and_nothing_packs_twice():
    model = outline(LLAMA_7B, "BF16")
    smaller = packed(model)
    assert 0.745 < stored_nbytes(smaller) / stored_nbytes(model) < 0.755
    assert packed(smaller) is None and packed(outline(LLAMA_7B, "F32")) is None
    plain, tight = (make_plan(m, 2 << 30, context_length=256) for m in (model, smaller))
    assert tight.weights == pytest.approx(plain.weights, rel=0.002)  # kept in 12 bits either way
    assert tight.streamed == pytest.approx(0.75 * plain.streamed, rel=0.01)


def test_more_memory_and_faster_disks_never_cost_time():
    table = what_if(outline(LLAMA_7B, "BF16"), 2 << 30, RATES, context_length=256)
    assert table.budgets[:3] == (2 << 30, 4 << 30, 8 << 30) and len(table.budgets) == 4
    for row in table.token_s:
        assert list(row) == sorted(row, reverse=True)
    by_rate = [row[0] for _, row in sorted(zip((rate for _, rate in table.disks), table.token_s, strict=True))]
    assert by_rate == sorted(by_rate, reverse=True)
    assert len({row[-1] for row in table.token_s}) == 1  # all in memory: every disk is as good


def test_enough_memory_is_enough_and_a_byte_less_is_not():
    model = outline(LLAMA_7B, "BF16")
    most = enough(model, context_length=256)
    assert make_plan(model, most, context_length=256).streamed == 0
    assert make_plan(model, most - 1, context_length=256).streamed > 0


@pytest.mark.parametrize(
    "config, context, megabytes",
    [(LLAMA_7B, 128, 250), (LLAMA_7B, 512, 450), (LLAMA_13B, 128, 300), (LLAMA_13B, 512, 650), (LLAMA_70B, 128, 300),
     (LLAMA_70B, 512, 512)],
)  # fmt: skip
def test_large_models_are_planned_into_what_small_boards_have(config, context, megabytes):
    """The table of README.md; half of what the ancestor needed, or less."""
    plan = make_plan(outline(config, "BF16"), megabytes * 1_000_000, context_length=context, interpreter=45 << 20)
    assert plan.max_pass_tokens >= 64 and plan.pinned >= 0


# --- rates ---


def test_rates_are_measured_on_the_largest_model_at_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "LEAST_NBYTES", 1 << 20)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    quick = {"nbytes": 2 << 20, "seconds": 0.02}
    file = tmp_path / "model.safetensors"
    file.write_bytes(os.urandom(2 << 20))
    rates = measuring.measure([file], **quick)
    assert rates.disk_gb_s > 0 and rates.dram_gb_s > 0 and rates.gflop_s > 0 and rates.pack_gb_s > 0
    assert "the model's largest file" in rates.source["disk"]
    assert "a temporary file of 2 MB" in measuring.measure([], **quick).source["disk"]
    assert not list((tmp_path / "hub").glob("*")) and not list(tmp_path.glob("pyllama-bench-*"))
    (tmp_path / "hub").mkdir()
    file.rename(tmp_path / "hub" / "blob")
    assert "the largest file in the model cache" in measuring.measure([], **quick).source["disk"]
    given = measuring.measure([], disk_gb_s=0.25, dram_gb_s=3.0, **quick)
    assert (given.disk_gb_s, given.dram_gb_s) == (0.25, 3.0) and given.source["disk"] == "as given"


def test_rates_are_those_of_the_threads_that_a_model_is_loaded_with(monkeypatch):
    monkeypatch.setattr(measuring, "default_threads", lambda: 3)
    threads = _kernels.num_threads()
    try:
        source = measuring.measure([], disk_gb_s=1.0, nbytes=2 << 20, seconds=0.02).source
        assert "3 threads" in source["dram"] and "3 threads" in source["compute"]
    finally:
        _kernels.set_num_threads(threads)


def test_boards_are_said_to_be_a_model_of_one():
    for name, rates in BOARDS.items():
        assert all("not measured" in rates.source[key] for key in ("disk", "dram", "compute")), name


# --- the command ---


def test_every_board_can_be_asked_for(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    assert "--board {" + ",".join(BOARDS) + "}" in " ".join(capsys.readouterr().out.split())


def plan_json(capsys, *args) -> dict:
    assert main(["plan", *map(str, args), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.count("\n") == 1
    return json.loads(captured.out)


def test_plan_json_of_a_model_that_is_here(folder, capsys):
    report = plan_json(capsys, folder, "--memory", "1G", "--context", "64", *GIVEN)
    names = [
        "model",
        "context",
        "plan",
        "enough_memory",
        "rates",
        "forecast",
        "what_if",
        "packed",
        "quantized",
        "draft",
    ]
    assert list(report) == names
    with open_checkpoint(folder) as checkpoint:
        assert report["model"]["nbytes"] == checkpoint.nbytes and report["model"]["here"]
    plan = report["plan"]
    assert plan["budget"] == 1 << 30 and plan["context_length"] == 64 and plan["streamed"] == 0
    parts = (plan[name] for name in ("interpreter", "cache", "activations", "ring", "pinned"))
    assert sum(parts) <= plan["budget"]
    assert (report["rates"]["disk_gb_s"], report["rates"]["dram_gb_s"]) == (0.45, 10.5)
    assert set(report["forecast"]["prompt_s"]) == {"64", "512"}


def test_plan_prints_a_table(folder, capsys):
    assert main(["plan", str(folder), "--memory", "1G", "--board", "pi5"]) == 0
    text = capsys.readouterr().out
    for words in ("LlamaForCausalLM", "passes of", "nothing is read after the first pass", "a prompt of 512",
                  "NVMe Gen3 x1, the design's figure for a Raspberry Pi 5, not measured",
                  "after pyllama pack"):  # fmt: skip
        assert words in text
    assert all(len(line) < 120 for line in text.splitlines())


def test_a_budget_that_streams_shows_what_would_help():
    def rates(files):
        assert files == []
        return BOARDS["pi5"]

    report = make_report(outline(LLAMA_7B, "BF16"), 2 << 30, asked_context=256, kv_dtype="f16", rates=rates)
    text = list(lines(report))
    assert json.loads(json.dumps(report)) == report
    assert re.fullmatch(
        r"runs in 2G, reading \d+% of it from disk for every token: .* a token, .* min for 100", text[0]
    )
    assert [row["type"] for row in report["quantized"]] == ["q8_0", "q4_k_m"]
    assert report["quantized"][1]["nbytes"] < report["quantized"][0]["nbytes"] < report["model"]["nbytes"] * 0.54
    assert report["quantized"][1]["token_s"] < report["forecast"]["token_s"] / 3
    assert any(line.startswith("quantize --type q4_k_m ") for line in text)
    assert any(line.startswith("fits           yes, reading") for line in text)
    assert any("to fetch" in line for line in text)
    for title in ("a token, with", "a token, packed"):
        (at,) = (i for i, line in enumerate(text) if line.startswith(title))
        assert text[at].split()[3:] == ["2G", "4G", "8G", size(report["enough_memory"])]
        assert [line.split("  ")[0] for line in text[at + 1 : at + 6]] == [
            "this disk 850 MB/s", "SD card 90 MB/s", "USB3 SSD 400 MB/s", "NVMe Gen2 x1 450 MB/s",
            "NVMe Gen3 x1 850 MB/s",
        ]  # fmt: skip


@pytest.mark.parametrize(
    "args, message",
    [
        (["--memory", "5M"], "this model needs at least"),
        (["--board", "pi5"], "--board: needs --memory"),
        (["--disk", "fast"], "--disk: got 'fast'"),
        (["--dram", "0"], "--dram: got '0'"),
        (["--context", "999999"], "context_length: 999999, expected 1 to 512"),
        (["--memory", "lots"], "memory: got 'lots'"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(folder, capsys, args, message):
    assert main(["plan", str(folder), *args]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err


def test_a_model_that_was_not_pulled_costs_config_and_index(tmp_path, monkeypatch, capsys):
    from hub_server import Repo, own_caches, serving

    own_caches(tmp_path, monkeypatch)
    (tmp_path / "hf").mkdir()
    config = tiny.tiny_config(hidden_size=96, intermediate_size=640, vocab_size=1000, torch_dtype="bfloat16")
    shapes = tiny.tensor_shapes(config)
    weights = sum(s[0] * (s[1] if len(s) == 2 else 1) for s in shapes.values())
    index = {"metadata": {"total_size": 2 * weights}, "weight_map": dict.fromkeys(shapes, "model-1.safetensors")}
    files = {"config.json": json.dumps(config).encode(), "model.safetensors.index.json": json.dumps(index).encode(),
             "model-1.safetensors": bytes(2 * weights + 900)}  # fmt: skip
    single = {"config.json": files["config.json"], "model.safetensors": files["model-1.safetensors"]}
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.repos["acme/sharded"], hub.repos["acme/single"] = Repo(files), Repo(single)
        header = tiny.write_gguf(tmp_path / "a.gguf", config, tiny.random_tensors(config)).read_bytes()
        hub.repos["acme/gguf"] = Repo({"a-F32.gguf": header, "b-Q8_0.gguf": b"GGUF"})
        for name in ("acme/sharded", "acme/single"):
            report = plan_json(capsys, name, "--memory", "1G", "--quiet", *GIVEN)
            assert report["model"]["nbytes"] == 2 * weights and report["model"]["dtype"] == "BF16"
            assert not report["model"]["here"] and report["model"]["disk_free"] > 0
        assert not [request.path for request in hub.file_requests() if "model-1" in request.path]
        assert not [request.path for request in hub.file_requests() if request.path.endswith("model.safetensors")]
        report = plan_json(capsys, "acme/gguf:F32", "--memory", "1G", "--quiet", *GIVEN)
        assert not report["model"]["here"] and report["model"]["path"] == "acme/gguf:F32"
        read = [request for request in hub.file_requests("storage") if "gguf" in request.path]
        assert read and all("range" in request.headers for request in read)
        assert main(["plan", "acme/gguf", "--memory", "1G", "--quiet"]) == 2
        assert "say which: pyllama pull acme/gguf:QUANTIZATION (F32, Q8_0)" in capsys.readouterr().err


def test_sizes_and_times_as_people_write_them():
    assert [size(n) for n in (250 << 20, (250 << 20) + 1, 1 << 30, 3 << 29, 16 << 30)] == [
        "250M", "251M", "1G", "1.5G", "16G",
    ]  # fmt: skip
    assert [format_rate(r) for r in (0.09, 0.45, 10.5)] == ["90 MB/s", "450 MB/s", "10.5 GB/s"]
    assert [duration(s) for s in (0.03, 1.25, 140, 900)] == ["30 ms", "1.25 s", "140 s", "15 min"]


def test_a_budget_too_small_names_the_smallest_for_an_outline_too():
    with pytest.raises(BudgetError, match="needs at least") as caught:
        make_plan(outline(LLAMA_7B, "BF16"), 50 << 20, context_length=128)
    least = int(str(caught.value).split("at least ")[1].split(" MB")[0]) * 1_000_000
    plan = make_plan(outline(LLAMA_7B, "BF16"), least, context_length=128)
    assert forecasting.forecast(outline(LLAMA_7B, "BF16"), plan, RATES).token_s > 0


@pytest.mark.parametrize("budget", [30_000_000, 100_000_000, 300_000_000])
def test_the_smallest_budget_of_an_engine_works_too(budget):
    """A quarter of a larger budget for more contexts must not make it too small again."""
    model = outline(LLAMA_7B, "BF16")
    options = {"context_length": 512, "contexts": 8, "interpreter": 50 << 20}
    with pytest.raises(TooSmallError, match="needs at least") as caught:
        make_plan(model, budget, **options)
    smallest = caught.value.smallest
    for more in range(0, 200_000_000, 3_000_000):
        plan = make_plan(model, smallest + more, **options)
        assert plan.process + plan.cache + plan.activations + plan.ring + plan.pinned <= smallest + more
    with pytest.raises(TooSmallError):
        make_plan(model, smallest - 1, **options)


def test_products_of_quantized_weights_have_a_rate_of_their_own(tmp_path):
    """A prompt that arithmetic bounds takes as long as the share of weights in each form says."""
    config = tiny.tiny_config(
        hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=16
    )
    tensors = tiny.random_tensors(config)
    rates = Rates(disk_gb_s=1e6, dram_gb_s=1e6, gflop_s=1, pack_gb_s=1e6)
    seconds = {}
    for dtype in ("BF16", "Q8_0"):
        model = open_checkpoint(tiny.write_gguf(tmp_path / f"{dtype}.gguf", config, tensors, dtype=dtype))
        plan = make_plan(model, 1 << 30, context_length=64)
        for whole in (None, 4):
            predicted = forecast(model, plan, dataclasses.replace(rates, quantized_gflop_s=whole))
            seconds[dtype, whole] = predicted.prompt_s[64]
    assert seconds["BF16", None] == seconds["BF16", 4] == seconds["Q8_0", None]
    assert seconds["Q8_0", 4] == pytest.approx(seconds["Q8_0", None] / 4)


def test_a_plan_says_which_rotary_factors_hold_and_what_windows_leave_unseen():
    def rates(files):
        return BOARDS["pi5"]

    config = tiny.tiny_config(model_type="phi3", sliding_window=24)
    model = outline(huggingface_config(config), "BF16")
    for context, factors in ((None, "short"), (64, "short"), (128, "long")):
        report = make_report(model, 1 << 30, asked_context=context, kv_dtype="f16", rates=rates)
        assert report["context"]["rotary_factors"] == factors and report["context"]["original_positions"] == 64
        assert f"{factors} rotary factors" in "\n".join(lines(report))
    unseen = 2 * 3 * 2 * 32 * (8 + 32) * ((128 - 24) // 32)  # two layers, three heads of 8 in f16, whole pages
    assert report["context"]["windows"] == {"layers": 2, "positions": 24, "unseen_nbytes": unseen}
    assert "2 layers see 24 positions; all are kept for them too" in "\n".join(lines(report))
    model = outline(huggingface_config(tiny.tiny_config()), "BF16")
    plain = make_report(model, 1 << 30, asked_context=None, kv_dtype="f16", rates=rates)
    assert plain["context"] == {"rotary_factors": None, "original_positions": None, "windows": None}
