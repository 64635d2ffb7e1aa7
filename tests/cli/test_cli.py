"""The command line as a person meets it: what it prints where, its exit codes, its manners on a terminal."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from command_line import DEADLINE_S, pyllama_process, pyllama_run

import pyllama
from pyllama.cli import main
from pyllama.machine.memory import peak_resident_nbytes

JSON_KEYS = [
    "text",
    "token_ids",
    "prompt_tokens",
    "completion_tokens",
    "finish_reason",
    "prefill_s",
    "decode_s",
    "prefill_tok_s",
    "decode_tok_s",
    "peak_rss_bytes",
    "bytes_read",
    "experts",
    "passes",
    "fingerprint",
    "draft",
]


def one_error(capsys) -> str:
    """The one line on standard error."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pyllama: ") and captured.err.count("\n") == 1
    return captured.err.removeprefix("pyllama: ").strip()


# --- run ---


def test_run_prints_the_text_and_nothing_else(base_folder, capsys):
    assert main(["run", str(base_folder), "--prompt", "hello", "--max-tokens", "12"]) == 0
    captured = capsys.readouterr()
    with pyllama.load(base_folder) as model:
        text = model.generate("hello", max_tokens=12).read()
    assert captured.out == text + "\n"
    assert captured.err == ""


def test_run_json_has_exactly_these_keys(base_folder, capsys):
    assert main(["run", str(base_folder), "--prompt", "hello", "--max-tokens", "12", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    result = json.loads(captured.out)
    assert list(result) == JSON_KEYS
    with pyllama.load(base_folder) as model:
        generation = model.generate("hello", max_tokens=12, fingerprint=True)
        assert result["text"] == generation.read()
        assert result["token_ids"] == generation.token_ids
        assert result["prompt_tokens"] == generation.prompt_tokens
        assert result["completion_tokens"] == len(generation.token_ids)
        assert result["finish_reason"] == generation.finish_reason
        assert result["fingerprint"] == generation.fingerprint.hexdigest()
        assert result["passes"] == model.passes == result["completion_tokens"]
        assert result["bytes_read"] == model.bytes_read >= model.checkpoint.nbytes / 2
    assert result["prefill_s"] > 0 and result["decode_s"] > 0
    assert result["prefill_tok_s"] == pytest.approx(result["prompt_tokens"] / result["prefill_s"])
    assert result["decode_tok_s"] == pytest.approx((result["completion_tokens"] - 1) / result["decode_s"])
    assert 10e6 < result["peak_rss_bytes"] < 1e9


def test_a_rate_of_nothing_is_null(base_folder, capsys):
    assert main(["run", str(base_folder), "--prompt", "hello", "--max-tokens", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decode_tok_s"] is None


def test_run_puts_the_prompt_through_the_template_unless_raw(chat_folder, capsys):
    def prompt_tokens(*options):
        args = ["run", str(chat_folder), "--prompt", "hello", "--max-tokens", "1", "--json", *options]
        assert main(args) == 0
        return json.loads(capsys.readouterr().out)["prompt_tokens"]

    with pyllama.load(chat_folder) as model:
        user = {"role": "user", "content": "hello"}
        assert prompt_tokens() == len(model.tokenizer.encode_chat([user]))
        system = {"role": "system", "content": "be brief"}
        assert prompt_tokens("--system", "be brief") == len(model.tokenizer.encode_chat([system, user]))
        assert prompt_tokens("--raw") == len(model.tokenizer.encode("hello"))


def test_a_system_message_needs_a_template(base_folder, chat_folder, capsys):
    assert main(["run", str(base_folder), "--prompt", "a", "--system", "b"]) == 2
    assert "no chat template" in one_error(capsys)
    assert main(["run", str(chat_folder), "--prompt", "a", "--system", "b", "--raw"]) == 2
    assert one_error(capsys).startswith("--system: ")


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_prompts_from_option_file_and_standard_input_are_the_same(base_folder, tmp_path, ending):
    raw = ("zwei Wörter" + ending).encode()
    (tmp_path / "prompt").write_bytes(raw)
    common = ["--max-tokens", "4"]
    expected = pyllama_run("run", base_folder, "--prompt", "zwei Wörter", *common).stdout
    assert expected
    assert pyllama_run("run", base_folder, "--file", tmp_path / "prompt", *common).stdout == expected
    if ending == "\n":
        assert pyllama_run("run", base_folder, *common, input=raw).stdout == expected
        assert pyllama_run("run", base_folder, "--file", "-", *common, input=raw).stdout == expected


def test_sampling_options_reach_the_sampler(base_folder, capsys):
    options = ["--temperature", "1.5", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.001", "--seed", "5"]
    options += ["--repetition-penalty", "1.1", "--presence-penalty", "0.5", "--frequency-penalty", "0.25"]
    options += ["--max-tokens", "20", "--ignore-eos", "--stop", "qqq", "--stop", "zzz"]
    assert main(["run", str(base_folder), "--prompt", "hello", "--json", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    with pyllama.load(base_folder) as model:
        generation = model.generate(
            "hello",
            temperature=1.5,
            top_k=50,
            top_p=0.9,
            min_p=0.001,
            seed=5,
            repetition_penalty=1.1,
            presence_penalty=0.5,
            frequency_penalty=0.25,
            max_tokens=20,
            ignore_eos=True,
            stop=["qqq", "zzz"],
        )
        generation.read()
    assert result["token_ids"] == generation.token_ids


def test_context_threads_and_kv_dtype_reach_the_decoder(base_folder, capsys):
    def result(*options):
        args = ["run", str(base_folder), "--prompt", "hello there", "--ignore-eos", "--json", *options]
        assert main(args) == 0
        return json.loads(capsys.readouterr().out)

    short = result("--context", "30")
    assert short["finish_reason"] == "length"
    assert short["prompt_tokens"] + short["completion_tokens"] == 31
    one, three = result("--threads", "1", "--max-tokens", "9"), result("--threads", "3", "--max-tokens", "9")
    assert one["fingerprint"] == three["fingerprint"]
    f32 = result("--kv-dtype", "f32", "--max-tokens", "9")
    assert f32["fingerprint"] != one["fingerprint"]


def test_verbose_tells_memory_sampling_and_timings_on_standard_error(base_folder, capsys):
    assert main(["run", str(base_folder), "--prompt", "hello", "--max-tokens", "4", "--verbose"]) == 0
    memory, chosen, line = capsys.readouterr().err.split("\n", 2)
    assert re.fullmatch(
        r"memory: \S+[MG]: process \d+M, cache \d+M, activations \d+M, ring \d+M, weights \d+M, 100% of all", memory
    )
    assert chosen == "sampling: temperature 0 (greedy), max-tokens 4"
    assert re.fullmatch(
        r"prefill \d+ tokens in [\d.]+ s \([\d.]+ tok/s\),"
        r" decode \d+ tokens in [\d.]+ s \([\d.]+ tok/s\), peak \d+ MB\n"
        r"draft: nobody: .*\n",
        line,
    )


def test_text_streams_as_it_is_written(base_folder):
    process = pyllama_process(
        "run", base_folder, "--prompt", "hello", "--ignore-eos", "--max-tokens", 300, stdout=subprocess.PIPE
    )
    chunks = []
    while chunk := os.read(process.stdout.fileno(), 65536):
        chunks.append(chunk)
    assert process.wait() == 0
    assert len(chunks) > 5


def test_the_prompt_is_words_anywhere_after_the_model(base_folder):
    expected = pyllama_run("run", base_folder, "--prompt", "zwei -n Wörter", "--max-tokens", 4).stdout
    assert expected
    for words in (["zwei -n Wörter", "-n", "4"], ["-n", "4", "zwei -n Wörter"], ["-n4", "--", "zwei", "-n", "Wörter"]):
        assert pyllama_run("run", base_folder, *words).stdout == expected, words


def test_piped_text_a_file_and_words_make_one_prompt(base_folder, tmp_path):
    (tmp_path / "file").write_text("file\n")
    words = ["-n", "4", "--temp", "0", "-t", "1", "-c", "99", "-s", "1"]

    def answer(*more, piped=b"", stdin=None):
        given = {"stdin": stdin} if stdin else {"input": piped}
        return pyllama_run("run", base_folder, *words, *more, **given).stdout

    whole = answer("-p", "piped\n\nfile\n\nwords")
    assert answer("words", "-f", tmp_path / "file", piped=b"piped\n") == whole
    with open(tmp_path / "file") as file:
        assert answer("words", stdin=file) == answer("-p", "file\n\nwords")
        assert answer("words", "-f", "/dev/stdin", stdin=file) != answer("words")
    assert answer("words", stdin=subprocess.DEVNULL) == answer("words", piped=b"") == answer("-p", "words")


def test_no_command_prints_the_help(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: pyllama [-h]")


# --- errors ---


@pytest.mark.parametrize(
    "args, message",
    [
        (["run"], "the following arguments are required: MODEL (see pyllama run --help)"),
        (["fly"], "fly: no such command, expected one of run, chat,"),
        (["run", "MODEL", "--hurry"], "unrecognized arguments: --hurry"),
        (
            ["run", "MODEL", "--temperatur", "1"],
            "unrecognized arguments: --temperatur 1; did you mean --temperature?",
        ),
        (["run", "MODEL", "a", "--prompt", "b"], "--prompt: the prompt was given without it, too"),
        (["run", "MODEL", "--seed", "x"], "argument -s/--seed: invalid int value: 'x'"),
        (["run", "MODEL", "--prompt", "a", "--file", "b"], "b: no such file or directory"),
        (["run", "MODEL", "--prompt", "a", "--temperature", "-1"], "temperature: -1.0, expected 0"),
        (["run", "MODEL", "--prompt", "a", "--max-tokens", "0"], "max_tokens: 0, expected 1 or more"),
        (["run", "MODEL", "--prompt", "a", "--context", "0"], "context_length: 0, expected 1 to 8192"),
        (["run", "MODEL", "--prompt", "a", "--context", "9000"], "context_length: 9000, expected 1 to 8192"),
        (["run", "MODEL", "--prompt", "a", "--threads", "0"], "threads: 0, expected 1 to"),
        (["run", "MODEL", "--prompt", ""], "prompt: no tokens"),
        (["run", "MODEL", "--file", "/no/such/file"], "/no/such/file: no such file or directory"),
        (["run", "MODEL", "--file", "/"], "/: is a directory"),
        (["run", "/no/such/model", "--prompt", "a"], "/no/such/model: no such file or folder"),
        (["info", "/no/such/model"], "/no/such/model: no such file or folder"),
        (["chat", "MODEL"], "chat: this model has no chat template"),
        (["run", "MODEL", "--prompt", "a" * 40, "--context", "30"], "prompt is too long: 40 tokens, this model"),
    ],
)
def test_a_users_error_is_one_line_and_exit_2(args, message, base_folder, capsys):
    args = [str(base_folder) if arg == "MODEL" else arg for arg in args]
    assert main(args) == 2
    assert one_error(capsys).startswith(message)


def test_a_prompt_that_is_no_text(base_folder):
    done = pyllama_run("run", base_folder, input=b"ab\xff")
    assert done.returncode == 2
    assert done.stderr == b"pyllama: standard input: byte 2 is not UTF-8, expected text\n"
    assert done.stdout == b""


def test_a_damaged_model_is_a_users_error(base_folder, tmp_path, capsys):
    for file in base_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes((base_folder / "model.safetensors").read_bytes()[:1000])
    assert main(["run", str(tmp_path), "--prompt", "a"]) == 2
    assert "model.safetensors" in one_error(capsys)


def test_weights_that_are_not_numbers_are_found_out(base_folder, tmp_path, capsys):
    for file in base_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    raw = bytearray((base_folder / "model.safetensors").read_bytes())
    raw[-2000:] = b"\xff" * 2000  # bfloat16 NaN
    (tmp_path / "model.safetensors").write_bytes(raw)
    assert main(["run", str(tmp_path), "--prompt", "a"]) == 2
    assert "expected finite numbers" in one_error(capsys)


def test_ctrl_c_is_130_without_a_traceback(base_folder):
    options = ["--prompt", "hello", "--ignore-eos", "--temperature", 2]
    process = pyllama_process("run", base_folder, *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert os.read(process.stdout.fileno(), 1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, stderr) == (130, b"")


@pytest.mark.parametrize("command", ["run", "--help"])
def test_a_closed_pipe_ends_it_quietly(command, base_folder):
    options = [base_folder, "--prompt", "hello", "--ignore-eos"] if command == "run" else []
    process = pyllama_process(command, *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if command == "run":
        assert os.read(process.stdout.fileno(), 1)
    process.stdout.close()
    stderr = process.stderr.read()
    assert process.wait(timeout=DEADLINE_S) == 0
    assert stderr == b""


def test_a_full_disk_is_a_users_error(base_folder):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with open("/dev/full", "wb") as full:
        done = pyllama_run(
            "run", base_folder, "--prompt", "a", "--max-tokens", 2, stdout=full, stderr=subprocess.PIPE,
            capture_output=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == b"pyllama: standard output: no space left on device\n"


def test_a_terminal_without_unicode_gets_question_marks(chat_folder):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = pyllama_run("info", chat_folder, env=environment)
    assert done.returncode == 0


# --- starting ---


@pytest.mark.parametrize("with_settings", [False, True])
def test_help_loads_nothing_heavy(with_settings, tmp_path, monkeypatch):
    """With a file of settings the options of every command are made, since all that it says is checked."""
    monkeypatch.delenv("PYLLAMA_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    if with_settings:
        (tmp_path / "pyllama").mkdir()
        (tmp_path / "pyllama" / "config.toml").touch()
    code = (
        "import sys; from pyllama.cli import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit as done: assert done.code == 0\n"
        "print(sorted({'numpy', 'jinja2', 'sentencepiece', 'regex', 'ctypes', 'asyncio', 'inspect', 'tomllib'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_version(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"pyllama {pyllama.__version__}\n"


def test_peak_rss_is_of_this_process_alone():
    """A child of a large parent must not report its parent's memory (it would, by getrusage)."""
    ballast = np.ones(200_000_000, np.uint8)
    code = "from pyllama.machine.memory import peak_resident_nbytes; print(peak_resident_nbytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S)
    assert peak_resident_nbytes() > ballast.nbytes
    assert 0 < int(done.stdout) < ballast.nbytes


# --- info ---


def test_info_tells_what_the_model_is(chat_folder, capsys):
    assert main(["info", str(chat_folder)]) == 0
    out = capsys.readouterr().out
    for expected in ("LlamaForCausalLM", "huggingface", "BF16", "8192 positions", "bpe", "model.safetensors"):
        assert expected in out


def test_info_json(chat_folder, capsys):
    assert main(["info", str(chat_folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["parameters"] == sum(part["parameters"] for part in result["parts"].values())
    assert result["nbytes"] == sum(part["nbytes"] for part in result["parts"].values())
    assert result["nbytes"] == sum(result["dtypes"].values()) == 2 * result["parameters"]
    assert result["parts"]["embedding"]["parameters"] == result["vocab_size"] * result["hidden_size"]
    assert result["parts"]["norms"]["parameters"] == 5 * result["hidden_size"]
    assert result["parts"]["mlp"]["parameters"] == 2 * 3 * 48 * 80
    assert result["kv_cache_nbytes_per_token"] == 2 * 3 * (8 + 32) * 2  # values in panels of 32
    assert result["tokenizer"]["chat_template"] is True
    assert result["tokenizer"]["eos"] == [{"id": 258, "text": "<|im_end|>"}]


def test_info_of_a_model_without_a_tokenizer(chat_folder, tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((chat_folder / name).read_bytes())
    assert main(["info", str(tmp_path)]) == 0
    assert "none that works" in capsys.readouterr().out


def test_info_template(chat_folder, base_folder, capsys):
    assert main(["info", str(chat_folder), "--template"]) == 0
    assert "<|im_start|>" in capsys.readouterr().out


# --- run on a terminal ---


def test_run_without_a_prompt_on_a_terminal_is_a_conversation(terminal, chat_folder):
    t = terminal("run", chat_folder, "--max-tokens", 4)
    t.read_until("> ")
    t.type("hello\n")
    t.read_until("\n> ")
    t.type("/exit\n")
    assert t.wait() == 0


def test_run_without_a_prompt_continues_no_text(terminal, chat_folder):
    t = terminal("run", chat_folder, "--raw")
    assert t.wait() == 2
    assert "pyllama: no prompt: give it after MODEL" in t.output
