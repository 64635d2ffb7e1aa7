"""Models in, one line each out: the SHA-256 of their logits and the tokens chosen. The same on every machine.

    python -P tools/fingerprints.py          tiny models of every architecture and storage format
    python -P tools/fingerprints.py MODEL    and a few tokens of a real one: a path, or a name such as smollm2

Computes nothing itself: `diff` of two machines' output is the test. Every model takes its prompt in one pass,
then answers greedily, and once more with a seed.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import golden
import tiny

import pyllama
from pyllama.checkpoint import open_checkpoint
from pyllama.decoder import Decoder
from pyllama.generation import Fingerprint
from pyllama.generation.sampler import Sampler, SamplingParams
from pyllama.streaming import StreamedWeights

GREEDY = SamplingParams(temperature=0.0)
SEEDED = SamplingParams(temperature=0.9, top_k=40, top_p=0.95, min_p=0.01, repetition_penalty=1.1, seed=20)
TOKENS = 8
PROMPT = "The three most important things about a small computer are"


def tiny_models(folder: Path) -> Iterator[tuple[str, Path, list[int]]]:
    """(name, file or folder, prompt) of every golden case, and of a model in every storage format of GGUF."""
    for name in golden.CASES:
        case = golden.load_case(name)
        if case.huggingface["model_type"] == "gpt_oss":  # published folders have its experts in MXFP4
            path = tiny.write_gguf(folder / f"{name}.gguf", case.huggingface_v4, case.tensors, "BF16")
        else:
            path = tiny.write_huggingface(folder / name, case.huggingface, case.tensors)
        yield name, path, case.prompt
    config = tiny.tiny_config(
        hidden_size=256, intermediate_size=256, num_attention_heads=4, head_dim=64, num_key_value_heads=2, vocab_size=96
    )
    tensors = tiny.random_tensors(config)
    for dtype in tiny.GGML_NUMBERS:
        path = tiny.write_gguf(folder / f"{dtype}.gguf", config, tensors, dtype)
        yield dtype, path, list(range(3, 50))


def tiny_lines() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        for name, path, prompt in tiny_models(Path(folder)):
            for kv_dtype in ("f16", "f32"):
                with open_checkpoint(path) as checkpoint:
                    weights = StreamedWeights(checkpoint)
                    decoder = Decoder(checkpoint.config, weights, context_length=96, kv_dtype=kv_dtype)
                    for params in (GREEDY, SEEDED):
                        yield f"{name} {kv_dtype} {answer(decoder, prompt, params)}"


def answer(decoder: Decoder, prompt: list[int], params: SamplingParams) -> str:
    """SHA-256 of the logits of the prompt, in one pass, and of each token after it; and those tokens."""
    sequence, sampler = decoder.new_sequence(), Sampler(params, decoder.config.vocab_size)
    fingerprint, output, last = Fingerprint(), [], prompt
    while len(output) < TOKENS:
        logits = decoder.forward([(sequence, last)], logits="all")
        fingerprint.update(logits)
        output.append(sampler(logits[-1], prompt, output).token_id)
        last = output[-1:]
    sequence.close()
    return f"{fingerprint.hexdigest()} {output}"


def real_lines(name: str) -> Iterator[str]:
    with pyllama.load(name) as model:
        for params in ({"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.95, "seed": 20}):
            with model.generate(PROMPT, max_tokens=TOKENS, fingerprint=True, **params) as generation:
                text = generation.read()
                yield f"{Path(name).stem} {generation.fingerprint.hexdigest()} {text!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    model = parser.parse_args().model
    for line in tiny_lines():
        print(line, flush=True)
    if model:
        for line in real_lines(model):
            print(line, flush=True)


if __name__ == "__main__":
    main()
