"""On a board: what `pyllama cluster check` wants to know of it, over ssh.

python -m pyllama.measure.board        started by surveys(), see cluster/remote.py
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyllama.checkpoint.digest import weights_digest
from pyllama.cluster.hosts import Host
from pyllama.cluster.own_part import open_part, parts_folder, shares_by_place
from pyllama.cluster.remote import Remote, answering
from pyllama.errors import PyllamaError


def survey(asked: dict[str, Any]) -> dict[str, Any]:
    """Everything of this board: model (None: none was named), memory, disk, clocks, and if asked its rates."""
    from pyllama.machine.memory import default_budget
    from pyllama.measure.condition import condition
    from pyllama.measure.machine import describe
    from pyllama.measure.rates import measure, nearest

    found: dict[str, Any] = {
        "machine": describe(),
        "condition": condition(),
        "memory": default_budget(),
        "mpi": _has_mpi(),
        "interfaces": sorted(os.listdir("/sys/class/net")) if os.path.isdir("/sys/class/net") else [],
        "model": None,
        "rates": None,
        "error": None,
    }
    files: list[Path] = []
    folder = nearest(parts_folder("model").parent)
    try:
        if asked["model"] is not None:
            with open_part(asked["model"], asked["place"], asked["shares"]) as checkpoint:
                files = list(checkpoint.files)
                found["model"] = {
                    "path": str(checkpoint.path),
                    "part": str(checkpoint.share) if checkpoint.share else None,
                    "digest": weights_digest(checkpoint),
                    "nbytes": checkpoint.nbytes,
                }
                folder = files[0].parent
    except PyllamaError as error:
        found["error"] = str(error)
    found["disk_free"] = shutil.disk_usage(folder).free
    if asked["rates"]:
        try:
            found["rates"] = asdict(measure(files))
        except PyllamaError as error:
            found["error"] = found["error"] or str(error)
    return found


def _has_mpi() -> bool:
    import importlib.util

    return importlib.util.find_spec("mpi4py") is not None


def surveys(hosts: Sequence[Host], model: str | None, *, rates: bool = True) -> list[dict[str, Any]]:
    """What each board tells, or {"error": ...}; those of one name are asked once, as they are one machine.

    To each is added clock_s, by how much its clock is ahead of this one's.
    """
    shares = shares_by_place(hosts)
    found: list[dict[str, Any]] = [{} for _ in hosts]
    first = {host.name: number for number, host in reversed(list(enumerate(hosts)))}

    def ask(number: int, with_rates: bool) -> None:
        host = hosts[number]
        try:
            with Remote(host.name, "pyllama.measure.board") as remote:
                sent = time.time()
                remote.send("time")
                clock = remote.receive("time")
                back = time.time()
                remote.send("survey", {"model": model, "place": host.place, "shares": shares, "rates": with_rates})
                found[number] = remote.receive("survey") | {
                    "clock_s": clock - (sent + back) / 2,
                    "answer_s": back - sent,
                }
        except PyllamaError as error:
            found[number] = {"error": str(error).removeprefix(f"{host.name}: "), "reached": False}

    threads = [
        threading.Thread(target=ask, args=(number, rates and first[host.name] == number), daemon=True)
        for number, host in enumerate(hosts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for host, told in zip(hosts, found, strict=True):
        if told.get("rates", 0) is None:
            told["rates"] = found[first[host.name]].get("rates")
    return found


def main() -> None:
    with answering() as link:
        while True:
            kind, data = link.receive()
            if kind == "time":
                link.send("time", time.time())
            elif kind == "survey":
                link.send("survey", survey(json.loads(data)))


if __name__ == "__main__":
    main()
