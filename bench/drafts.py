"""Drafting on a small board: seconds a token with and without, texts and fingerprints compared. Resumable.

A control group (v1) of so much memory, its disk throttled, plays the board. Each prompt is answered in a process of its
own: off (few tokens: every pass costs the same), with each drafter (many), and once unthrottled without a drafter, for
the whole text that all the others must be the beginning of. Results are lines of JSON in a file; what is there already
is not measured again.

    python bench/drafts.py MODEL --draft DRAFTER [--draft self] [--memory 1.2G] [--disk 850M] [--temperature 0.7]
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

CODE = """def total(orders):
    sum = 0
    for o in orders:
        if o["status"] == "paid":
            sum = sum + o["price"] * o["count"]
    return sum"""

#: Kind -> what is asked.
PROMPTS = {
    "code": "Write a Python function that merges two sorted lists into one, with a docstring and three asserts.",
    "code-2": "Write a C function that reverses a singly linked list, and explain each line in a comment.",
    "json": "Give me a JSON array of five fictional employees with id, name, email, department and salary.",
    "json-2": 'Turn this into JSON with keys "city", "country" and "population": Paris has 2.1 million people, Berlin '
    "3.8, Madrid 3.3, Rome 2.8. Answer with JSON only.",
    "editing": f"Rename the variable sum to total_paid in this function and change nothing else:\n\n{CODE}",
    "editing-2": f"Add type hints and a docstring to this function:\n\n{CODE}",
    "maths": "A train leaves at 9:40 and arrives at 13:05. It stops twice for 7 minutes. How long does it move? "
    "Show each step.",
    "list": "List ten rules for writing good commit messages, one line each.",
    "summary": "Summarise in three sentences: The tide is the rise and fall of sea levels caused by the gravity of the "
    "moon and, to a lesser degree, of the sun, and by the rotation of the earth. Twice a month, when both pull in one "
    "line, the tides are strongest; when they pull at right angles, weakest.",
    "translation": "Translate into German, French and Spanish: 'The workshop opens at nine; bring your own tools.'",
    "explanation": "Explain how a hash table works to someone who knows arrays.",
    "story": "Tell a short story about a lighthouse keeper who finds a letter in a bottle.",
}

_RUN = """
import json, sys, time
import pyllama
path, prompt, tokens, draft, memory, temperature, context = json.loads(sys.argv[1])
began = time.perf_counter()
with pyllama.load(path, memory=memory, draft=draft, context_length=context) as model:
    answer = model.generate(
        [{"role": "user", "content": prompt}], max_tokens=tokens, temperature=temperature, seed=7, fingerprint=True
    )
    text, times = "", []
    for step in answer:
        text += step.text
        times.append(time.perf_counter())
    drafts = model.drafting
    print(json.dumps({
        "text": text, "ids": answer.token_ids, "fingerprint": answer.fingerprint.hexdigest(),
        "prefill_s": answer.prefill_s, "decode_s": answer.decode_s, "tokens": len(answer.token_ids),
        "passes": model.passes, "proposed": answer.proposed_tokens, "accepted": answer.accepted_tokens,
        "drafter": drafts.name if drafts else None, "draft_s": drafts.draft_s if drafts else 0.0,
        "total_s": times[-1] - began, "plan_drafter": model.plan.drafter, "pinned": model.plan.pinned,
        "streamed": model.decoder.weights.nbytes_streamed,
    }))
"""


class Group:
    """Control groups of memory and disk for one process, or none at all."""

    def __init__(self, memory: int | None, disk: float | None, path: Path):
        self._folders: list[Path] = []
        if memory is None:
            return
        name = f"drafts-{os.getpid()}"
        for controller in ("memory", "blkio"):
            folder = Path("/sys/fs/cgroup", controller, name)
            folder.mkdir()
            self._folders.append(folder)
        (self._folders[0] / "memory.limit_in_bytes").write_text(str(memory))
        device = os.stat(path).st_dev
        if disk:
            (self._folders[1] / "blkio.throttle.read_bps_device").write_text(
                f"{os.major(device)}:{os.minor(device)} {int(disk)}"
            )

    def enter(self) -> None:
        for folder in self._folders:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    def close(self) -> None:
        for folder in self._folders:
            for _ in range(50):
                try:
                    folder.rmdir()
                    break
                except OSError:
                    time.sleep(0.1)


def measure(arguments: list, group: Group) -> dict:
    command = [sys.executable, "-c", _RUN, json.dumps(arguments)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, preexec_fn=group.enter, check=True)
    finally:
        group.close()
    return json.loads(done.stdout)


def size(text: str) -> int:
    units = {"K": 1e3, "M": 1e6, "G": 1e9}
    return int(float(text[:-1]) * units[text[-1].upper()]) if text[-1].upper() in units else int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--draft", action="append", required=True, help="as of pyllama run; may be given several times")
    parser.add_argument("--memory", default="1.2G", help="of the control group")
    parser.add_argument("--budget", help="pyllama's own limit (default: 0.93 of the group's)")
    parser.add_argument("--disk", default="850M", help="bytes a second")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--off-tokens", type=int, default=10)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--prompts", help="names of some, with commas between")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--results", type=Path, default=Path("drafts.jsonl"))
    parser.add_argument("--resident", action="store_true", help="no limits at all: weights in memory")
    args = parser.parse_args()
    memory, disk = size(args.memory), size(args.disk)
    budget = size(args.budget) if args.budget else int(0.93 * memory)
    key_of = [str(args.model.resolve()), args.memory, args.disk, args.temperature, args.resident]
    known = {}
    if args.results.exists():
        for line in args.results.read_text().splitlines():
            entry = json.loads(line)
            known[entry["key"]] = entry
    names = args.prompts.split(",") if args.prompts else list(PROMPTS)
    rows = []
    for name in names:
        found = {}
        kinds = [("reference", "off", args.tokens), ("off", "off", args.tokens if args.resident else args.off_tokens)]
        kinds += [(draft, draft, args.tokens) for draft in args.draft]
        for kind, draft, tokens in kinds:
            key = hashlib.sha256(json.dumps([key_of, name, kind, tokens]).encode()).hexdigest()[:16]
            if key not in known:
                free = kind == "reference" or args.resident
                group = Group(None if free else memory, disk, args.model)
                limit = None if free else budget
                load = os.getloadavg()[0]
                known[key] = measure(
                    [str(args.model), PROMPTS[name], tokens, draft, limit, args.temperature, args.context], group
                )
                known[key] |= {"key": key, "prompt": name, "kind": kind, "load": load}
                with args.results.open("a") as file:
                    file.write(json.dumps(known[key]) + "\n")
            found[kind] = known[key]
        rows.append((name, found))
        tell(name, found, args.draft)
    summary(rows, args.draft)
    return 0


def off_s(found: dict) -> float:
    off = found["off"]
    return off["decode_s"] / max(1, off["tokens"] - 1)


def tell(name: str, found: dict, drafts: list[str]) -> None:
    reference = found["reference"]
    off = found["off"]
    assert reference["ids"][: off["tokens"]] == off["ids"], f"{name}: off, throttled, is another text"
    line = f"{name:12} off {off_s(found):6.3f} s/token"
    for draft in drafts:
        drafted = found[draft]
        same = drafted["ids"] == reference["ids"] and drafted["fingerprint"] == reference["fingerprint"]
        assert same, f"{name}: {draft} gave another text"
        each = drafted["decode_s"] / max(1, drafted["tokens"] - 1)
        line += f" | {Path(draft).name} {each:6.3f}, {off_s(found) / each:5.2f}x,"
        line += f" {drafted['tokens'] / (drafted['passes'] or 1):4.1f} tokens a pass"
    print(line, flush=True)


def summary(rows: list, drafts: list[str]) -> None:
    for draft in drafts:
        tokens = [max(1, found[draft]["tokens"] - 1) for _, found in rows]
        on = sum(found[draft]["decode_s"] for _, found in rows)
        off = sum(n * off_s(found) for n, (_, found) in zip(tokens, rows, strict=True))
        print(f"{Path(draft).name}: {off / on:.2f}x over {sum(tokens)} tokens of {len(rows)} prompts; texts identical")


if __name__ == "__main__":
    sys.exit(main())
