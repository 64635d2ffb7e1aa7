"""What ranks of a cluster on this machine say to each other: bytes, messages and time in gathers, a token and rank.

    python bench/cluster.py MODEL [--ranks 1,2,3,4] [--tokens 16] [--memory SIZE] [--disk-mb-s RATE]

With --disk-mb-s each rank reads at most so much a second, as from a disk of its own: it has a control group (v1, as
root): `of_disk` is how much of that rate a token has used, and `efficiency` how much of as many times as fast as one
rank that many ranks are, which their memory, as it adds up, makes more.

A line of JSON for each number of ranks, all of them on localhost. Fingerprints must be equal, or it ends with an error.
Seconds are those of ranks that share this machine's cores; bytes and messages are what boards would send. The last line
reckons four Raspberry Pi 5 from them: a model of such boards, nothing measured on one.
"""

import argparse
import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyllama

LINK_MB_S, MESSAGE_S = 117.0, 0.0002  # 1 Gbit/s less its frames; a message between two boards


@contextlib.contextmanager
def throttled(pids: list[int], model: str, mb_s: float | None) -> Iterator[None]:
    """Each of these processes reads from the model's disk at most so fast."""
    folders = []
    device = os.stat(model).st_dev
    for pid in pids if mb_s else ():
        folders.append(Path(f"/sys/fs/cgroup/blkio/pyllama-{pid}"))
        folders[-1].mkdir()
        rate = f"{os.major(device)}:{os.minor(device)} {int((mb_s or 0) * 1e6)}"
        (folders[-1] / "blkio.throttle.read_bps_device").write_text(rate)
        (folders[-1] / "cgroup.procs").write_text(str(pid))
    try:
        yield
    finally:
        for folder, pid in zip(folders, pids):
            with contextlib.suppress(OSError):  # it has ended
                Path("/sys/fs/cgroup/blkio/cgroup.procs").write_text(str(pid))
            with contextlib.suppress(OSError):
                folder.rmdir()


def measure(model: str, ranks: int, tokens: int, memory: str | None, mb_s: float | None) -> dict:
    hosts = ",".join(["localhost"] * ranks)
    with pyllama.load(model, context_length=256, hosts=hosts, memory=memory, draft="off") as loaded:
        pids = [sign["pid"] for sign in loaded.decoder.signs]
        prompt = list(range(100, 132))
        generation = loaded.generate(prompt, max_tokens=tokens, ignore_eos=True, fingerprint=True)
        next(generation)  # reads all, and keeps what there is memory for
        with throttled(pids, model, mb_s):
            next(generation)  # what was read ahead without a limit is used up
            before, started = [dict(report) for report in loaded.decoder.reports], time.perf_counter()
            count = sum(1 for _ in generation)
            seconds = time.perf_counter() - started
        after = loaded.decoder.reports

        def most(name: str) -> float:
            return max((b[name] - a[name]) / count for a, b in zip(before, after, strict=True))

        return {
            "ranks": ranks,
            "tokens": count,
            "token_s": seconds / count,
            "disk_mb_s": mb_s,
            "gather_s": most("gather_s"),
            "sent_bytes": most("sent"),
            "messages": most("messages"),
            "pinned": [plan.pinned for plan in loaded.decoder.plans],
            "streamed": [report["streamed"] for report in after],
            "of_disk": max(report["streamed"] for report in after) / (mb_s * 1e6) / (seconds / count) if mb_s else None,
            "layers": loaded.config.num_hidden_layers,
            "fingerprint": generation.fingerprint.hexdigest(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--ranks", default="1,2,3,4")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--memory")
    parser.add_argument("--disk-mb-s", type=float)
    args = parser.parse_args()
    found = []
    for ranks in map(int, args.ranks.split(",")):
        found.append(measure(args.model, ranks, args.tokens, args.memory, args.disk_mb_s))
        found[-1]["efficiency"] = found[0]["ranks"] * found[0]["token_s"] / (ranks * found[-1]["token_s"])
        print(json.dumps(found[-1]), flush=True)
    if len({each["fingerprint"] for each in found}) != 1:
        raise SystemExit("fingerprints differ")
    for each in found:
        if each["ranks"] == 4:
            steps = 4 * each["layers"] + 2
            talk_s = each["sent_bytes"] / (LINK_MB_S * 1e6) + steps * MESSAGE_S
            print(json.dumps({"computed": "talk of four boards, 1 Gbit/s, 0.2 ms", "steps": steps, "talk_s": talk_s}))


if __name__ == "__main__":
    main()
