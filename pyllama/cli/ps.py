"""`pyllama ps`: which servers of pyllama run on this machine, a person's or systemd's."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyllama.cli.options import add_json
from pyllama.errors import PyllamaError

PROC = Path("/proc")

HELP = "list the servers that run"
DESCRIPTION = "List the servers of pyllama that run on this machine, services included: model, address, memory."


def add_options(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from pyllama.cli.report import print_report

    print_report({"servers": list(servers(args.command_line))}, _lines, as_json=args.json)
    return 0


def servers(command_line: argparse.ArgumentParser, proc: Path = PROC) -> Iterator[dict[str, Any]]:
    """pid, model, host, port and resident bytes of each process that is a `pyllama serve`."""
    for folder in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            words = [os.fsdecode(word) for word in (folder / "cmdline").read_bytes().split(b"\0")[:-1]]
            status = (folder / "status").read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has ended
            continue
        options = _options_of(words, command_line)
        if options is not None:
            resident = next((line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")), "0")
            yield {"pid": int(folder.name), "model": options.model, "host": options.host, "port": options.port,
                   "rss_bytes": int(resident) << 10}  # fmt: skip


def _options_of(words: list[str], command_line: argparse.ArgumentParser) -> argparse.Namespace | None:
    """The options of a process that is a server; None for any other."""
    if "serve" not in words[1:]:
        return None
    at = words.index("serve", 1)
    before = words[:at]
    is_module = before[-2:] == ["-m", "pyllama"]
    if not is_module and Path(before[-1]).name != "pyllama":
        return None
    try:
        return command_line.parse_args(words[at:])
    except (PyllamaError, SystemExit):  # a version with other options
        return None


def _lines(report: dict[str, Any]) -> Iterator[str]:
    from pyllama.terminal.progress import format_nbytes

    if not report["servers"]:
        yield "no server of pyllama runs; pyllama serve MODEL starts one"
    for server in report["servers"]:
        address = f"http://{server['host']}:{server['port']}"
        yield f"{server['pid']:>7}  {format_nbytes(server['rss_bytes']):>8}  {address:24}  {server['model']}"
