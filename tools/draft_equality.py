"""Drafting changes nothing but time: random tiny models, budgets, prompts, seeds and drafters, as many as wanted.

    python -P tools/draft_equality.py [--models 1000] [--first 0]

Each number makes a model of some family and sizes, streamed within some ring or kept in memory, packed or not, and
answers a random prompt with random sampling: without a drafter, then with one that knows the truth, with one whose
trees hold it somewhere, with one that proposes rubbish or nothing, and with another model's proposals. Tokens, the
reason to stop and the fingerprint of the logits must be equal. Ends with a line of counts; the first difference ends it
with the number that makes it again (--first NUMBER --models 1).
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import drafters
import tiny

from pyllama.checkpoint import Checkpoint, open_checkpoint
from pyllama.decoder import Decoder
from pyllama.generation import Generation
from pyllama.generation.sampler import SamplingParams
from pyllama.packing import pack
from pyllama.streaming import StreamedWeights
from pyllama.tokenizer import load_tokenizer

CONTEXT = 96
PROMPTS = (1, 2, 5, 31, 32, 33, 50)


def made(rng: random.Random, folder: Path) -> tuple[Path, str]:
    """A model, and the name of its family."""
    family = rng.choice(tiny.FAMILIES)
    config = tiny.tiny_config(model_type=family)
    path = tiny.write_huggingface(folder / "model", config, tiny.random_tensors(config, seed=rng.randrange(10**6)))
    if rng.random() < 0.3:
        path = pack(path, folder / "packed")
    return path, family


def weights_of(rng: random.Random, checkpoint: Checkpoint) -> StreamedWeights:
    """In memory, or streamed: with the smallest slots there can be, or with some of the weights kept."""
    if rng.random() < 0.3:
        return StreamedWeights(checkpoint)
    pinned = rng.choice((0, 0, rng.randrange(100_000)))
    return StreamedWeights(
        checkpoint, slots=rng.choice((3, 4)), room=1, pinned_nbytes=pinned, expert_slots=3, expert_room=1
    )


def sampling(rng: random.Random, vocab_size: int) -> SamplingParams:
    options = {
        "temperature": rng.choice((0.0, 0.0, 0.3, 0.8, 1.5)),
        "top_k": rng.choice((0, 0, 3, 20)),
        "top_p": rng.choice((1.0, 1.0, 0.9, 0.5)),
        "min_p": rng.choice((0.0, 0.0, 0.05)),
        "repetition_penalty": rng.choice((1.0, 1.0, 1.2)),
        "frequency_penalty": rng.choice((0.0, 0.0, 0.5)),
        "logit_bias": rng.choice(({}, {rng.randrange(vocab_size): 4.0, rng.randrange(vocab_size): -50.0})),
        "logprobs": rng.choice((0, 0, 3)),
        "seed": rng.randrange(2**32),
        "max_tokens": rng.choice((1, 2, 9, 20, 40)),
        "ignore_eos": rng.random() < 0.8,
    }
    return SamplingParams(**options)


def answered(decoder: Decoder, tokenizer, prompt_ids: list[int], params: SamplingParams, drafting=None) -> tuple:
    with decoder.new_sequence() as sequence:
        generation = Generation(decoder, tokenizer, sequence, prompt_ids, params, fingerprint=True, drafting=drafting)
        generation.read()
    return generation.token_ids, generation.finish_reason, generation.fingerprint.hexdigest()


def tried(number: int) -> tuple[str, int, int]:
    """(family, tokens, answers compared) of this number; raises AssertionError where two differ."""
    rng = random.Random(number)
    with tempfile.TemporaryDirectory() as folder:
        path, family = made(rng, Path(folder))
        with open_checkpoint(path) as checkpoint:
            config = checkpoint.config.for_context(CONTEXT)
            weights = weights_of(rng, checkpoint)
            decoder = Decoder(
                config,
                weights,
                context_length=CONTEXT,
                max_pass_tokens=rng.choice((64, 64, 7, 23)),
                kv_dtype=rng.choice(("f16", "f32")),
            )
            prompt_ids = [rng.randrange(config.vocab_size) for _ in range(rng.choice(PROMPTS))]
            params = sampling(rng, config.vocab_size)
            tokenizer = load_tokenizer(checkpoint)
            plain = answered(decoder, tokenizer, prompt_ids, params)
            texts = {tuple(prompt_ids): plain[0]}
            of_another = {tuple(prompt_ids): [rng.randrange(config.vocab_size) for _ in range(CONTEXT)]}
            kinds = (
                drafters.seer(texts, rng.choice((1, 3, 8, 40))),
                drafters.half_seer(texts, number, config.vocab_size, nodes=rng.choice((2, 8, 24, 63))),
                drafters.half_seer(of_another, number, config.vocab_size, nodes=rng.choice((2, 8, 24, 63))),
                drafters.fool(number),
            )
            for kind, drafting in enumerate(kinds):
                drafted = answered(decoder, tokenizer, prompt_ids, params, drafting)
                assert drafted == plain, f"{number} ({family}), drafter {kind}"
            weights.close()
    return family, len(plain[0]), len(kinds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    families, tokens, answers = set(), 0, 0
    for number in range(args.first, args.first + args.models):
        family, length, kinds = tried(number)
        families.add(family)
        tokens += length * kinds
        answers += kinds
        if sys.stderr.isatty():
            print(f"\r{number + 1 - args.first}/{args.models}", end="", file=sys.stderr, flush=True)
    print(f"{args.models} models of {len(families)} families: {answers} drafted answers, {tokens} tokens, none differs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
