"""Mixtures: which tensor gets which format under the names that people know."""

import pytest

from pyllama.checkpoint.dtypes import DTYPES
from pyllama.errors import RequestError
from pyllama.quantizing.types import FILE_TYPES, NAMES, file_type, tensor_types

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def shapes(layers, cols=4096, inner=11008, tied=False):
    found = {"token_embd.weight": (32000, cols), "output_norm.weight": (cols,)}
    if not tied:
        found["output.weight"] = (32000, cols)
    for i in range(layers):
        found[f"blk.{i}.attn_norm.weight"] = (cols,)
        found |= {f"blk.{i}.{name}.weight": (cols, inner if name == "ffn_down" else cols) for name in MATRICES}
    return found


def types(name, layers=32, groups=1, calibrated=False, architecture="llama", **sizes):
    return tensor_types(
        file_type(name), shapes(layers, **sizes), architecture=architecture, layers=layers, groups=groups,
        calibrated=calibrated,
    )  # fmt: skip


def of_kind(found, kind):
    return [dtype for name, dtype in found.items() if f".{kind}." in name]


def test_names_are_taken_however_they_are_written():
    assert file_type("q4_k").name == file_type("Q4_K_M").name == file_type("q4-k-m").name == "Q4_K_M"
    assert {file_type(name).name for name in NAMES} == set(FILE_TYPES)
    with pytest.raises(RequestError, match="type: 'q4_k_xl', expected one of f32, "):
        file_type("q4_k_xl")


def test_numbers_and_formats_are_those_of_the_field():
    numbers = [found.number for found in FILE_TYPES.values()]
    assert len(set(numbers)) == len(numbers)
    assert all(found.dtype in DTYPES for found in FILE_TYPES.values())
    known = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "Q6_K": 18, "IQ4_XS": 30, "BF16": 32}
    assert {name: FILE_TYPES[name].number for name in known} == known


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_float32_and_the_rest_has_one_format_but_for_the_rules(name):
    found = types(name)
    wanted = file_type(name)
    assert set(of_kind(found, "attn_norm")) == {"F32"} and found["output_norm.weight"] == "F32"
    assert found["token_embd.weight"] == wanted.dtype
    for kind in MATRICES:
        if kind not in wanted.rules:
            assert set(of_kind(found, kind)) == {wanted.dtype}, kind
    plain = wanted.dtype in ("F32", "F16", "BF16", "Q8_0")
    assert found["output.weight"] == (wanted.dtype if plain else "Q6_K")


def test_q4_k_m_gives_half_of_the_layers_more_bits():
    """The layers that published files of 32 layers have in Q6_K."""
    finer = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    found = types("q4_k_m")
    for kind in ("attn_v", "ffn_down"):
        assert [i for i, dtype in enumerate(of_kind(found, kind)) if dtype == "Q6_K"] == finer
        assert set(of_kind(found, kind)) == {"Q4_K", "Q6_K"}


def test_the_other_mixtures():
    assert of_kind(types("q3_k_m"), "attn_v") == ["Q5_K"] * 2 + ["Q4_K"] * 30
    assert of_kind(types("q3_k_m"), "ffn_down") == ["Q5_K"] * 2 + ["Q4_K"] * 30
    assert set(of_kind(types("q3_k_m"), "attn_output")) == {"Q4_K"}
    assert set(of_kind(types("q3_k_l"), "ffn_down")) == {"Q5_K"}
    assert set(of_kind(types("q3_k_s"), "ffn_down")) == {"Q3_K"}
    assert of_kind(types("q4_k_s"), "attn_v") == ["Q5_K"] * 4 + ["Q4_K"] * 28
    assert of_kind(types("q4_k_s"), "ffn_down") == ["Q5_K"] * 4 + ["Q4_K"] * 28
    assert set(of_kind(types("q2_k"), "attn_v")) == {"Q3_K"}
    assert set(of_kind(types("q2_k", groups=4), "attn_v")) == {"Q4_K"}
    assert set(of_kind(types("iq4_xs", groups=8), "attn_v")) == {"Q5_K"}
    assert of_kind(types("iq4_xs"), "ffn_down") == ["Q5_K"] * 4 + ["IQ4_XS"] * 28
    assert set(of_kind(types("iq4_xs", calibrated=True), "ffn_down")) == {"IQ4_XS"}
    assert of_kind(types("q4_0", calibrated=True), "ffn_down") == ["Q4_1"] * 4 + ["Q4_0"] * 28
    assert set(of_kind(types("q4_0"), "ffn_down")) == {"Q4_0"}


def test_eighty_layers_get_finer_values():
    assert set(of_kind(types("q4_k_m", layers=80, groups=8), "attn_v")) == {"Q5_K", "Q6_K"}
    assert set(of_kind(types("q4_k_m", layers=80, groups=8, architecture="qwen3"), "attn_v")) == {"Q4_K", "Q6_K"}


def test_an_embedding_that_is_the_head_is_stored_as_a_head():
    assert types("q4_k_m", tied=True)["token_embd.weight"] == "Q6_K"
    assert types("q8_0", tied=True)["token_embd.weight"] == "Q8_0"


def test_columns_that_are_no_whole_blocks_take_the_next_format():
    found = types("q4_k_m", cols=896, inner=4864, layers=24)  # Qwen2.5 0.5B
    assert set(of_kind(found, "attn_q")) == {"Q5_0"} and set(of_kind(found, "attn_v")) == {"Q5_0", "Q8_0"}
    assert set(of_kind(found, "ffn_down")) == {"Q4_K", "Q6_K"} and found["output.weight"] == "Q8_0"
    for name, dtype in (
        ("q2_k", "Q4_0"),
        ("q3_k_s", "Q4_0"),
        ("q5_k_s", "Q5_1"),
        ("q6_k", "Q8_0"),
        ("iq4_xs", "IQ4_NL"),
    ):
        assert set(of_kind(types(name, cols=896), "attn_q")) == {dtype}
    assert set(of_kind(types("q8_0", cols=40), "attn_q")) == {"F16"}
