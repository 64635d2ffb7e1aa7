"""Boards -> the report of `pyllama cluster check`: what each is and can do, what is wrong, shares, seconds a token."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from pyllama.architecture.tensors import flop
from pyllama.checkpoint import Checkpoint, open_checkpoint
from pyllama.checkpoint.digest import weights_digest
from pyllama.cluster.dealing import deal
from pyllama.cluster.hosts import Host
from pyllama.cluster.own_part import open_front
from pyllama.cluster.talk import measure_link
from pyllama.decoder import Shape
from pyllama.errors import PyllamaError
from pyllama.hub import resolve
from pyllama.measure.board import surveys
from pyllama.planning.boards import GIGABIT, Link, Together, propose, together
from pyllama.planning.memory import INTERPRETER, make_plan
from pyllama.planning.time import Rates, gflop_s
from pyllama.streaming.local import LocalCheckpoint

CLOCKS_APART_S = 5.0
CONTEXT = 4096


def check(
    model: str | None,
    hosts: Sequence[Host],
    *,
    memory: int | None = None,
    context_length: int | None = None,
    kv_dtype: str = "f16",
    interface: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    link: Link | None = None,
) -> dict[str, Any]:
    """Everything `cluster check --json` prints; `wrong` has a line for each thing that is.

    memory  bytes that each board may take; default: what it has
    link    between boards, where it is not to be measured
    """
    say(f"asking {len({host.name for host in hosts})} boards, and measuring them")
    told = surveys(hosts, model)
    checkpoint, wrong = None, []
    if model is not None:
        try:
            checkpoint = open_front(model, hosts)
        except PyllamaError as error:
            wrong.append(str(error))
    try:
        for host, about in zip(hosts, told, strict=True):
            wrong += [f"{host.name}: {line}" for line in _wrong(about, checkpoint, interface)]
        wrong = list(dict.fromkeys(wrong))
        reached = [about.get("reached", True) for about in told]
        if link is None and all(reached) and all(about["mpi"] for about in told):
            say("messages between them")
            try:
                link = measure_link(hosts, interface)
            except PyllamaError as error:
                wrong.append(str(error))
        report = _report(hosts, told, link)
        report["wrong"] = wrong
        if checkpoint is not None and checkpoint.share is None and all(about.get("rates") for about in told):
            options = _options(checkpoint, context_length, kv_dtype)
            try:
                _predict(report, checkpoint, hosts, told, memory, link or GIGABIT, options)
            except PyllamaError as error:
                report["wrong"].append(str(error))
        return report
    finally:
        if checkpoint is not None:
            checkpoint.close()


def _report(hosts: Sequence[Host], told: Sequence[dict[str, Any]], link: Link | None) -> dict[str, Any]:
    """Without what is wrong, and what is predicted."""
    return {
        "hosts": [
            {"name": host.name, "place": host.place, "share": host.share, **about}
            for host, about in zip(hosts, told, strict=True)
        ],
        "link": asdict(link) if link else None,
        "wrong": [],
        "shares": None,
        "forecast": [],
    }


def _options(checkpoint: Checkpoint, context_length: int | None, kv_dtype: str) -> dict[str, Any]:
    return {"context_length": min(context_length or CONTEXT, checkpoint.config.usual_positions), "kv_dtype": kv_dtype}


def predict(
    model: str, hosts: Sequence[Host], rates: Rates, memory: int, context_length: int | None, kv_dtype: str
) -> dict[str, Any]:
    """The same without asking anybody: of boards with these rates and so much memory each, on a gigabit switch."""
    told = [{"rates": asdict(rates), "memory": memory} for _ in hosts]
    report = _report(hosts, told, GIGABIT)
    apart = [replace(host, name=f"{host.place}") for host in hosts]  # boards of their own, whatever their names
    with open_checkpoint(resolve(model)) as checkpoint:
        _predict(report, checkpoint, apart, told, memory, GIGABIT, _options(checkpoint, context_length, kv_dtype))
    return report


def _wrong(about: dict[str, Any], checkpoint: Checkpoint | None, interface: str | None) -> list[str]:
    found = []
    if about.get("error"):
        found.append(about["error"])
    if not about.get("reached", True):
        return found
    if not about["mpi"]:
        found.append("mpi4py is not installed there")
    if interface and interface not in about["interfaces"]:
        found.append(f"no interface {interface}, only {', '.join(about['interfaces'])}")
    if abs(about["clock_s"]) > CLOCKS_APART_S + about["answer_s"]:
        found.append(f"its clock is {about['clock_s']:+.0f} s from this board's")
    throttled = about["condition"]["throttled"]
    if throttled and throttled["now"]:
        found.append(f"its processor is held back: {', '.join(throttled['now'])}")
    model = about["model"]
    if model and checkpoint is not None and model["digest"] != weights_digest(checkpoint):
        found.append(f"{model['path']}: another model than here; push it again, or get the same")
    return found


def _predict(
    report: dict[str, Any],
    checkpoint: Checkpoint,
    hosts: Sequence[Host],
    told: Sequence[dict[str, Any]],
    memory: int | None,
    link: Link,
    options: dict[str, Any],
) -> None:
    """Seconds with 1, 2, ... of the boards, as asked and by proposed shares."""
    here = Counter(host.name for host in hosts)
    # One of several ranks on a machine gets its part of it.
    rates = [Rates(**about["rates"]).times(1 / here[host.name]) for host, about in zip(hosts, told, strict=True)]
    budgets = [
        host.memory or memory or about["memory"] // here[host.name] for host, about in zip(hosts, told, strict=True)
    ]
    asked = [host.share for host in hosts]
    for count in range(1, len(hosts) + 1):
        those = budgets[:count], rates[:count]
        shares = _proposed(checkpoint, *those, options)
        row: dict[str, Any] = {"boards": count, "shares": shares}
        for name, dealt in (("as_asked", asked[:count]), ("proposed", shares)):
            made = _together(checkpoint, dealt, *those, link, options)
            row[name] = _told(made)
        report["forecast"].append(row)
    report["shares"] = report["forecast"][-1]["shares"]


def _proposed(
    checkpoint: Checkpoint, budgets: Sequence[int], rates: Sequence[Rates], options: dict[str, Any]
) -> list[float]:
    plan = make_plan(checkpoint, 1 << 50, **options)
    besides = INTERPRETER + plan.activations + (plan.cache + plan.ring) // len(budgets)
    room = [max(0, budget - besides) for budget in budgets]
    operations = flop(checkpoint.config, 1, options["context_length"] // 2, 1)
    return propose(plan.weights, operations, room, rates, [gflop_s(checkpoint, rate) for rate in rates])


def _together(
    checkpoint: Checkpoint,
    shares: Sequence[float],
    budgets: Sequence[int],
    rates: Sequence[Rates],
    link: Link,
    options: dict[str, Any],
) -> Together:
    if len(shares) == 1:
        return together([checkpoint], [Shape.whole(checkpoint.config)], budgets, rates, link, **options)
    dealt = deal(checkpoint.config, shares)
    parts = [LocalCheckpoint(checkpoint, share) for share in dealt]
    shapes = [Shape.of_share(checkpoint.config, share) for share in dealt]
    return together(parts, shapes, budgets, rates, link, **options)


def _told(made: Together) -> dict[str, Any]:
    boards = [
        {"token_s": board.token_s, "bound": board.bound, "budget": board.plan.budget, "pinned": board.plan.pinned,
         "streamed": board.plan.streamed, "stored": board.plan.stored}
        for board in made.boards
    ]  # fmt: skip
    return {"token_s": made.token_s, "talk_s": made.talk_s, "boards": boards}
