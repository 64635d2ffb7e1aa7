"""Load on `pyllama serve`: many connections, random hang-ups, every answer compared with the model's own, alone.

    python bench/serve_load.py MODEL [--requests 200] [--connections 16] [serve options]

Prints one JSON object: for each round, answers by outcome, wrong ones, and threads, descriptors and resident memory of
the server after it. What the last round left behind is what counts: what a server takes once is no leak. Exits 1 if an
answer was wrong or something was left behind.
"""

import argparse
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pyllama

PROMPTS = [
    [{"role": "user", "content": text}]
    for text in (
        "What is the capital of France?", "Name three rivers.", "Say hello in Italian.", "What is 2 + 2?",
        "Write a line of a poem about rain.", "Who wrote Hamlet?", "List the days of the week.",
        "What is a mutex? " * 8, "Tell a joke.", "Translate 'good night' into French.", "Count to ten.",
        "What do bees make? " * 12,
    )
]  # fmt: skip
MAX_LEFT_NBYTES = 5_000_000


def status(pid: int) -> dict[str, int]:
    fields = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
    return {
        "rss_nbytes": int(fields["VmRSS"].split()[0]) * 1024,
        "threads": int(fields["Threads"]),
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
    }


class Load:
    def __init__(self, port: int, expected: dict[tuple[int, int], str], max_tokens: int, seed: int):
        self.port, self.expected, self.max_tokens = port, expected, max_tokens
        self.random = random.Random(seed)
        self.outcomes: dict[str, int] = {}
        self.wrong: list[tuple] = []
        self.lock = threading.Lock()

    def run(self, requests: int, connections: int) -> None:
        plans = [
            (self.random.choice(list(self.expected)), self.random.random() < 0.5, self.random.random())
            for _ in range(requests)
        ]

        def work() -> None:
            while True:
                with self.lock:
                    if not plans:
                        return
                    case, stream, luck = plans.pop()
                outcome = self.one(case, stream, luck)
                with self.lock:
                    self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

        threads = [threading.Thread(target=work) for _ in range(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def one(self, case: tuple[int, int], stream: bool, luck: float) -> str:
        """One request; with bad luck it is left at once, in the middle, or unread."""
        number, seed = case
        body = {
            "messages": PROMPTS[number], "seed": seed, "temperature": 0.8, "max_tokens": self.max_tokens,
            "stream": stream,
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
            if luck < 0.1:
                return "left at once"
            if luck < 0.2:
                time.sleep(luck * 10)
                return "left unread"
            response = connection.getresponse()
            if response.status != 200:
                response.read()
                return f"status {response.status}"
            if luck < 0.35 and stream:
                response.read(700)
                return "left in the middle"
            raw = response.read().decode()
            text = self.streamed(raw) if stream else json.loads(raw)["choices"][0]["message"]["content"]
            if text != self.expected[case]:
                self.wrong.append((case, stream, text, self.expected[case]))
                return "wrong"
            return "answered"
        finally:
            connection.close()

    @staticmethod
    def streamed(raw: str) -> str:
        blocks = [block.removeprefix("data: ") for block in raw.split("\n\n") if block.startswith("data: ")]
        assert blocks[-1] == "[DONE]", raw[-300:]
        return "".join(json.loads(block)["choices"][0]["delta"].get("content", "") for block in blocks[:-1])


def health(port: int) -> dict:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/health")
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def settled(port: int) -> dict:
    """The server's health once nothing runs any more."""
    for _ in range(600):
        answer = health(port)
        if answer["requests"]["running"] == answer["requests"]["waiting"] == 0:
            return answer
        time.sleep(0.1)
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1, help="after the first, which warms up")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=12)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=1)
    args, serving = parser.parse_known_args()

    expected = {}
    with pyllama.load(args.model, threads=args.threads) as model:
        for number, prompt in enumerate(PROMPTS):
            for seed in (1, 2):
                generation = model.generate(prompt, seed=seed, temperature=0.8, max_tokens=args.max_tokens)
                expected[number, seed] = generation.read()

    command = [sys.executable, "-m", "pyllama", "serve", args.model, "--port", "0", *serving]
    command += ["--threads", str(args.threads)] if args.threads else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(process.stdout.readline().split("127.0.0.1:")[1].split("/")[0])
            rounds = []
            for number in range(1 + args.rounds):
                load = Load(port, expected, args.max_tokens, args.seed + number)
                started = time.monotonic()
                load.run(args.requests, args.connections)
                seconds = round(time.monotonic() - started, 1)
                engine = settled(port)
                time.sleep(1)
                rounds.append({"seconds": seconds, "outcomes": load.outcomes, "wrong": load.wrong[:3]})
                rounds[-1] |= status(process.pid) | {"pages_allocated": engine["kv_cache"]["pages_allocated"]}
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
    before, after, pages = rounds[-2], rounds[-1], engine["kv_cache"]
    left = {name: after[name] - before[name] for name in ("rss_nbytes", "threads", "descriptors", "pages_allocated")}
    # Memory that the plan has set aside for keys and values is no leak when it is first used.
    left["rss_nbytes"] -= left["pages_allocated"] * pages["page_nbytes"]
    good = (
        not any(one["wrong"] for one in rounds)
        and left["rss_nbytes"] < MAX_LEFT_NBYTES
        and left["threads"] <= 0
        and left["descriptors"] <= 0
        and engine["requests"]["running"] == engine["requests"]["waiting"] == 0
        and pages["pages_used"] == pages["pages_kept"]
        and code == 0
    )
    report = {"rounds": rounds, "left": left, "engine": engine, "exit_code": code, "good": good}
    print(json.dumps(report, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
