"""pyllama against transformers itself, live: the golden cases with other weights, every logit compared.

Skipped where torch and transformers are not installed. What golden vectors sample, this compares whole, and with
seeds that nobody chose.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tiny
from golden import CASES, load_case

from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.huggingface_config import huggingface_config
from pyllama.decoder import Decoder
from pyllama.streaming import StreamedWeights

pytest.importorskip("torch", reason="needs torch and transformers, the oracle")
pytest.importorskip("transformers", reason="needs torch and transformers, the oracle")
import make_golden

TOLERANCE = 1e-4  # of the largest logit of a row


def decoder_of(folder: Path) -> Decoder:
    checkpoint = open_checkpoint(folder)
    return Decoder(
        checkpoint.config,
        StreamedWeights(checkpoint),
        context_length=128,
        kv_dtype="f32",
        rope_interleaved=checkpoint.rope_interleaved,
    )


def assert_same_answers(decoder: Decoder, model: Any, prompt: list[int]) -> None:
    """All logits within TOLERANCE; greedy tokens equal for as long as transformers is not nearly undecided."""
    greedy, chosen_from = make_golden.oracle_greedy(model, prompt, make_golden.GREEDY_TOKENS)
    tokens = prompt + greedy[:-1]
    wanted = make_golden.oracle_logits(model, tokens)
    with decoder.new_sequence() as sequence:
        logits = decoder.forward([(sequence, tokens)], "all")
    largest = np.abs(wanted).max(axis=-1)
    assert (np.abs(logits - wanted).max(axis=-1) <= TOLERANCE * largest).all()
    decided = make_golden.gaps(chosen_from) > 2 * TOLERANCE * np.abs(chosen_from).max(axis=-1)
    assert decided.mean() > 0.9
    chosen = logits[len(prompt) - 1 :].argmax(axis=-1)
    assert (chosen[decided] == np.array(greedy)[decided]).all()


@pytest.mark.parametrize("seed", [1001, 1002, 1003])
@pytest.mark.parametrize("name", CASES)
def test_same_answers_with_other_weights(name: str, seed: int, tmp_path: Path) -> None:
    golden = load_case(name)
    model = make_golden.transformers_model(golden.huggingface_v4, partial(reference.random_tensor, seed=seed))
    config = huggingface_config(golden.huggingface_v4)
    tiny.write_huggingface(tmp_path, golden.huggingface_v4, reference.random_weights(config, seed))
    prompt = make_golden.prompt_of(f"{name} {seed}", config.vocab_size, make_golden.PROMPT_TOKENS)
    assert_same_answers(decoder_of(tmp_path), model, prompt)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("name", ["llama31", "mistral_window", "qwen2", "qwen3_window"])
def test_folders_as_transformers_saves_them(name: str, dtype: str, tmp_path: Path) -> None:
    """save_pretrained's own config.json, safetensors header and shards, read where they lie."""
    import torch
    from transformers import AutoModelForCausalLM

    golden = load_case(name)
    model = make_golden.transformers_model(golden.huggingface_v4, partial(reference.random_tensor, seed=1004))
    kind = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dtype]
    model.to(kind).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with open_checkpoint(tmp_path) as checkpoint:
        assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {dtype}
    # Read back rather than converted: model.to(bfloat16) has rounded the rotary frequencies for good.
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    prompt = make_golden.prompt_of(name, golden.config.vocab_size, make_golden.PROMPT_TOKENS)
    assert_same_answers(decoder_of(tmp_path), model, prompt)
