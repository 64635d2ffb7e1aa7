"""Importance of columns: collected by passes over a text, kept beside the file, read in llama.cpp's forms."""

import importlib
import io
import json
import os
import struct

import conftest
import numpy as np
import pytest
import reference
import tiny

from pyllama import _kernels, load
from pyllama.checkpoint import open_checkpoint
from pyllama.cli import main
from pyllama.errors import CheckpointError, RequestError, TokenizerError
from pyllama.packing.pack import pack
from pyllama.quantizing import calibration, quantize
from pyllama.quantizing.importance import importance_bytes, read_importance
from pyllama.terminal.progress import Progress

CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
TEXT = "hello and hello, and the 12 words. " * 60
LAYERS = 2
ONE = np.array([1])
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    return conftest.write_model(folder, **CONFIG)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(calibration, "WINDOW", 64)
    monkeypatch.setattr(calibration, "STATE_S", -1.0)


def collected(tmp_path, source, text, name="made.gguf", **options):
    quantize(source, tmp_path / name, "q4_0", calibration=text, **options)
    return tmp_path / (name + calibration.SUFFIX)


def test_importance_is_the_mean_of_squares_of_what_is_multiplied(tmp_path, source, text, small_windows):
    found = read_importance(collected(tmp_path, source, text))
    assert set(found.columns) == {f"blk.{i}.{name}.weight" for i in range(LAYERS) for name in MATRICES}
    assert found.datasets == ("text.txt",)
    seen: dict[str, list[np.ndarray]] = {}
    with load(source, memory="4G", context_length=64) as model:
        ids = model.tokenizer.encode(TEXT, add_special_tokens=False)
        whole = len(ids) // 64
        model.decoder.on_input = lambda names, rows: seen.setdefault(names[0], []).append(rows.astype(np.float64))
        for i in range(whole):
            sequence = model.decoder.new_sequence()
            model.decoder.prefill(sequence, ids[64 * i : 64 * i + 64])
            sequence.close()
        for name, rows in seen.items():
            if name == "lm_head.weight":
                continue
            expected = np.square(np.concatenate(rows)).mean(axis=0)
            np.testing.assert_allclose(found.columns[tiny.gguf_name(name)], expected, rtol=1e-6)
        assert found.metadata["imatrix.chunk_count"] == whole
        # The first layer's input, apart from the decoder: the normed embeddings.
        with open_checkpoint(source) as checkpoint:
            embedding, norm = (
                tiny.decode_plain("BF16", checkpoint.read_rows(t, 0, t.rows).tobytes()).reshape(t.shape)
                for t in map(
                    checkpoint.tensors.get, ("model.embed_tokens.weight", "model.layers.0.input_layernorm.weight")
                )
            )
            normed = reference.rmsnorm(embedding[ids[: 64 * whole]], norm, checkpoint.config.rms_norm_eps)
        np.testing.assert_allclose(found.columns["blk.0.attn_k.weight"], (normed**2).mean(axis=0), rtol=1e-5)
    for i in range(LAYERS):
        same = [found.columns[f"blk.{i}.{name}.weight"].tobytes() for name in MATRICES]
        assert same[0] == same[1] == same[2] and same[4] == same[5]


def test_the_importance_is_what_the_blocks_are_made_with(tmp_path, source, text, small_windows):
    found = read_importance(collected(tmp_path, source, text))
    plain = quantize(source, tmp_path / "plain.gguf", "f32")
    used = 0
    with open_checkpoint(tmp_path / "made.gguf") as made, open_checkpoint(plain) as weights:
        assert made.metadata["quantize.imatrix.dataset"] == "text.txt"
        for name, tensor in made.tensors.items():
            if tensor.dtype not in ("Q4_0", "Q4_1"):
                continue
            rows = weights.read_rows(weights.tensors[name], 0, tensor.rows).view(np.float32)
            out = np.empty(tensor.nbytes, np.uint8)
            columns = found.columns.get(tiny.gguf_name(name))
            _kernels.quantize(tensor.dtype, rows, columns, out)
            assert made.read_rows(tensor, 0, tensor.rows).tobytes() == out.tobytes(), name
            _kernels.quantize(tensor.dtype, rows, None, out)
            used += made.read_rows(tensor, 0, tensor.rows).tobytes() != out.tobytes()
    assert used >= LAYERS * 4  # it makes a difference


def test_neither_threads_nor_memory_change_it(tmp_path, source, text, small_windows):
    first = collected(tmp_path, source, text, threads=1)
    with open_checkpoint(source) as checkpoint:
        nbytes = checkpoint.nbytes
    assert nbytes
    other = collected(tmp_path, source, text, "other.gguf", threads=3, memory="2G")
    assert first.read_bytes() == other.read_bytes()
    assert (tmp_path / "made.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()


def test_it_goes_on_from_the_window_it_had_come_to(tmp_path, source, text, small_windows, monkeypatch):
    expected = collected(tmp_path, source, text)
    passes = []
    real = calibration._Sums.add

    def add(self, names, rows):
        if names[0] == "model.layers.0.self_attn.q_proj.weight":
            passes.append(len(rows))
            if len(passes) == 5:
                raise KeyboardInterrupt
        real(self, names, rows)

    monkeypatch.setattr(calibration._Sums, "add", add)
    with pytest.raises(KeyboardInterrupt):
        collected(tmp_path, source, text, "other.gguf")
    again = collected(tmp_path, source, text, "other.gguf")
    assert again.read_bytes() == expected.read_bytes()
    assert len(passes) == 1 + read_importance(again).metadata["imatrix.chunk_count"]
    # A damaged state is not gone on from.
    (tmp_path / "other.gguf").unlink()
    again.unlink()
    passes.clear()
    with pytest.raises(KeyboardInterrupt):
        collected(tmp_path, source, text, "other.gguf")
    state = tmp_path / "other.gguf.quantizing" / calibration.STATE
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    assert collected(tmp_path, source, text, "other.gguf").read_bytes() == expected.read_bytes()


def test_what_was_collected_is_not_collected_again(tmp_path, source, text, small_windows, monkeypatch):
    beside = collected(tmp_path, source, text)
    made = (tmp_path / "made.gguf").read_bytes()
    (tmp_path / "made.gguf").unlink()
    monkeypatch.setattr(calibration, "load", None)
    collected(tmp_path, source, text)
    assert (tmp_path / "made.gguf").read_bytes() == made
    # For another type, by its name; the blocks are the same, the key/values name the file.
    quantize(source, tmp_path / "other.gguf", "q4_0", imatrix=beside)
    with open_checkpoint(tmp_path / "other.gguf") as other, open_checkpoint(tmp_path / "made.gguf") as first:
        assert other.metadata["quantize.imatrix.file"] == beside.name
        for name, tensor in first.tensors.items():
            theirs = other.read_rows(other.tensors[name], 0, tensor.rows)
            assert np.array_equal(first.read_rows(tensor, 0, tensor.rows), theirs)
    (tmp_path / "made.gguf").unlink()
    text.write_text(TEXT + "more", encoding="utf-8")
    with pytest.raises(RequestError, match=r"made.gguf.imatrix.gguf: already there, of another text or model"):
        collected(tmp_path, source, text)


def legacy(columns: dict[str, np.ndarray], calls: int = 3) -> bytes:
    out = [struct.pack("<i", len(columns))]
    for name, values in columns.items():
        data = (values * calls).astype("<f4").tobytes()
        out.append(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values)) + data)
    return b"".join(out) + struct.pack("<ii", 7, 4) + b"text"


def test_both_forms_of_llama_cpp_are_read(tmp_path, source, text, small_windows):
    found = read_importance(collected(tmp_path, source, text))
    old = tmp_path / "old.dat"
    old.write_bytes(legacy(found.columns))
    again = read_importance(old)
    assert again.datasets == ("text",) and again.columns.keys() == found.columns.keys()
    for name, columns in found.columns.items():
        np.testing.assert_allclose(again.columns[name], columns, rtol=1e-6)
    assert quantize(source, tmp_path / "old.gguf", "q4_0", imatrix=old).exists()


def test_the_gguf_package_reads_what_is_kept(tmp_path, source, text, small_windows):
    gguf = pytest.importorskip("gguf")
    path = collected(tmp_path, source, text)
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    found = read_importance(path)
    for name, columns in found.columns.items():
        assert np.array_equal(tensors[f"{name}.in_sum2"] / tensors[f"{name}.counts"], columns)


def test_files_of_another_model_or_of_no_use_are_refused(tmp_path, source):
    path = tmp_path / "x.gguf"

    def refused(data: bytes, message: str, error=RequestError):
        path.write_bytes(data)
        with pytest.raises(error, match=message):
            quantize(source, tmp_path / "made.gguf", "q4_0", imatrix=path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "x.gguf"]

    name = "blk.0.attn_q.weight"
    meta = {"imatrix.datasets": [b"t"]}
    refused(importance_bytes({name: np.ones(32)}, {name: ONE}, meta), "attn_q.weight has 32 columns, expected 64")
    refused(
        importance_bytes({"blk.9.x": np.ones(64)}, {"blk.9.x": ONE}, meta), "no importance of a tensor of this model"
    )
    for value in (np.nan, np.inf, -1.0):
        data = importance_bytes({name: np.full(64, value)}, {name: ONE}, meta)
        refused(data, "an importance that is no number from 0 on", CheckpointError)
    refused(tiny.gguf_bytes({"general.type": "model"}, []), "general.type is 'model', not 'imatrix'", CheckpointError)
    refused(b"", "no importance matrix", CheckpointError)
    refused(b"\1\0\0\0\xff\xff\xff\x7fabc", "damaged, or no importance matrix", CheckpointError)
    whole = legacy({name: np.ones(64)})
    for cut in range(4, len(whole) - 12, 7):
        refused(whole[:cut], "importance matrix", CheckpointError)


def test_texts_that_are_none(tmp_path, source, text):
    def refused(message, path=text, error=RequestError, **options):
        with pytest.raises(error, match=message):
            quantize(source, tmp_path / "made.gguf", "q4_0", calibration=path, **options)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "text.txt"]

    refused("calibration: cannot open .*nowhere", tmp_path / "nowhere")
    refused("imatrix: given together with calibration", imatrix="x")
    text.write_bytes(b" \n")
    refused("calibration: .*text.txt: no text")
    text.write_bytes(b"ab\xff")
    refused("byte 2 is not UTF-8, expected text")
    text.write_text(TEXT)
    os.unlink(source / "tokenizer.json")
    with pytest.warns(UserWarning, match="no tokenizer"):
        refused("no tokenizer, so no text", error=TokenizerError)


def test_what_takes_long_is_shown(tmp_path, source, text, small_windows):
    """On a terminal: a line for the calibration, and one for the blocks."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

        def fileno(self):
            raise OSError

    stream = Terminal()
    with Progress("quantizing", stream=stream) as progress, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", stream)
        collected(tmp_path, source, text, progress=progress)
    shown = stream.getvalue()
    for part in ("comparing tokenizers", "loading", "calibrating model", "layers", "100%"):
        assert part in shown, part


def test_a_short_text_is_one_window_and_the_command_takes_it(tmp_path, source, text, capsys):
    text.write_text("hello", encoding="utf-8")
    made = tmp_path / "made.gguf"
    arguments = ["quantize", str(source), str(made), "--type", "q4_k", "--calibration", str(text), "--quiet"]
    assert main(arguments) == 0 and capsys.readouterr().out == f"{made}\n"
    assert read_importance(tmp_path / "made.gguf.imatrix.gguf").metadata["imatrix.chunk_count"] == 1
    assert main([*arguments, "--imatrix", "x"]) == 2
    assert importlib.import_module("pyllama.quantizing.calibration").WINDOW == 512


# --- experts ---

EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


@pytest.fixture
def mixture(tmp_path):
    """A mixture that sends no token to expert 3 of layer 0."""
    folder = tmp_path / "mixture"
    folder.mkdir()
    more = {"model_type": "qwen3_moe", "moe_intermediate_size": 96, "num_experts": 6, "num_experts_per_tok": 2}
    conftest.write_model(folder, **CONFIG, **more)
    config = tiny.tiny_config(**json.loads((folder / "config.json").read_text()))
    tensors = tiny.random_tensors(config, seed=1)
    router = tensors["model.layers.0.mlp.gate.weight"]
    router[1] = router[3] = router[0]  # of three equals the lower two are chosen, if any
    tiny.write_huggingface(folder, config, tensors)
    return folder


def test_importance_of_experts_is_that_of_the_tokens_that_go_to_them(tmp_path, mixture, text, small_windows):
    found = read_importance(collected(tmp_path, mixture, text))
    seen: dict[str, list[np.ndarray]] = {}
    with load(mixture, memory="4G", context_length=64) as model:
        ids = model.tokenizer.encode(TEXT, add_special_tokens=False)
        model.decoder.on_input = lambda names, rows: seen.setdefault(names[-1], []).append(rows.astype(np.float64))
        for i in range(len(ids) // 64):
            sequence = model.decoder.new_sequence()
            model.decoder.prefill(sequence, ids[64 * i : 64 * i + 64])
            sequence.close()
    assert not any("layers.0.mlp.experts.3." in name for name in seen)
    for layer in range(LAYERS):
        for stored, part in (("ffn_up_exps", "up_proj"), ("ffn_down_exps", "down_proj")):
            columns = found.columns[f"blk.{layer}.{stored}.weight"]
            rows = [seen.get(f"model.layers.{layer}.mlp.experts.{j}.{part}.weight", []) for j in range(6)]
            everything = np.concatenate([row for of_one in rows for row in of_one])
            for j, of_one in enumerate(rows):  # one without tokens is like all of them
                expected = np.square(np.concatenate(of_one) if of_one else everything).mean(axis=0)
                np.testing.assert_allclose(columns[j], expected, rtol=1e-5)
    assert found.columns["blk.1.ffn_gate_inp.weight"].shape == (64,)


def test_each_expert_is_quantized_by_its_own_importance(tmp_path, mixture, text, small_windows):
    quantize(mixture, tmp_path / "made.gguf", "q4_0", calibration=text)
    columns = read_importance(tmp_path / ("made.gguf" + calibration.SUFFIX)).columns
    with open_checkpoint(mixture) as before, open_checkpoint(tmp_path / "made.gguf") as after:
        for layer, number, part in ((0, 3, "gate"), (1, 0, "up"), (1, 5, "down")):
            name = f"model.layers.{layer}.mlp.experts.{number}.{part}_proj.weight"
            ours, theirs = before.tensors[name], after.tensors[name]
            raw = tiny.decode_plain("BF16", before.read_rows(ours, 0, ours.rows).tobytes()).reshape(ours.shape)
            expected = np.empty(theirs.nbytes, np.uint8)
            weights = columns[f"blk.{layer}.ffn_{part}_exps.weight"][number]
            _kernels.quantize(theirs.dtype, raw, np.ascontiguousarray(weights), expected)
            assert (after.read_rows(theirs, 0, theirs.rows).reshape(-1) == expected).all(), name
    pack(mixture, tmp_path / "packed")
    imatrix = tmp_path / ("made.gguf" + calibration.SUFFIX)
    quantize(tmp_path / "packed", tmp_path / "again.gguf", "q4_0", imatrix=imatrix)
    quantize(mixture, tmp_path / "given.gguf", "q4_0", imatrix=imatrix)
    with open_checkpoint(tmp_path / "again.gguf") as one, open_checkpoint(tmp_path / "given.gguf") as other:
        for name, tensor in one.tensors.items():
            theirs = other.tensors[name]
            assert (one.read_rows(tensor, 0, tensor.rows) == other.read_rows(theirs, 0, theirs.rows)).all(), name


def test_importance_of_another_number_of_experts_is_refused(tmp_path, mixture):
    path = tmp_path / "other.gguf"
    name = "blk.0.ffn_up_exps.weight"
    path.write_bytes(importance_bytes({name: np.ones((5, 64))}, {name: np.ones(5)}, {}))
    with pytest.raises(RequestError, match="is of 5 matrices, expected 6"):
        quantize(mixture, tmp_path / "made.gguf", "q4_0", imatrix=path)
