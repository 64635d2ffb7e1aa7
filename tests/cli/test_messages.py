"""Refusals that help: what was given is named for what it is, and what to do instead; always one line, exit code 2."""

import gzip
import json
import os
import re
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import tiny

import pyllama
from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.huggingface_config import huggingface_config
from pyllama.cli import main
from pyllama.errors import HubError, PyllamaError, RequestError, UnsupportedError
from pyllama.hub import resolve

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4096\n"
PAGE = b"\n<!doctype html>\n<html><head><title>Sign in</title></head></html>"
GGML = b"tjgg" + bytes(100)


def told(capsys, *line):
    """What a command says on standard error: one line, with exit code 2."""
    assert main([str(word) for word in line]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pyllama: ") and error.count("\n") == 1
    return error.strip()


def model(tmp_path, shards=1, **more):
    config = tiny.tiny_config(**more)
    return tiny.write_huggingface(tmp_path / "m", config, tiny.random_tensors(config), shards=shards)


def gguf(tmp_path, name="m.gguf", **how):
    config = tiny.tiny_config()
    return tiny.write_gguf(tmp_path / name, config, tiny.random_tensors(config), **how)


# ---------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["m.gguf", "m.Q4_K_M.gguf", "model"])
@pytest.mark.parametrize(
    "data, expected",
    [(POINTER, "Git LFS pointer.*git lfs pull"), (b"", "empty file"), (PAGE, "web page"), (GGML, "GGML file of before"),
     (b"lmgg" + bytes(9), "GGML"), (b"algg" + bytes(9), "LoRA adapter"), (gzip.compress(b"x", mtime=0), "gzip"),
     (b'{"error":"Repository not found"}', "server's error message"), (b"Entry not found", "server's error message"),
     (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "server's error message"),
     (b"\x89HDF\r\n\x1a\n", "TensorFlow"),
     (bytes(4096), "nothing but zeros"), (b"7z\xbc\xaf\x27\x1c", "7z"), (b"\x7fELF", "a program"),
     (b"MZqFpD='", "llamafile"), (b"%PDF-1.7", "PDF"), (b"\x80\x02}q", "pickle"), (b"hello", "not a GGUF file")],
)  # fmt: skip
def test_what_is_not_a_model(tmp_path, capsys, name, data, expected):
    path = tmp_path / name
    path.write_bytes(data)
    assert re.search(expected, told(capsys, "info", path))


def test_archives(tmp_path, capsys):
    path = gguf(tmp_path)
    with zipfile.ZipFile(tmp_path / "z.gguf", "w") as archive:
        archive.write(path)
    with tarfile.open(tmp_path / "t.gguf", "w") as archive:
        archive.add(path)
    assert "a zip archive; unpack it" in told(capsys, "info", tmp_path / "z.gguf")
    assert "a tar archive; unpack it" in told(capsys, "info", tmp_path / "t.gguf")


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "config.json"])
@pytest.mark.parametrize("data, expected", [(POINTER, "Git LFS pointer"), (b"", "empty file"), (PAGE, "web page")])
def test_files_of_a_folder_that_are_not_themselves(tmp_path, capsys, name, data, expected):
    folder = model(tmp_path)
    (folder / name).write_bytes(data)
    message = told(capsys, "info", folder)
    assert expected in message and name in message


def test_the_parts_of_a_split(tmp_path, capsys):
    first = gguf(tmp_path, split=3)
    second = tmp_path / "m-00002-of-00003.gguf"
    assert f"give {first.name}" in told(capsys, "info", second)
    data = second.read_bytes()
    second.write_bytes(POINTER)
    assert "m-00002-of-00003.gguf: a Git LFS pointer" in told(capsys, "info", first)
    second.unlink()
    assert "m-00002-of-00003.gguf: missing, expected beside m-00001" in told(capsys, "info", first)
    (tmp_path / "x.gguf.part2of2").write_bytes(data[500:])
    assert "join them all" in told(capsys, "info", tmp_path / "x.gguf.part2of2")


@pytest.mark.parametrize(
    "kind, expected",
    [("adapter", "a LoRA adapter; merge"), ("mmproj", "the part of a model that sees"), ("imatrix", "importance"),
     ("vocab", "a vocabulary alone"), ("other", "expected 'model'")],
)  # fmt: skip
def test_other_types_of_gguf(tmp_path, capsys, kind, expected):
    assert expected in told(capsys, "info", gguf(tmp_path, extra={"general.type": kind}))


@pytest.mark.parametrize(
    "name, expected",
    [("clip", "the part of a model that sees"), ("bert", "an encoder"), ("nomic-bert", "an encoder"),
     ("t5", "encoder and"),
     ("flux", "makes pictures"), ("qwen2vl", "sees images"), ("mamba", "recurrent"), ("whisper", "speech"),
     ("deepseek2", "mixture of experts"), ("stablelm", "(supported: ")],
)  # fmt: skip
def test_other_families_of_gguf(tmp_path, capsys, name, expected):
    message = told(capsys, "info", gguf(tmp_path, extra={"general.architecture": name}))
    assert f"general.architecture: '{name}'" in message and expected in message


def test_a_gguf_of_metadata_alone(tmp_path, capsys):
    (tmp_path / "vocab.gguf").write_bytes(tiny.gguf_bytes(tiny.gguf_metadata(tiny.tiny_config()), []))
    assert "no tensors, only metadata" in told(capsys, "info", tmp_path / "vocab.gguf")


# -------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize(
    "names, expected",
    [
        (["consolidated.safetensors", "params.json"], "weights only as consolidated.safetensors, Mistral's own form"),
        (["consolidated-00001-of-00002.safetensors", "config.json"], "only as consolidated-00001-of-00002.safetensors"),
        (["adapter_config.json", "adapter_model.safetensors"], "a LoRA adapter of 'org/base'.*merge"),
        (["adapter_model.safetensors", "config.json"], "a LoRA adapter .adapter_model.safetensors.*merge"),
        (["adapter_model.bin", "config.json"], "a LoRA adapter"),
        (["pytorch_model.bin", "config.json"], "weights only as pytorch_model.bin.*convert them to safetensors"),
        (["pytorch_model-00001-of-00002.bin", "config.json"], "pytorch_model-00001.*convert them to safetensors"),
        (["model.onnx", "config.json"], "weights only for ONNX"),
        (["tf_model.h5", "config.json"], "weights only for TensorFlow"),
        (["flax_model.msgpack", "config.json"], "weights only for Flax"),
        (["openvino_model.xml", "config.json"], "weights only for OpenVINO"),
        (["weights.npz", "config.json"], "weights only of an early MLX"),
        (["ggml-model-q4_0.bin"], "a GGML file of before August 2023"),
        (["model_index.json", "README.md"], "a pipeline that makes pictures"),
        (["modules.json", "config.json"], "a model of sentence embeddings"),
        (["model.safetensors"], "but no config.json"),
        (["config.json", "README.md"], "config.json but no .*has the download ended"),
        (["params.json"], "params.json but no consolidated"),
        (["README.md"], "no model, expected config.json with"),
        ([], "no model in an empty folder"),
    ],
)
def test_folders_without_weights(tmp_path, capsys, names, expected):
    folder = tmp_path / "m"
    folder.mkdir()
    for name in names:
        (folder / name).write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    if "config.json" in names:
        (folder / "config.json").write_text(json.dumps(tiny.tiny_config()))
    assert re.search(expected, told(capsys, "info", folder))


def test_onnx_in_a_folder_of_its_own(tmp_path, capsys):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"x")
    (tmp_path / "config.json").write_text(json.dumps(tiny.tiny_config()))
    assert "weights only for ONNX" in told(capsys, "info", tmp_path)


def test_an_adapter_beside_its_model_is_not_in_the_way(tmp_path):
    folder = model(tmp_path, shards=2)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "adapter_model.safetensors")
    open_checkpoint(folder).close()


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(tmp_path, capsys, index):
    folder = model(tmp_path, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    if not index:
        (folder / "model.safetensors.index.json").unlink()
    assert "model-00002-of-00003.safetensors missing" in told(capsys, "info", folder)


def test_a_folder_of_folders_names_them(tmp_path, capsys):
    model(tmp_path)
    (tmp_path / "empty").mkdir()
    assert f"no model, but in folders of it; give {tmp_path / 'm'}" in told(capsys, "info", tmp_path)


def test_a_repository_in_the_cache_names_its_snapshot(tmp_path, capsys):
    shutil.copytree(model(tmp_path), tmp_path / "models--a--b" / "snapshots" / "0123")
    assert str(tmp_path / "models--a--b" / "snapshots" / "0123") in told(capsys, "info", tmp_path / "models--a--b")


def test_the_part_that_sees_images_is_not_a_second_model(tmp_path):
    gguf(tmp_path)
    gguf(tmp_path, "mmproj-F16.gguf", extra={"general.type": "mmproj"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.path.name == "m.gguf"


# ---------------------------------------------------------------------------------------------- config.json


@pytest.mark.parametrize("model_type", sorted(tiny.ARCHITECTURES))
def test_a_head_that_is_missing(tmp_path, capsys, model_type):
    config = tiny.tiny_config(model_type=model_type, tie_word_embeddings=False)
    tensors = tiny.random_tensors(config)
    del tensors["lm_head.weight"]
    message = told(capsys, "info", tiny.write_huggingface(tmp_path, config, tensors))
    assert "lm_head.weight: missing" in message and "tie_word_embeddings" in message and "embeddings" in message


@pytest.mark.parametrize(
    "change, expected",
    [({"quantization": {"group_size": 64, "bits": 4}}, "of MLX, 4 bits"),
     ({"quantization_config": {"group_size": 64, "bits": 8}}, "of MLX, 8 bits"),
     ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "GPTQ 'gptq', 4 bits"),
     ({"quantization_config": {"quant_method": "awq", "w_bit": 4}}, "AWQ 'awq', 4 bits"),
     ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "'bitsandbytes', 4 bits"),
     ({"quantization_config": {"quant_method": "fp8"}}, "FP8 'fp8'"),
     ({"quantization_config": {"quant_method": "compressed-tensors"}}, "'compressed-tensors'"),
     ({"compression_config": {"quant_method": "compressed-tensors"}}, "'compressed-tensors'"),
     ({"quantization_config": {"quant_algo": "NVFP4"}}, "'NVFP4'"), ({"quantization_config": 4}, "without a name")],
)  # fmt: skip
def test_quantized_folders(change, expected):
    with pytest.raises(UnsupportedError, match=f"{next(iter(change))}: quantization .*{expected}.*GGUF file"):
        huggingface_config(tiny.tiny_config() | change)


@pytest.mark.parametrize(
    "name, expected",
    [("bert", "an encoder"), ("xlm-roberta", "an encoder"), ("modernbert", "an encoder"), ("whisper", "speech"),
     ("t5", "encoder and decoder"), ("llava", "sees images"), ("qwen2_5_vl", "sees images"), ("qwen2_moe", "experts"),
     ("mamba2", "recurrent"), ("clip", "the part of a model"), ("stablelm", "supported: ")],
)  # fmt: skip
def test_other_families(name, expected):
    with pytest.raises(UnsupportedError, match=f"model_type: '{name}'.*{expected}"):
        huggingface_config(tiny.tiny_config() | {"model_type": name})


# -------------------------------------------------------------------------------------------- names and paths


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with one repository, and a current folder with a model."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub" / "models--Qwen--Qwen2.5-0.5B-Instruct").mkdir(parents=True)
    work = tmp_path / "work"
    (work / "models").mkdir(parents=True)
    gguf(work / "models", "Llama.gguf")
    monkeypatch.chdir(work)
    return work


@pytest.mark.parametrize(
    "given, expected",
    [
        ("https://hub.example/org/name", "an address, expected a name: org/name"),
        ("hub.example/org/name:Q4_K_M", "an address, expected a name: org/name:Q4_K_M"),
        ("https://hub.example/org/name/", "expected a name: org/name"),
        ("https://hub.example/org/name/tree/main", "expected a name: org/name"),
        ("https://hub.example/org/name/tree/v1", "expected a name: org/name@v1"),
        ("https://hub.example/org/name/resolve/main/x.Q4_K_M.gguf?download=true", "a name: org/name:Q4_K_M"),
        ("hub.example/org/name", "expected a name: org/name"),
        ("git@hub.example:org/name.git", "expected a name: org/name"),
        ("hf://org/name", "expected a name: org/name"),
        ("qwen/qwen2.5-0.5b-instruct", r"did you mean Qwen/Qwen2.5-0.5B-Instruct\?"),
        ("Qwen2.5-0.5B-Instruct", r"did you mean Qwen/Qwen2.5-0.5B-Instruct\?"),
        ("Qwen/Qwen2.5 0.5B Instruct", r"did you mean Qwen/Qwen2.5-0.5B-Instruct\?"),
        ("qwen/qwen2.5-0.5b-instruct:Q4_0", r"did you mean Qwen/Qwen2.5-0.5B-Instruct:Q4_0\?"),
        (" org/name ", "without the spaces or quotes around it: org/name"),
        ("'models/Llama.gguf'", "without the spaces or quotes around it: models/Llama.gguf"),
        ("org/name one", "a name has no spaces"),
        ("org/name/", r"did you mean org/name\?"),
        ("models/llama.gguf", r"no such file or folder; did you mean models/Llama.gguf\?"),
        ("models/Lama.gguf", r"no such file or folder; did you mean models/Llama.gguf\?"),
        ("models/Llama", r"did you mean models/Llama.gguf\?"),
        ("model/Llama.gguf", r"did you mean models/Llama.gguf\?"),
        ("models/Llama.gguf:Q4_K_M", "models/Llama.gguf is there, and a path takes no :Q4_K_M"),
        ("./models/other/x", "models is there, other is not in it"),
        ("org/name/x-Q5_K_M.gguf", "a file of a repository is named by its quantization: org/name:Q5_K_M"),
        ("SmolLM", r"did you mean smollm2\?"),
        ("smollm3", r"did you mean smollm2\?"),
        ("llama3.2:1b", "the hub's names have an organization: org/llama3.2"),
        ("", "an empty text for a model"),
        ("model.gguf", "model.gguf: no such file or folder$"),
    ],
)
def test_what_was_meant_by_a_name(cache, given, expected):
    with pytest.raises(HubError, match=expected) as error:
        resolve(given)
    assert "\n" not in str(error.value)


def test_the_home_that_the_shell_left_as_it_is(cache, monkeypatch):
    monkeypatch.setenv("HOME", str(cache))
    with pytest.raises(HubError, match=f"give {cache}/models/Llama.gguf"):
        resolve("~/models/Llama.gguf")


def test_pull_says_it_too(cache, capsys):
    assert "expected a name: org/name" in told(capsys, "pull", "https://hub.example/org/name", "--quiet")
    assert "it is a path here, and needs no pull" in told(capsys, "pull", "models", "--quiet")


# -------------------------------------------------------------------------------------- options and arguments


@pytest.mark.parametrize(
    "line, expected",
    [
        (["run", "x", "--context_length", "5"], "did you mean --context?"),
        (["run", "x", "--context-length=5"], "did you mean --context?"),
        (["run", "x", "--ctx-size", "5"], "did you mean --context?"),
        (["chat", "x", "--num-ctx", "5"], "did you mean --context?"),
        (["serve", "x", "--n_ctx", "5"], "did you mean --context?"),
        (["plan", "x", "--max-model-len", "5"], "did you mean --context?"),
        (["run", "x", "--max_tokens", "5"], "did you mean --max-tokens?"),
        (["run", "x", "--n-predict", "5"], "did you mean --max-tokens?"),
        (["run", "x", "--max_new_tokens", "5"], "did you mean --max-tokens?"),
        (["run", "x", "--top_p", "0.5"], "did you mean --top-p?"),
        (["run", "x", "--temperatur", "1"], "did you mean --temperature?"),
        (["run", "x", "--repeat-penalty", "1"], "did you mean --repetition-penalty?"),
        (["run", "x", "-hf", "org/name"], "MODEL is given without an option"),
        (["run", "x", "--system-prompt", "y"], "did you mean --system?"),
        (["run", "-m", "x"], "MODEL is given without an option"),
        (["run", "x", "-ngl", "99"], "there is no such option: pyllama computes on the CPU"),
        (["run", "x", "--no-mmap"], "there is no such option: pyllama reads weights past the page cache"),
        (["serve", "x", "--parallel", "4"], "did you mean --max-running?"),
        (["serve", "x", "--api-key", "z"], "did you mean --api-key-file?"),
        (["serve", "x", "--temperature", "0"], "an option of pyllama run and pyllama chat"),
        (["info", "x", "--memory", "2G"], "an option of pyllama run and pyllama chat"),
        (["service", "install", "x", "--prot", "80"], "did you mean --port?"),
        (["run", "x", "--frobnicate"], "unrecognized arguments: --frobnicate (see"),
        (["info", "x", "y"], "unrecognized arguments: y (see"),
        (["run", "x", "y", "-n", "5", "--frobnicate"], "unrecognized arguments: --frobnicate (see"),
    ],
)
def test_an_unknown_option_names_the_one_that_was_meant(capsys, line, expected):
    message = told(capsys, *line)
    assert expected in message
    command = "service install" if line[0] == "service" else line[0]
    assert message.endswith(f"(see pyllama {command} --help)")


@pytest.mark.parametrize(
    "line, expected",
    [
        (["generate", "x"], "did you mean pyllama run?"),
        (["download", "a/b"], "did you mean pyllama pull?"),
        (["server", "x"], "did you mean pyllama serve?"),
        (["models/x.gguf"], "to run a model: pyllama run models/x.gguf"),
        (["--memory", "2G", "run", "x"], "options come after the command: pyllama run --memory ..."),
        (["-c", "5"], "unrecognized arguments: -c (see"),
    ],
)
def test_an_unknown_command_names_the_one_that_was_meant(capsys, line, expected):
    message = told(capsys, *line)
    assert expected in message and message.endswith("(see pyllama --help)")


@pytest.mark.parametrize(
    "given, ours",
    [("context", "context_length"), ("n_ctx", "context_length"), ("num_ctx", "context_length"), ("ram", "memory"),
     ("max_memory", "memory"), ("n_threads", "threads"), ("cache_type", "kv_dtype")],
)  # fmt: skip
def test_arguments_of_load_in_the_words_of_others(given, ours):
    with pytest.raises(RequestError, match=rf"^{given}: no such argument of load\(\), did you mean {ours}\?$"):
        pyllama.load("x", **{given: 1})


def test_other_arguments_of_load():
    with pytest.raises(RequestError, match=r"n_gpu_layers: no such argument of load\(\), pyllama computes on the CPU"):
        pyllama.load("x", n_gpu_layers=1)
    with pytest.raises(RequestError, match=r"colour: no such argument of load\(\), expected one of context_length,"):
        pyllama.load("x", colour=1)


def test_nothing_here_is_a_bug(tmp_path):
    """Names of files that are links to nothing, folders, or not to be read: refused as everything else."""
    for number, make in enumerate(
        (lambda p: os.symlink("nowhere", p), os.mkdir, os.mkfifo, lambda p: p.write_bytes(np.arange(99).tobytes()))
    ):
        for name in ("config.json", "adapter_config.json", "model.safetensors", "m.gguf", "model_index.json"):
            folder = tmp_path / f"{number}-{name}"
            folder.mkdir()
            make(folder / name)
            with pytest.raises(PyllamaError):
                open_checkpoint(folder)
