"""What `plan --json` prints -> a table a person can read."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from pyllama.terminal.progress import format_nbytes


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The report of `pyllama plan`, line by line."""
    about, plan, rates, predicted = report["model"], report["plan"], report["rates"], report["forecast"]

    def line(name: str, value: str) -> str:
        return f"{name:14} {value}".rstrip()

    yield verdict(report)
    yield ""
    yield line("model", f"{about['path']}")
    scale, unit = (1e9, "B") if about["parameters"] >= 1e9 else (1e6, "M")
    parameters = f"{about['parameters'] / scale:.3g} {unit} parameters"
    yield line("", f"{about['architecture']}, {parameters}, {about['dtype']}, {format_nbytes(about['nbytes'])}")
    if not about["here"]:
        fits = about["disk_free"] > about["nbytes"]
        free = f"{format_nbytes(about['disk_free'])} free where it would lie"
        yield line("", f"not here: {format_nbytes(about['nbytes'])} to fetch, {free}{'' if fits else ': does not fit'}")
    yield line("memory", f"{size(plan['budget'])} for {plan['context_length']} positions, passes of "
                         f"{plan['max_pass_tokens']} tokens")  # fmt: skip
    for name, key in (("process", "interpreter"), ("cache", "cache"), ("activations", "activations"),
                      ("ring", "ring"), ("weights", "pinned")):  # fmt: skip
        note = f"  {plan['pinned'] / plan['weights']:.0%} of all" if key == "pinned" else ""
        yield line(f"  {name}", f"{size(plan[key]):>8}{note}")
    if plan["experts_stored"]:
        routed = f"a token goes to {format_nbytes(plan['active'])} of {format_nbytes(plan['experts_stored'])}"
        yield line("  experts", f"{size(plan['experts']):>8}  {plan['experts_share']:.0%} of all; {routed}")
    if plan["streamed"] or plan["experts_share"] < 1:
        needed = f"all of it from --memory {size(report['enough_memory'])} on"
        more = ", and experts that are not there" if plan["experts_share"] < 1 else ""
        yield line("fits", f"yes, reading {format_nbytes(plan['streamed'])} from disk in every pass{more}; {needed}")
    else:
        yield line("fits", "yes, all of it: nothing is read after the first pass")
    source = rates["source"]
    yield line("disk", f"{format_rate(rates['disk_gb_s'])}, {source['disk']}")
    yield line("memory reads", f"{format_rate(rates['dram_gb_s'])}, {source['dram']}")
    whole = f" ({rates['quantized_gflop_s']:.0f} of quantized weights)" if rates["quantized_gflop_s"] else ""
    yield line("products", f"{rates['gflop_s']:.0f} GFLOP/s{whole}, {source['compute']}")
    yield ""
    yield from _times(predicted, report["packed"])
    if len(predicted["by_hit_rate"]) > 1:
        yield ""
        yield from _hit_rates(predicted["by_hit_rate"], report["packed"])
    if report["quantized"]:
        yield ""
        yield from _quantized(report["quantized"])
    if plan["streamed"] or plan["experts_share"] < 1:
        yield ""
        yield from _what_ifs(report)


def verdict(report: dict[str, Any]) -> str:
    """What most people want to know, in one line."""
    about, plan, token_s = report["model"], report["plan"], report["forecast"]["token_s"]
    times = f"{duration(token_s)} a token, {duration(100 * token_s)} for 100"
    if not about["here"] and about["disk_free"] <= about["nbytes"]:
        return f"does not fit on the disk: {format_nbytes(about['nbytes'])}, {format_nbytes(about['disk_free'])} free"
    budget = size(plan["budget"])
    if plan["experts_share"] < 1:
        return f"runs in {budget}, reading the experts it lacks for every token: {times} if all are chosen alike"
    if not plan["streamed"]:
        return f"fits in {budget}: {times}"
    share = f"{plan['streamed'] / plan['stored']:.0%}" if plan["stored"] else "all"
    return f"runs in {budget}, reading {share} of it from disk for every token: {times}"


def _quantized(rows: list[dict[str, Any]]):
    yield f"{'quantized (another text)':28}{'size':>10}{'from disk':>12}{'a token':>10}{'100 tokens':>12}"
    for row in rows:
        disk = format_nbytes(row["streamed"]) if row["streamed"] else "nothing"
        yield (
            f"{'quantize --type ' + row['type']:28}{format_nbytes(row['nbytes']):>10}{disk:>12}"
            f"{duration(row['token_s']):>10}{duration(100 * row['token_s']):>12}"
        )


def _prompt_s(tokens: str, forecast: dict[str, Any]) -> float:
    seconds: float = forecast["prompt_s"][tokens]
    return seconds


def _times(predicted: dict[str, Any], packed: dict[str, Any] | None):
    """Seconds as they are, and after `pyllama pack`, with what bounds them."""
    yield f"{'predicted':20} {'as it is':>24}" + (f" {'after pyllama pack':>24}" if packed else "")
    rows = [("a token", "token", lambda f: f["token_s"])]
    rows += [("100 tokens", "token", lambda f: 100 * f["token_s"]), ("the first pass", "first", lambda f: f["first_s"])]
    for tokens in predicted["prompt_s"]:
        rows.append((f"a prompt of {tokens}", f"prompt_{tokens}", partial(_prompt_s, tokens)))
    for name, key, seconds in rows:
        cells = []
        for column in (predicted, packed and packed["forecast"]):
            if column:
                cells.append(f"{duration(seconds(column))} ({column['bound'][key]})")
        yield f"{name:20} " + " ".join(f"{cell:>24}" for cell in cells)


def _hit_rates(rates: list[dict[str, Any]], packed: dict[str, Any] | None):
    """Seconds a token by how many of its experts are in memory, as it is."""
    yield f"{'a token, experts here':28}{'hits':>10}{'as it is':>12}"
    for row in rates:
        yield f"{row['name']:28}{row['hits']:>10.0%}{duration(row['token_s']):>12}"


def _what_ifs(report: dict[str, Any]):
    for table, packed in ((report["what_if"], False), (report["packed"] and report["packed"]["what_if"], True)):
        if not table:
            continue
        if packed:
            yield ""
        heads = [size(budget) for budget in table["budgets"]]
        title = "a token, packed" if packed else "a token, with"
        yield f"{title:28}" + "".join(f"{head:>10}" for head in heads)
        for row in table["disks"]:
            cells = ["-" if s is None else duration(s) for s in row["token_s"]]
            yield f"{row['disk'] + ' ' + format_rate(row['gb_s']):28}" + "".join(f"{cell:>10}" for cell in cells)


def size(nbytes: int) -> str:
    """As --memory takes it, rounded up: "250M", "1.5G"."""
    if nbytes < 1000 << 20:
        return f"{-(-nbytes // (1 << 20))}M"
    tenths = -(-nbytes * 10 // (1 << 30))
    return f"{tenths // 10}G" if tenths % 10 == 0 else f"{tenths / 10:.1f}G"


def format_rate(gb_s: float) -> str:
    return f"{gb_s:.3g} GB/s" if gb_s >= 0.9995 else f"{gb_s * 1000:.3g} MB/s"


def duration(seconds: float) -> str:
    """ "30 ms", "1.25 s", "140 s", "12 min", "3.5 h"."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.2g} ms"
    if seconds < 600:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
