"""Gemma 4: what its files say in more than one way, what they hold and nobody uses, and rows that are not computed."""

import json

import numpy as np
import pytest
import tiny

from pyllama.architecture.config import FullAttention
from pyllama.architecture.tensors import PER_LAYER_EMBEDDING, tensor_shapes
from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.huggingface_config import huggingface_config
from pyllama.checkpoint.outline import outline
from pyllama.decoder import Decoder, Shape
from pyllama.decoder.page_pool import cache_nbytes
from pyllama.errors import CheckpointError, UnsupportedError
from pyllama.planning.memory import make_plan
from pyllama.quantizing import quantize
from pyllama.streaming import StreamedWeights

E2B = tiny.tiny_config(model_type="gemma4_text")
B12 = tiny.tiny_config(model_type="gemma4_unified_text")


@pytest.mark.parametrize("config", [E2B, B12], ids=["e2b", "12b"])
def test_overrides_by_layer_say_what_global_sizes_say(config):
    """transformers reads `global_head_dim` and writes `per_layer_config`."""
    own = {"head_dim": config["global_head_dim"]}
    if config.get("num_global_key_value_heads"):
        own["num_key_value_heads"] = config["num_global_key_value_heads"]
    full = [str(i) for i, kind in enumerate(config["layer_types"]) if kind == "full_attention"]
    without = {k: v for k, v in config.items() if k not in ("global_head_dim", "num_global_key_value_heads")}
    assert huggingface_config(without | {"per_layer_config": {key: own for key in full}}) == huggingface_config(config)
    many = without | {"num_hidden_layers": 12, "layer_types": ["full_attention"] * 12, "num_kv_shared_layers": 0}
    padded = huggingface_config(many | {"per_layer_config": {f"{i:02}": own for i in range(12)}})  # as it is written
    assert padded == huggingface_config(many | {"per_layer_config": {str(i): own for i in range(12)}})
    for wrong in ({full[0]: own | {"sliding_window": 3}}, {"0": own}, {key: {"q": 1} for key in full}):
        with pytest.raises(UnsupportedError, match="per_layer_config"):
            huggingface_config(without | {"per_layer_config": wrong})


def test_the_text_model_of_one_that_sees():
    outer = {"model_type": "gemma4", "architectures": ["Gemma4ForConditionalGeneration"], "text_config": E2B}
    assert huggingface_config(outer) == huggingface_config(E2B)
    outer = {"model_type": "gemma4_unified", "architectures": ["Gemma4UnifiedForConditionalGeneration"]}
    assert huggingface_config({**outer, "text_config": B12}) == huggingface_config(B12)


def test_what_a_config_leaves_out_is_what_the_class_has():
    config = huggingface_config({"model_type": "gemma4_text", "num_hidden_layers": 12})
    assert config.full_attention == FullAttention(512, 4) and config.head_dim == 256
    assert config.layer_windows == ((512,) * 5 + (None,)) * 2
    assert config.hidden_size_per_layer_input == 256 and config.sliding_rope == (10000.0, None)
    assert config.rope_scaling.factors.count(1.0) == 64 and len(config.rope_scaling.factors) == 256


@pytest.mark.parametrize(
    "change, message",
    [
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
        ({"enable_moe_block": True}, "num_experts: got nothing"),
        ({**tiny.GEMMA4_MIXTURE, "top_k_experts": 6}, "at most num_experts 5"),
        ({"vocab_size_per_layer_input": 7}, "vocab_size_per_layer_input: got 7, expected vocab_size 101"),
        ({"num_kv_shared_layers": 4}, "num_kv_shared_layers"),
        ({"num_kv_shared_layers": 3}, "expected a layer of each kind"),
        ({"global_head_dim": 15}, "global_head_dim"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
    ],
)
def test_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        huggingface_config(E2B | change)


def test_keys_of_layers_that_share_are_left_alone(tmp_path):
    """Published files have them: the class ignores them, and so does llama.cpp."""
    tensors = tiny.random_tensors(E2B, seed=1)
    unused = {
        f"model.layers.3.self_attn.{name}.weight": np.ones(shape, np.float32)
        for name, shape in (("k_proj", (48, 48)), ("v_proj", (48, 48)), ("k_norm", (16,)))
    }
    for path in (
        tiny.write_huggingface(tmp_path / "folder", E2B, tensors | unused),
        tiny.write_gguf(tmp_path / "model.gguf", E2B, tensors | unused),
    ):
        with open_checkpoint(path) as checkpoint:
            assert not unused.keys() & checkpoint.tensors.keys()
    own = {"model.layers.1.self_attn.v_norm.weight": np.ones(16, np.float32)}
    with pytest.raises(CheckpointError, match="v_norm"):
        open_checkpoint(tiny.write_huggingface(tmp_path / "other", E2B, tensors | own))


def test_embeddings_for_each_layer_are_no_part_of_what_a_plan_keeps():
    config = huggingface_config(json.loads(json.dumps(E2B)) | {"hidden_size_per_layer_input": 64})
    model = outline(config, "BF16")
    plan = make_plan(model, 1 << 30, context_length=64)
    rows = model.tensors[PER_LAYER_EMBEDDING].nbytes
    assert plan.stored == sum(t.nbytes for t in model.tensors.values() if len(t.shape) == 2) - rows
    assert tensor_shapes(config)[PER_LAYER_EMBEDDING] == (101, 4 * 64)


def test_a_layer_that_shares_has_no_room_in_a_page():
    """Two of four layers have keys and values: heads of 8 and of 16 elements, whose values take whole panels of 32."""
    shape = Shape.whole(huggingface_config(E2B))
    assert cache_nbytes(shape, 32, "f16") == sum(3 * 32 * 2 * (dim + 32) for dim in (8, 16))


def test_rows_nobody_asks_for_are_not_computed_where_nobody_reads_them(tmp_path):
    tensors = tiny.random_tensors(E2B, seed=2)
    with open_checkpoint(tiny.write_huggingface(tmp_path, E2B, tensors)) as checkpoint:
        decoder = Decoder(checkpoint.config, StreamedWeights(checkpoint), context_length=128)
        ids = [1, *range(3, 60)]
        with decoder.new_sequence() as one, decoder.new_sequence() as other:
            every = decoder.forward([(one, ids)], "all")
            seen: dict[str, int] = {}
            decoder.on_input = lambda names, rows: seen.update(dict.fromkeys(names, len(rows)))
            for wanted in (1, 3, 0):
                other.truncate(0)
                out, _ = decoder.extend([(other, ids)], [wanted])
                assert np.array_equal(out, every[len(ids) - wanted :])
                assert seen["model.layers.1.mlp.gate_proj.weight"] == len(ids)
                assert seen["model.layers.2.mlp.gate_proj.weight"] == wanted
            step = decoder.forward([(other, [7])])
            decoder.on_input = None
            assert np.array_equal(step, decoder.forward([(one, [7])]))


@pytest.mark.filterwarnings("ignore::pyllama.quantizing.warning.QuantizeWarning")
@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_a_mixture_is_written_as_it_was_read(tmp_path, form):
    """Gate and up of a layer's experts are one tensor in both forms, two in what is written: llama.cpp takes either."""
    config = tiny.tiny_config(**tiny.GEMMA4_MIXTURE)
    tensors = tiny.random_tensors(config, seed=3)
    if form == "folder":
        source = tiny.write_huggingface(tmp_path / "source", config, tensors)
    else:
        extra = {"tokenizer.ggml.model": "none"}
        source = tiny.write_gguf(tmp_path / "source.gguf", config, tensors, extra=extra)
    made = quantize(source, tmp_path / "made.gguf", "f32")
    found = []
    for path in (source, made):
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.config.mixture.num_experts == 5 and checkpoint.config.hidden_size_per_layer_input == 0
            decoder = Decoder(checkpoint.config, StreamedWeights(checkpoint), context_length=64)
            with decoder.new_sequence() as sequence:
                found.append(decoder.forward([(sequence, list(range(3, 40)))], "all"))
    assert np.array_equal(*found)
