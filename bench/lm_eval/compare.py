"""Scores two tasks of 200 questions with lm-evaluation-harness, over HTTP and with transformers, and compares them.

    python bench/lm_eval/compare.py MODEL.gguf --pyllama "pyllama"

Run it with a python that has lm-eval (with its extra `api`), torch, transformers and gguf. transformers reads the same
file and dequantizes it; pyllama serves it with a cache in float32. Each log-likelihood must be within 1e-2 of
transformers', and each choice the same where transformers' margin is larger. Exit code 1 if one is not.
"""

import argparse
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import questions

HERE = Path(__file__).resolve().parent
TASKS = ("pyllama_choices", "pyllama_endings")
WITHIN = 1e-2


def serve(command: list[str], model: Path) -> tuple[subprocess.Popen, str]:
    """A server for the model, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--kv-dtype", "f32", "--context", "1024", "--alias", "scored", "--quiet"]
    process = subprocess.Popen([*command, "serve", str(model), *options], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit("the server did not start")
        try:
            urllib.request.urlopen(url + "/health", timeout=5).close()
            return process, url
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server does not answer")


def scores(folder: Path, model: str, arguments: dict, batch_size: int) -> dict[str, list[list[tuple[float, bool]]]]:
    """For each question of each task (log-likelihood, whether it is the most probable) of its answers."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    os.chdir(folder)  # the tasks' files are named from here
    start = time.time()
    results = simple_evaluate(
        model,
        model_args=arguments,
        tasks=list(TASKS),
        batch_size=batch_size,
        log_samples=True,
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(HERE), include_defaults=False),
    )
    print(f"{model}: {time.time() - start:.0f} s", flush=True)
    for task in TASKS:
        measured = {name: value for name, value in results["results"][task].items() if isinstance(value, float)}
        print(f"  {task}: {measured}", flush=True)
    found = {}
    for task in TASKS:
        samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
        found[task] = [[_pair(answer) for answer in sample["filtered_resps"]] for sample in samples]
    return found


def _pair(answer) -> tuple[float, bool]:
    return float(answer[0]), str(answer[1]) == "True"


def compare(ours: dict, theirs: dict) -> bool:
    """Prints what differs; whether all is within the bounds."""
    good = True
    for task in TASKS:
        pairs = [
            (a, b) for one, other in zip(ours[task], theirs[task], strict=True) for a, b in zip(one, other, strict=True)
        ]
        differences = sorted(abs(a[0] - b[0]) for a, b in pairs)
        beyond = sum(difference > WITHIN for difference in differences)
        decided = same = 0
        for one, other in zip(ours[task], theirs[task], strict=True):
            ranked = sorted((score for score, _ in other), reverse=True)
            if len(ranked) > 1 and ranked[0] - ranked[1] > WITHIN:
                decided += 1
                same += best(one) == best(other)
        greedy = sum(a[1] == b[1] for a, b in pairs)
        print(
            f"{task}: {len(ours[task])} questions, {len(pairs)} log-likelihoods, "
            f"median difference {differences[len(differences) // 2]:.1e}, largest {differences[-1]:.1e}, "
            f"{beyond} beyond {WITHIN:g}; "
            f"{same} of {decided} decided choices the same; greedy or not: {greedy} of {len(pairs)} the same"
        )
        good = good and not beyond and same == decided and len(ours[task]) == questions.COUNT
    return good


def best(answers: list[tuple[float, bool]]) -> int:
    return max(range(len(answers)), key=lambda index: answers[index][0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--pyllama", default=f"{sys.executable} -m pyllama", help="the command that serves")
    arguments = parser.parse_args()
    model = arguments.model.resolve()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        questions.main(folder)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name).save_pretrained(folder / "tokenizer")
        process, url = serve(shlex.split(arguments.pyllama), model)
        try:
            ours = scores(
                folder,
                "local-completions",
                {
                    "base_url": url + "/v1/completions",
                    "model": "scored",
                    "tokenizer": str(folder / "tokenizer"),
                    "tokenizer_backend": "huggingface",
                    "num_concurrent": 2,
                    "max_length": 1024,
                },
                4,
            )
        finally:
            process.terminate()
            process.wait()
        theirs = scores(
            folder,
            "hf",
            {
                "pretrained": str(model.parent),
                "gguf_file": model.name,
                "tokenizer": str(folder / "tokenizer"),
                "dtype": "float32",
                "device": "cpu",
            },
            16,
        )
        os.chdir("/")
    return 0 if compare(ours, theirs) else 1


if __name__ == "__main__":
    sys.exit(main())
