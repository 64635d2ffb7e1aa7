"""A token's gathers one after the other, nothing computed in between: what boards' talk costs over their link.

    python bench/gathers.py MODEL... [--hosts pi1,pi2,pi3,pi4] [--ranks 2,3,4] [--tokens 50] [--label WORDS]
    BOARD_LINK=1000:0.2 tools/cluster_namespaces.sh 4 python bench/gathers.py MODEL...

MODEL is a file or folder, whose config alone is read, or a shape's name ("7b", see synthetic.py). The pieces are of the
sizes that the ranks deal, through the same calls as in a pass. A line of JSON for each model and number of ranks: the
median of the seconds that a token's steps took, those of a step that carries next to nothing, and the bytes and
messages of the rank that sends most. `label` is what you say of the link.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import synthetic

from pyllama import _kernels as kernels
from pyllama.architecture import Config, layers_of
from pyllama.checkpoint import open_checkpoint
from pyllama.checkpoint.huggingface_config import huggingface_config
from pyllama.cluster.dealing import deal
from pyllama.cluster.gathering import GatheringRanks
from pyllama.cluster.hosts import parse_hosts
from pyllama.cluster.job import command
from pyllama.decoder.ranks import scaled

WORKER = ["-m", "pyllama.cluster.worker"]  # what command() ends with


def config_of(model: str) -> Config:
    if model in synthetic.SHAPES:
        return huggingface_config(synthetic.huggingface_config(synthetic.SHAPES[model]))
    with open_checkpoint(model) as checkpoint:
        return checkpoint.config


class Table:
    """Embeddings of nothing."""

    def embedding(self, name: str, rows: np.ndarray, out: np.ndarray) -> None:
        out[:] = 0


def steps_of(config: Config, ranks: GatheringRanks) -> list[Callable[[], None]]:
    """A token's gathers, of layers with attention and one gated product (llama and its like)."""
    shares, own = ranks.shares, ranks.rank
    token, out = np.array([1]), np.empty((1, config.hidden_size), np.float32)
    found: list[Callable[[], None]] = [lambda: ranks.embed(Table(), "", token, out)]

    def gather(columns: list) -> None:
        lengths = [sum(map(len, of)) for of in columns]
        piece = kernels.Floats(np.zeros((1, lengths[own]), np.float32))
        whole = kernels.Floats(np.zeros((1, max(of.stop for each in columns for of in each)), np.float32))
        found.append(lambda: ranks.gather(columns, piece, whole))

    hidden = [(share.hidden,) for share in shares]
    for number, layer in enumerate(layers_of(config)):
        of = [share.layers[number] for share in shares]
        gather([scaled((each.heads,), layer.mixer.head_dim) for each in of])
        gather(hidden)
        gather([(each.inner,) for each in of])
        gather(hidden)
    vocab = [share.vocab for share in shares]
    logits = np.zeros((1, len(vocab[own])), np.float32)
    all_logits = np.empty((1, config.vocab_size), np.float32) if own == 0 else None
    found.append(lambda: ranks.collect(vocab, logits, all_logits))
    return found


def as_rank(models: list[str], tokens: int) -> None:
    from pyllama.cluster.mpi import MpiExchange

    exchange = MpiExchange()
    nothing = [np.zeros(4, np.uint8)] * exchange.size

    def seconds(work: Callable[[], object], times: int) -> float:
        taken = []
        for _ in range(times + 3):
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
        return median(taken[3:])

    for model in models:
        config = config_of(model)
        ranks = GatheringRanks(deal(config, [1.0] * exchange.size), exchange.rank, exchange)
        steps = steps_of(config, ranks)
        step_s = seconds(lambda: exchange.swap(nothing, [np.empty(4, np.uint8) for _ in nothing]), 200)
        sent, messages = ranks.nbytes, ranks.messages
        token_s = seconds(lambda steps=steps: [step() for step in steps], tokens)
        sent, messages = (ranks.nbytes - sent) // (tokens + 3), (ranks.messages - messages) // (tokens + 3)
        exchange.tell(0, json.dumps([sent, messages]).encode()) if exchange.rank else None
        if exchange.rank == 0:
            others = [json.loads(heard) for heard in exchange.hear_all()]
            most = [max(of) for of in zip([sent, messages], *others, strict=True)]
            found = {"model": Path(model).stem, "ranks": exchange.size, "steps": len(steps), "token_s": token_s}
            print(json.dumps(found | {"step_s": step_s, "sent_bytes": most[0], "messages": most[1]}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--hosts", default=os.environ.get("PYLLAMA_BOARDS", ",".join(["localhost"] * 4)))
    parser.add_argument("--ranks", default="2,3,4")
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--label", default="")
    parser.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_rank:
        as_rank(args.models, args.tokens)
        return
    models = [os.path.abspath(model) if os.path.exists(model) else model for model in args.models]
    for count in map(int, args.ranks.split(",")):
        hosts = parse_hosts(args.hosts.split(",")[:count])
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "hosts"
            file.write_text("".join(f"{host.name}\n" for host in hosts))
            words = command(file, hosts, None)
            assert words[-2:] == WORKER
            words[-2:] = [os.path.abspath(__file__), *models, "--tokens", str(args.tokens), "--as-rank"]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        for line in done.stdout.splitlines():
            print(json.dumps({"label": args.label, **json.loads(line)}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
