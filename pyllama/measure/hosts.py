"""A model on several boards, timed: prompts, tokens, and what each board read, waited for and said for a token."""

from collections.abc import Callable, Sequence
from typing import Any

from pyllama.measure.model import CONTEXT, decoded, random_ids, time_decode, time_model

COUNTED = ("bytes_read", "waited_s", "gather_s", "sent", "messages")


def measure(
    model: str,
    hosts: str | Sequence[str],
    *,
    memory: int | None = None,
    threads: int | None = None,
    interface: str | None = None,
    prompts: tuple[int, ...] = (64, 512),
    decode: int = 16,
    most_s: float = 60.0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Everything `bench MODEL --hosts --json` prints. Token ids are random; sampling is not part of it."""
    import pyllama

    say("starting the boards")
    options: dict[str, Any] = {"memory": memory, "threads": threads, "interface": interface}
    with pyllama.load(model, hosts=hosts, context_length=CONTEXT, draft="off", **options) as loaded:
        decoder: Any = loaded.decoder
        ids = random_ids(loaded.config.vocab_size)
        found: dict[str, Any] = {"model": str(model)}
        found |= time_model(loaded, ids, say, prompts=prompts, most_s=most_s)
        before = [dict(report) for report in decoder.reports]
        times = time_decode(loaded, ids(decode), most_s=most_s)
        after = decoder.reports
        found["decode"] = decoded(times)
        found["boards"] = [
            {
                "name": host.name,
                "share": host.share,
                "pinned": plan.pinned,
                "streamed": now["streamed"],
                "token": {name: (now[name] - then[name]) / len(times) for name in COUNTED},
            }
            for host, plan, then, now in zip(decoder.hosts, decoder.plans, before, after, strict=True)
        ]
    return found
