"""`pyllama info` on files made to fill the memory: within 250 MB, and every refusal is a line."""

import os
import struct
import subprocess
import sys

import pytest
from conftest import write_model

MB = 1 << 20
LIMIT = 250 * MB
EMULATED = os.environ.get("PYLLAMA_EMULATED") == "1"

INFO = """
import sys
from pyllama.budget import peak_resident_nbytes
from pyllama.cli import main
code = main(["info", sys.argv[1]])
print("peak", peak_resident_nbytes(), file=sys.stderr)
sys.exit(code)
"""


def info(path):
    """(what it printed, what it complained of), once it kept within its means."""
    done = subprocess.run([sys.executable, "-c", INFO, str(path)], capture_output=True, text=True, timeout=120)
    *lines, peak = done.stderr.splitlines()
    assert done.returncode in (0, 2) and len(lines) == (done.returncode == 2), done.stderr
    assert int(peak.split()[1]) < LIMIT
    return done.stdout, "".join(lines)


JSON = {
    "a name": ("tokenizer.json", lambda: b'{"model":{"vocab":{"' + b"a" * (60 * MB) + b'":1}}}', "entry of the list"),
    "escapes": ("tokenizer.json", lambda: b'{"model":{"vocab":{"' + b"\\u1234" * (9 * MB) + b'":1}}}', "entry of the"),
    "a key": ("tokenizer.json", lambda: b'{"' + b"a" * (60 * MB) + b'":1}', "expected a key"),
    "a string": ("tokenizer.json", lambda: b'{"x":"' + b"a" * (60 * MB) + b'"}', "expected a value"),
    "objects": ("tokenizer.json", lambda: b'{"x":[' + b"{}," * (5 * MB) + b"{}]}", "400000 items"),
    "numbers": ("tokenizer.json", lambda: b'{"x":[' + b"1," * (7 * MB) + b"1]}", "too many JSON values"),
    "depth": ("tokenizer.json", lambda: b'{"x":' + b"[" * (5 * MB) + b"]" * (5 * MB) + b"}", "400000 items"),
    "the whole": ("tokenizer.json", lambda: b" " * (97 * MB), "expected 2 to"),
    "settings": ("tokenizer_config.json", lambda: b'{"x":[' + b"{}," * (5 * MB) + b"{}]}", "too many JSON values"),
    "a map": ("special_tokens_map.json", lambda: b'{"x":[' + b"[]," * (5 * MB) + b"{}]}", "too many JSON values"),
    "ends": (
        "generation_config.json",
        lambda: b'{"eos_token_id":[' + b"1," * (3 * MB) + b"1]}",
        "too many JSON values",
    ),
    "a config": ("config.json", lambda: b'{"x":' + b"[" * (7 * MB), "too many JSON values"),
    "an index": (
        "model.safetensors.index.json",
        lambda: b'{"weight_map":{' + b",".join(b'"t%d":"%d.safetensors"' % (i, i) for i in range(190_000)) + b"}}",
        "190000 files",
    ),
}


@pytest.mark.skipif(EMULATED, reason="counts the emulator's memory too")
@pytest.mark.parametrize("name, data, says", JSON.values(), ids=JSON)
def test_json(tmp_path, name, data, says):
    folder = write_model(tmp_path / "model")
    (folder / name).write_bytes(data())
    assert says in "".join(info(folder))


def text(data):
    return struct.pack("<Q", len(data)) + data


def value(key, kind, data):
    return text(key) + struct.pack("<I", kind) + data


def strings(count, each):
    return struct.pack("<IQ", 8, count) + each * count


EMOJI = "\U0001f600".encode()  # a string with one takes 4 bytes for each of its characters
GGUF = {
    "a string": ([value(b"x", 8, text(EMOJI + b"a" * (60 * MB)))], "expected at most 4194304"),
    "strings": ([value(b"x%d" % i, 8, text(EMOJI * (MB // 4))) for i in range(50)], "4194304 bytes of text"),
    "an array": ([value(b"x", 9, struct.pack("<IQ", 0, 60 * MB) + b"\0" * (60 * MB))], "no tensors"),
    "a list": ([value(b"x", 9, strings(990_000, text(b"a" * 50)))], "no tensors"),
    "a count": ([value(b"x", 9, struct.pack("<IQ", 8, 1 << 60))], "strings, expected at most"),
    "keys": ([value(b"x%d" % i, 4, b"\0\0\0\0") for i in range(4000)], "no tensors"),
}


@pytest.mark.skipif(EMULATED, reason="counts the emulator's memory too")
@pytest.mark.parametrize("values, says", GGUF.values(), ids=GGUF)
def test_gguf(tmp_path, values, says):
    values = [value(b"general.architecture", 8, text(b"llama")), *values]
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(values)) + b"".join(values))
    assert says in info(path)[1]


def test_special_tokens_of_a_gguf_are_counted_before_they_become_objects():
    import numpy as np

    from pyllama.errors import TokenizerError
    from pyllama.tokenizer import gguf

    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.tokens": ["a"] * 70_000,
        "tokenizer.ggml.token_type": np.full(70_000, 3),
    }
    with pytest.raises(TokenizerError, match="70000 tokens are control or user-defined ones, expected at most 65536"):
        gguf.read(metadata, "f")


@pytest.mark.skipif(EMULATED, reason="counts the emulator's memory too")
def test_the_largest_vocabularies_still_load(tmp_path):
    """As many tokens and bytes as Gemma 3's: 262,144 tokens, 514,906 merges, 33 MB."""
    import json

    folder = write_model(tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    pairs = [(a, b) for a in list(vocab)[33:126] for b in list(vocab)[:256]]
    merges = []
    for a, b in pairs * 11:
        left = a if a + b not in vocab else a + b
        if len(vocab) < 262_144 and left + b not in vocab:
            vocab[left + b] = len(vocab)
            merges.append([left, b])
    tokenizer["model"]["vocab"] = vocab
    tokenizer["model"]["merges"] = (merges * (514_906 // max(1, len(merges)) + 1))[:514_906]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=4))
    assert (folder / "tokenizer.json").stat().st_size > 25 * MB
    printed = info(folder)[0]
    assert "too many" not in printed and "expected an entry" not in printed
