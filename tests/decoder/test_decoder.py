"""The decoder: the same bits for any cut into passes, any company, any storage; and its errors."""

import json

import numpy as np
import pytest
import reference
import tiny
from ways import as_before, every_way

from pyllama import _kernels as kernels
from pyllama.architecture import FAMILIES, layers_of
from pyllama.architecture.config import RopeScaling
from pyllama.architecture.layer import Rope, llama_layers
from pyllama.checkpoint import open_checkpoint
from pyllama.decoder import Decoder
from pyllama.errors import ContextOverflowError, RequestError
from pyllama.streaming import StreamedWeights

IDS = [1, *((7 * i * i + 3 * i) % 101 for i in range(47))]


def decoder_of(path, **options):
    checkpoint = open_checkpoint(path)
    options.setdefault("context_length", 128)
    return Decoder(
        checkpoint.config, StreamedWeights(checkpoint), rope_interleaved=checkpoint.rope_interleaved, **options
    )


def all_logits(decoder, ids=IDS):
    with decoder.new_sequence() as sequence:
        return decoder.forward([(sequence, ids)], "all")


def plain_tensors(checkpoint):
    """Name -> float64, as the reference takes them."""
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        raw = checkpoint.read_rows(tensor, 0, tensor.rows)
        tensors[name] = np.asarray(tiny.decode_plain(tensor.dtype, raw.tobytes()), np.float64).reshape(tensor.shape)
    return tensors


def same_bits(a, b):
    return a.shape == b.shape and bool((a.view(np.uint32) == b.view(np.uint32)).all())


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def folder(request, tmp_path_factory):
    config = tiny.tiny_config(model_type=request.param)
    path = tmp_path_factory.mktemp(request.param)
    tiny.write_huggingface(path, config, tiny.random_tensors(config, seed=1), dtype="BF16")
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The same weights, exact in bfloat16, in every container and plain dtype."""
    config = tiny.tiny_config()
    tensors = tiny.random_tensors(config, seed=2)
    root = tmp_path_factory.mktemp("llama")
    for dtype in ("BF16", "F32"):
        tiny.write_huggingface(root / f"hf-{dtype}", config, tensors, dtype=dtype)
        tiny.write_gguf(root / f"{dtype}.gguf", config, tensors, dtype=dtype)
    tiny.write_huggingface(root / "hf-shards", config, tensors, dtype="BF16", shards=3)
    tiny.write_meta(root / "meta", config, tensors)
    return root


def test_prefill_is_step_by_step_to_the_bit(folder):
    decoder = decoder_of(folder)
    whole = all_logits(decoder)
    with decoder.new_sequence() as sequence:
        steps = np.concatenate([decoder.forward([(sequence, [i])]) for i in IDS])
    assert same_bits(whole, steps)
    with decoder.new_sequence() as sequence:
        cuts = [IDS[:5], IDS[5:6], IDS[6:30], IDS[30:]]
        assert same_bits(whole, np.concatenate([decoder.forward([(sequence, ids)], "all") for ids in cuts]))


def test_passes_made_again_from_a_recording_have_the_bits_of_those_asked_for(folder):
    recording, asking = decoder_of(folder), decoder_of(folder)
    asking.on_input = lambda names, x: None  # who listens is told by asking for each product
    steps = [IDS[:1], IDS[1:2], IDS[2:4], IDS[4:6], IDS[6:7], IDS[7:20], IDS[20:21], IDS[21:24], IDS[24:27]]
    found = []
    for decoder in (recording, asking):
        with decoder.new_sequence() as sequence, decoder.new_sequence() as other:
            logits = [decoder.forward([(sequence, ids)], "all") for ids in steps]
            logits += [decoder.forward([(sequence, [5]), (other, [6])], "all") for _ in range(3)]
        found.append(np.concatenate(logits))
    assert same_bits(*found)
    plain = [number for number, layer in enumerate(recording._layers) if layer.repeatable]
    # As many tokens as passes had after the buffers last grew, for the 13.
    assert set(recording._buffers.recordings) == {(number, tokens) for number in plain for tokens in (1, 2, 3)}
    assert not asking._buffers.recordings
    if recording.config.model_type in ("llama", "qwen2", "qwen3", "gemma3_text", "phi3"):
        assert len(plain) == len(recording._layers)


def test_threads_and_isa_change_no_bit(folder):
    results = [all_logits(decoder_of(folder)) for _ in every_way()]
    with as_before():
        kernels.set_num_threads(2)
        results.append(all_logits(decoder_of(folder)))
    assert all(same_bits(results[0], other) for other in results)


def test_company_changes_no_bit(folder):
    decoder = decoder_of(folder)
    alone = all_logits(decoder)
    with decoder.new_sequence() as a, decoder.new_sequence() as b, decoder.new_sequence() as c:
        decoder.forward([(b, IDS[::-1][:11]), (c, IDS[3:4])])
        first = decoder.forward([(b, IDS[:3]), (a, IDS[:20]), (c, [5])], "all")[3:23]
        second = decoder.forward([(a, IDS[20:]), (b, [9])], "all")[:28]
    assert same_bits(alone, np.concatenate([first, second]))


def test_last_is_the_last_row_of_each_segment(folder):
    decoder = decoder_of(folder)
    with decoder.new_sequence() as a, decoder.new_sequence() as b:
        every = decoder.forward([(a, IDS[:7]), (b, IDS[7:10])], "all")
        a.truncate(0)
        b.truncate(0)
        last = decoder.forward([(a, IDS[:7]), (b, IDS[7:10])])
    assert same_bits(last, every[[6, 9]])


def test_container_and_plain_dtype_change_no_bit(llama):
    expected = all_logits(decoder_of(llama / "hf-BF16"))
    for other in ("hf-F32", "hf-shards", "BF16.gguf", "F32.gguf", "meta"):
        assert same_bits(expected, all_logits(decoder_of(llama / other))), other


def test_truncation_forgets(folder):
    decoder = decoder_of(folder)
    whole = all_logits(decoder)
    with decoder.new_sequence() as sequence:
        for keep in (40, 33, 32, 31, 1, 0):
            decoder.forward([(sequence, [3] * 7 + IDS[:40])] if sequence.length == 0 else [(sequence, [3] * 5)])
            sequence.truncate(0)
            sequence.mark(keep + 1, exactly=True)  # layers that carry a state go back to one that was kept
            decoder.forward([(sequence, IDS)])
            sequence.truncate(keep)
            assert same_bits(whole[keep:], decoder.forward([(sequence, IDS[keep:])], "all")), keep
            sequence.truncate(0)


def test_the_cache_grows_with_use_and_pages_are_reused(folder):
    decoder = decoder_of(folder)
    assert decoder.cache.pool.nbytes == 0
    with decoder.new_sequence() as sequence:
        decoder.forward([(sequence, IDS[:32])])
        assert decoder.cache.pool.nbytes == decoder.cache.page_nbytes
        decoder.forward([(sequence, IDS[:1])])
        assert decoder.cache.pool.nbytes == 2 * decoder.cache.page_nbytes
    with decoder.new_sequence() as sequence:
        decoder.forward([(sequence, IDS)])
        assert decoder.cache.pool.nbytes == 2 * decoder.cache.page_nbytes


def test_float16_cache_is_near_float32_and_not_it(folder):
    f16, f32 = all_logits(decoder_of(folder)), all_logits(decoder_of(folder, kv_dtype="f32"))
    assert not same_bits(f16, f32)
    assert np.abs(f16 - f32).max() < 2e-3 * np.abs(f32).max()


@pytest.mark.parametrize("dtype", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_weights_are_what_their_blocks_stand_for(tmp_path, dtype):
    """A quantized file's logits are those of a float32 file that holds what the blocks stand for, but for what 16 bits
    leave of activations: half of 1/32639 of the largest of 32. Random weights make much of little, so: on average."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = tiny.tiny_config(**sizes, head_dim=16)
    tensors = tiny.random_tensors(config, seed=3)
    tiny.write_gguf(tmp_path / "q.gguf", config, tensors, dtype=dtype)
    checkpoint = open_checkpoint(tmp_path / "q.gguf")
    widened = {}
    for name, tensor in checkpoint.tensors.items():
        raw = checkpoint.read_rows(tensor, 0, tensor.rows)
        plain = tensor.dtype in ("F32", "F16", "BF16")
        values = tiny.decode_plain(tensor.dtype, raw.tobytes()) if plain else tiny.dequantize(tensor.dtype, raw)
        values = np.asarray(values, np.float32).reshape(tensor.shape)
        for proj, heads in (("q_proj.weight", 4), ("k_proj.weight", 2)):
            if name.endswith(proj):  # back from interleaved rows
                values = values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        widened[name] = values
    assert {t.dtype for t in checkpoint.tensors.values()} == {dtype, "F32"}
    tiny.write_huggingface(tmp_path / "hf", config, widened, dtype="F32")
    got, expected = all_logits(decoder_of(tmp_path / "q.gguf")), all_logits(decoder_of(tmp_path / "hf"))
    assert np.abs(got - expected).mean() < 2 / 32639 * np.abs(expected).max()
    assert (got.argmax(1) == expected.argmax(1)).all()


def test_layers_may_rotate_each_in_its_own_way(tmp_path, monkeypatch):
    """No family here has two kinds of rotation yet: one is made up of a family that has one."""
    config = tiny.tiny_config(num_hidden_layers=3)
    tiny.write_huggingface(tmp_path, config, tiny.random_tensors(config, seed=1), dtype="F32")
    local = Rope(500.0, 8, RopeScaling("linear", factor=4.0))

    def layers(family, config):
        first, second, third = llama_layers(config)
        return first, second._replace(mixer=second.mixer._replace(rope=local._replace(dim=config.head_dim))), third

    monkeypatch.setattr(type(FAMILIES["llama"]), "layers", layers)
    layers_of.cache_clear()
    try:
        decoder = decoder_of(tmp_path, kv_dtype="f32")
    finally:
        monkeypatch.undo()
        layers_of.cache_clear()
    assert len(decoder.shape.rotated) == 2
    with open_checkpoint(tmp_path) as checkpoint:
        tensors = plain_tensors(checkpoint)
        plainly = (checkpoint.config.rope_theta, checkpoint.config.rope_scaling)
        ropes = [plainly, (local.theta, local.scaling), plainly]
        expected = reference.forward(checkpoint.config, tensors, IDS, ropes=ropes)
        otherwise = reference.forward(checkpoint.config, tensors, IDS)
    scale = np.abs(expected).max()
    assert np.abs(all_logits(decoder, IDS) - expected).max() <= 1e-5 * scale
    assert np.abs(otherwise - expected).max() > 1e-2 * scale


def test_near_the_float64_reference(folder):
    checkpoint = open_checkpoint(folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = tiny.random_tensors(config, 1) if config["model_type"] in tiny.RECURRENT else plain_tensors(checkpoint)
    named = tiny.as_stacks(tensors)
    if config["model_type"] == "granitemoe":  # as the class in transformers has them
        ours = ("mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj")
        for stem, theirs in zip(ours, reference.expert_names("granitemoe"), strict=True):
            named = {name.replace(stem, theirs): values for name, values in named.items()}
    expected = reference.forward(checkpoint.config, named, IDS)
    got = all_logits(decoder_of(folder, kv_dtype="f32"))
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_full_context_is_an_error_and_changes_nothing(folder):
    decoder = decoder_of(folder, context_length=40)
    with decoder.new_sequence() as sequence:
        decoder.forward([(sequence, IDS[:38])])
        with pytest.raises(ContextOverflowError, match="41 positions asked for, 40 held"):
            decoder.forward([(sequence, IDS[:3])])
        assert sequence.length == 38
        decoder.forward([(sequence, IDS[:2])])
        assert sequence.length == 40


def test_a_pass_that_fails_changes_nothing(folder):
    decoder = decoder_of(folder)
    whole = all_logits(decoder)
    good = decoder.weights.resident

    def failing(*names):
        if names[-1].endswith("layers.1.self_attn.o_proj.weight"):
            raise OSError("gone")
        return good(*names)

    with decoder.new_sequence() as sequence:
        decoder.forward([(sequence, IDS[:10])])
        decoder.weights.resident = failing
        with pytest.raises(OSError, match="gone"):
            decoder.forward([(sequence, IDS[::-1])])
        decoder.weights.resident = good
        assert sequence.length == 10
        assert same_bits(whole[10:], decoder.forward([(sequence, IDS[10:])], "all"))


def test_bad_requests(folder):
    decoder = decoder_of(folder, max_pass_tokens=8)
    with decoder.new_sequence() as sequence:
        for batch, options in (
            ([], {}),
            ([(sequence, [])], {}),
            ([(sequence, [101])], {}),
            ([(sequence, [-1])], {}),
            ([(sequence, [1]), (sequence, [2])], {}),
            ([(sequence, [1] * 9)], {}),
            ([(sequence, [1])], {"logits": "some"}),
        ):
            with pytest.raises(RequestError):
                decoder.forward(batch, **options)
        with pytest.raises(RequestError):
            sequence.truncate(1)
        assert sequence.length == 0 and decoder.passes == 0
    with pytest.raises(RequestError):
        decoder_of(folder, kv_dtype="f8")
    with pytest.raises(RequestError):
        decoder_of(folder, context_length=0)


def test_prefill_takes_as_few_passes_as_it_can(folder):
    decoder = decoder_of(folder, max_pass_tokens=20)
    with decoder.new_sequence() as sequence:
        last = decoder.prefill(sequence, IDS)
    assert decoder.passes == 3
    assert same_bits(last[None], all_logits(decoder_of(folder))[-1:])
