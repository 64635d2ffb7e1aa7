"""What `cluster check --json` prints -> a report a person can read."""

from collections.abc import Iterator
from typing import Any

from pyllama.measure.report_lines import table
from pyllama.terminal.progress import format_nbytes


def lines(report: dict[str, Any]) -> Iterator[str]:
    rows = []
    for host in report["hosts"]:
        if not host.get("reached", True):
            rows.append([host["name"], "not reached", "", "", "", ""])
            continue
        about, model, rates = host["machine"], host["model"], host["rates"]
        what = (model["part"] or "the whole model") if model else "no model"
        clocks = max(host["condition"]["clock_mhz"].values(), default=0)
        rows.append(
            [
                host["name"],
                f"{about['board'] or about['cpu']}{f' at {clocks} MHz' if clocks else ''}",
                what,
                f"{format_nbytes(host['memory'])} of memory, {format_nbytes(host['disk_free'])} of disk free",
                f"clock {host['clock_s']:+.3f} s",
                f"disk {rates['disk_gb_s']:.2f}, memory {rates['dram_gb_s']:.1f} GB/s, products"
                f" {rates['gflop_s']:.0f} GFLOP/s"
                if rates
                else "not measured",
            ]
        )
    yield from table(rows)
    if link := report["link"]:
        yield f"a step's message {link['latency_s'] * 1000:.2f} ms, {link['gb_s'] * 1000:.0f} MB/s, {link['source']}"
    if report["forecast"]:
        yield ""
    yield from _forecast(report)
    yield ""
    for line in report["wrong"]:
        yield f"! {line}"
    if not report["wrong"]:
        yield "nothing found that is wrong"


def _forecast(report: dict[str, Any]) -> Iterator[str]:
    if report["forecast"]:
        yield from table(
            [
                ["boards", "a token", "of it talk", "slowest waits for", "by proposed shares", ""],
                *(_row(row) for row in report["forecast"]),
            ]
        )
        dealt = sorted(zip(report["hosts"], report["shares"], strict=True), key=lambda pair: pair[0]["place"])
        told = ",".join(f"{host['name']}={share:g}" for host, share in dealt)
        yield f"proposed: --hosts {told}"


def _row(row: dict[str, Any]) -> list[str]:
    asked, proposed = row["as_asked"], row["proposed"]
    slowest = max(asked["boards"], key=lambda board: board["token_s"])
    shares = ", ".join(f"{share:g}" for share in row["shares"])
    return [
        str(row["boards"]),
        f"{asked['token_s']:.3g} s",
        f"{asked['talk_s'] * 1000:.2g} ms",
        slowest["bound"],
        f"{proposed['token_s']:.3g} s",
        shares,
    ]


def timed_lines(run: dict[str, Any]) -> Iterator[str]:
    """What `bench --hosts --json` prints, for a person."""
    rows = [["first pass", f"{run['first_pass_s']:.3g} s"]]
    rows += [[f"prompt of {length}", f"{prompt['tok_s']:.3g} tok/s"] for length, prompt in run["prefill"].items()]
    decode = run["decode"]
    each = decode["seconds"] / decode["tokens"]
    rows.append([f"{decode['tokens']} tokens", f"{decode['tok_s']:.3g} tok/s, {each:.3g} s each"])
    yield f"{run['model']} on {len(run['boards'])} boards"
    yield from table(rows)
    yield ""
    head = ["a token", "kept", "from disk", "waited for it", "in gathers", "sent", "messages"]
    yield from table([head, *(_board_row(board) for board in run["boards"])])


def _board_row(board: dict[str, Any]) -> list[str]:
    token = board["token"]
    return [
        board["name"],
        format_nbytes(board["pinned"]),
        format_nbytes(token["bytes_read"]),
        f"{token['waited_s'] * 1000:.3g} ms",
        f"{token['gather_s'] * 1000:.3g} ms",
        format_nbytes(token["sent"]),
        f"{token['messages']:.0f}",
    ]


def planned_lines(report: dict[str, Any]) -> Iterator[str]:
    """What `plan --hosts --json` prints, for a person."""
    asked = report["forecast"][-1]["as_asked"] if report["forecast"] else None
    if asked is not None:
        streamed = sum(board["streamed"] for board in asked["boards"])
        how = f"reading {format_nbytes(streamed)} from their disks for every token" if streamed else "all in memory"
        yield f"runs on {len(asked['boards'])} boards, {how}: {asked['token_s']:.3g} s a token"
        yield ""
        rows = [["board", "budget", "weights", "of them kept", "from disk", "a token", "waits for"]]
        for host, board in zip(report["hosts"], asked["boards"], strict=True):
            sizes = [format_nbytes(board[name]) for name in ("budget", "stored", "pinned", "streamed")]
            rows.append([host["name"], *sizes, f"{board['token_s']:.3g} s", board["bound"]])
        yield from table(rows)
        link = report["link"]
        yield f"talk {asked['talk_s'] * 1000:.3g} ms a token: {link['source']}"
        yield ""
    yield from _forecast(report)
    for line in report["wrong"]:
        yield f"! {line}"
