"""pyllama against transformers, by golden vectors: every architecture and feature as tiny models, and SmolLM2.

Tiny: logits within 1e-4 of the largest, 64 greedy tokens identical; cache in float32, as in transformers.
SmolLM2: greedy tokens identical until the oracle itself was nearly undecided. Its file is found through
PYLLAMA_SMOLLM2 or under the name `smollm2`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tiny
from golden import CASES, CONTEXT, FOLDER, Golden, load_case

from pyllama.checkpoint import Checkpoint, open_checkpoint
from pyllama.checkpoint.huggingface_config import huggingface_config
from pyllama.decoder import Decoder
from pyllama.errors import HubError, UnsupportedError
from pyllama.hub import resolve
from pyllama.streaming import StreamedWeights
from pyllama.tokenizer import load_tokenizer

TOLERANCE = 1e-4  # of the largest logit of a row
UNDECIDED = 1e-3  # a gap between the two best logits that another order of sums may turn around

# What the writers of the other forms can say: no biases in llama, no windows in qwen, yarn by factor alone.
AS_GGUF = [
    "lfm2_moe",
    "qwen35_moe",
    "gemma4_12b",
    "gemma4_26b",
    "gemma4_31b",
    "gemma4_e2b",
    "gpt_oss",
    "gpt_oss_mxfp4",
    "llama2",
    "llama31",
    "llama32",
    "llama_linear",
    "mistral_full",
    "mistral_window",
    "qwen2",
    "qwen25_yarn",
    "mixtral",
    "granite4",
    "granite4_nope",
    "granitemoe",
    "qwen3",
    "smollm2",
    "tinyllama",
]
AS_META = ["llama2", "tinyllama"]


def decoder_of(checkpoint: Checkpoint, context_length: int = 128) -> Decoder:
    return Decoder(
        checkpoint.config.for_context(context_length),
        StreamedWeights(checkpoint),
        context_length=context_length,
        kv_dtype="f32",
        rope_interleaved=checkpoint.rope_interleaved,
    )


def all_logits(decoder: Decoder, token_ids: list[int]) -> np.ndarray:
    with decoder.new_sequence() as sequence:
        return decoder.forward([(sequence, token_ids)], "all")


# Experts input-first, as the class in transformers holds gpt-oss's, are not what its files have: those are MXFP4, whose
# products take activations of 16 bits (tests/checkpoint/test_mxfp4_folder.py).
AS_FOLDER = [name for name in CASES if not name.startswith("gpt_oss")]


@pytest.fixture(scope="module", params=AS_FOLDER)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Golden, Decoder]]:
    """A golden case and a decoder of its weights, read from a folder such as transformers 5 writes."""
    golden = load_case(request.param)
    folder = tmp_path_factory.mktemp(golden.name)
    tiny.write_huggingface(folder, golden.huggingface, golden.tensors)
    with open_checkpoint(folder) as checkpoint:
        yield golden, decoder_of(checkpoint)


def test_logits_are_those_of_transformers(case: tuple[Golden, Decoder]) -> None:
    golden, decoder = case
    logits = all_logits(decoder, golden.tokens)
    assert golden.error(logits) <= TOLERANCE
    exact = reference.forward(golden.config, golden.tensors, golden.tokens)  # every column, where golden has a few
    assert (np.abs(logits - exact).max(axis=-1) <= TOLERANCE * golden.largest).all()


def test_greedy_continuation_is_that_of_transformers(case: tuple[Golden, Decoder]) -> None:
    golden, decoder = case
    with decoder.new_sequence() as sequence:
        chosen = [int(decoder.prefill(sequence, golden.prompt).argmax())]
        while len(chosen) < len(golden.greedy):
            chosen.append(int(decoder.forward([(sequence, chosen[-1:])])[0].argmax()))
    assert chosen == golden.greedy


@pytest.mark.parametrize("name", CASES)
def test_configs_of_transformers_4_and_5_are_the_same(name: str) -> None:
    golden = load_case(name)
    if golden.config.model_type not in reference.GEMMA4:  # which transformers 4 never wrote
        assert "rope_theta" in golden.huggingface_v4
    assert "rope_parameters" in golden.huggingface
    assert huggingface_config(golden.huggingface_v4).for_context(CONTEXT) == golden.config


@pytest.mark.parametrize("name", CASES)
def test_yarn_attention_factor_is_resolved(name: str) -> None:
    golden = load_case(name)
    given = golden.huggingface_v4.get("rope_scaling") or {}
    if golden.config.rope_scaling and golden.config.rope_scaling.kind == "longrope":
        original = golden.config.rope_scaling.original_max_position_embeddings
        factor = golden.config.max_position_embeddings / original
        wanted = math.sqrt(1 + math.log(factor) / math.log(original))
        assert golden.config.rope_scaling.attention_factor == pytest.approx(wanted, rel=1e-15)
        assert wanted != 1.0
        return
    if golden.config.rope_scaling is None or golden.config.rope_scaling.kind != "yarn":
        assert reference.attention_factor(golden.config.rope_scaling) == 1.0
        return
    wanted = given.get("attention_factor") or reference.yarn_attention_factor(
        given["factor"], given.get("mscale"), given.get("mscale_all_dim")
    )
    assert golden.config.rope_scaling.attention_factor == wanted
    assert wanted != 1.0 or given["mscale"] == given["mscale_all_dim"]


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("name", ["llama1", "mistral_full", "qwen2", "qwen3"])
def test_scaling_that_depends_on_the_length_is_refused(name: str, kind: str) -> None:
    golden = load_case(name)
    scaling = {"rope_type": kind, "factor": 2.0}
    for config in (
        golden.huggingface_v4 | {"rope_scaling": scaling},
        golden.huggingface | {"rope_parameters": scaling | {"rope_theta": 10000.0}},
    ):
        with pytest.raises(UnsupportedError, match=kind):
            huggingface_config(config)


@pytest.mark.parametrize("form, name", [("gguf", name) for name in AS_GGUF] + [("meta", name) for name in AS_META])
def test_other_forms_give_the_same_answers(form: str, name: str, tmp_path: Path) -> None:
    golden = load_case(name)
    if form == "gguf":
        path = tiny.write_gguf(tmp_path / "model.gguf", golden.huggingface_v4, golden.tensors)
    else:
        path = tiny.write_meta(tmp_path / "model", golden.huggingface_v4, golden.tensors)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == form
        logits = all_logits(decoder_of(checkpoint), golden.tokens)
    assert golden.error(logits) <= TOLERANCE
    assert golden.greedy_of(logits) == golden.greedy


# ------------------------------------------------------------------------------------------------- SmolLM2

SMOLLM2 = json.loads((FOLDER / "smollm2_gguf.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Checkpoint]:
    named = os.environ.get("PYLLAMA_SMOLLM2")
    try:
        path = Path(named) if named else resolve("smollm2")
    except HubError as error:
        pytest.skip(f"needs the real SmolLM2 (PYLLAMA_SMOLLM2, or pyllama pull smollm2): {error}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == SMOLLM2["sha256"], f"{path}: not the file that the golden tokens came from"
    with open_checkpoint(path) as checkpoint:
        yield checkpoint


def test_smollm2_continues_like_transformers(smollm2: Checkpoint) -> None:
    """All prompts advance together, a token each per pass: the weights are read 64 times, not 384."""
    decoder = decoder_of(smollm2)
    prompts: list[dict[str, Any]] = SMOLLM2["prompts"]
    sequences = [decoder.new_sequence() for _ in prompts]
    rows = [decoder.prefill(s, p["prompt_ids"]) for s, p in zip(sequences, prompts, strict=True)]
    chosen = [[int(row.argmax())] for row in rows]
    for _ in range(len(prompts[0]["greedy"]) - 1):
        rows = decoder.forward([(s, ids[-1:]) for s, ids in zip(sequences, chosen, strict=True)])
        for ids, row in zip(chosen, rows, strict=True):
            ids.append(int(row.argmax()))
    for prompt, ids in zip(prompts, chosen, strict=True):
        decided = next((t for t, gap in enumerate(prompt["gaps"]) if gap < UNDECIDED), len(ids))
        assert len(ids) == 64 and decided > 0
        assert ids[:decided] == prompt["greedy"][:decided], prompt["prompt"]


def test_smollm2_tokens_are_those_of_the_oracle(smollm2: Checkpoint) -> None:
    tokenizer = load_tokenizer(smollm2)
    for prompt in SMOLLM2["prompts"]:
        ids = tokenizer.encode(prompt["prompt"], add_special_tokens=False, parse_special=True)
        assert ids == prompt["prompt_ids"]
        assert tokenizer.decode(prompt["greedy"]) == prompt["continuation"]
