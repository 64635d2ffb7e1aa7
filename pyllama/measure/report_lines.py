"""What `bench --json` prints -> a report a person can read, and post."""

from collections.abc import Iterator
from typing import Any

from pyllama.measure.others import QUIET
from pyllama.terminal.progress import format_nbytes


def lines(report: dict[str, Any]) -> Iterator[str]:
    about, threads = report["machine"], report["threads"]
    virtual = ", virtual" if about["virtual"] else ""
    memory = f", {about['memory_gb']} GB" if about["memory_gb"] else ""
    yield f"{about['board'] or about['cpu']}{memory}{virtual}: pyllama {about['pyllama']}, {report['date']}"
    clusters = f"{about['cpu']}, " if about["board"] else ""
    yield _line("processor", f"{clusters}{about['isa']}, {threads_text(threads)} of {about['cores']}")
    governor = f", governor {about['governor']}" if about["governor"] else ""
    yield _line("system", f"kernel {about['kernel']}, huge pages {about['huge_pages'] or 'unknown'}{governor}")
    yield _line("storage", report["disk"]["described"])
    yield from _condition(report["condition"])
    yield ""
    yield from _ceilings(report)
    yield ""
    rows = [[k["name"], f"{k['value']:.3g} {k['unit']}", f"{k['of_ceiling']:.0%} of {k['beside']}"]
            for k in report["kernels"]]  # fmt: skip
    yield from table(rows)
    for run in report["models"]:
        yield ""
        yield from _model(run)
    if "drafting" in report:
        yield ""
        yield from _drafting(report["drafting"])
    yield ""
    if report["others"] > QUIET:
        yield f"! not quiet: something else kept {report['others']:.1f} cores busy; run again before believing this"
    if not report["advice"]:
        yield "nothing found that is set wrong for the job"
    for item in report["advice"]:
        yield f"! {item['problem']}"
        yield f"  {item['remedy']}"


def _line(name: str, value: str) -> str:
    return f"{name:12} {value}"


def threads_text(n: int) -> str:
    return "1 thread" if n == 1 else f"{n} threads"


def _condition(states: dict[str, Any]) -> Iterator[str]:
    before, after = states["before"], states["after"]
    began = before["temperature_c"]
    texts = [f"{name} {began.get(name, c):.0f} to {c:.0f} C" for name, c in after["temperature_c"].items()]
    texts += [f"{name} {mhz} MHz" for name, mhz in after["clock_mhz"].items()]
    if texts:
        yield _line("condition", ", ".join(texts))
    if after["throttled"] is not None:
        now, since = after["throttled"]["now"], after["throttled"]["since_boot"]
        text = f"now {', '.join(now) or 'no'}; since it was switched on {', '.join(since) or 'no'}"
        yield _line("throttling", text)


def _ceilings(report: dict[str, Any]) -> Iterator[str]:
    ceilings, threads = report["ceilings"], str(report["threads"])
    one, all_threads = ceilings["1"], ceilings[threads]
    more = threads != "1"
    nbytes = format_nbytes(ceilings["buffer_nbytes"])
    several = f", {threads_text(int(threads))} {all_threads['read_gb_s']:.2f}" if more else ""
    yield _line("memory read", f"1 thread {one['read_gb_s']:.2f}{several} GB/s, over {nbytes}")
    several = f", {threads_text(int(threads))} {all_threads['peak_gflop_s']:.0f}" if more else ""
    yield _line("peak", f"1 thread {one['peak_gflop_s']:.0f}{several} GFLOP/s, float32 multiply-adds in registers")
    rates, direct = report["disk"]["read_gb_s"], "direct" if report["disk"]["direct"] else "buffered"
    what = f"{direct} reads of 4 MB, {report['disk']['file']}"
    yield _line("disk read", f"1 in flight {rates['1']:.2f}, 3 in flight {rates['3']:.2f} GB/s, {what}")


def _model(run: dict[str, Any]) -> Iterator[str]:
    if "skipped" in run:
        yield f"{run['kind']}: not measured, {run['skipped']}"
        return
    yield (
        f"{run['model']}, {run['kind']}: {format_nbytes(run['pinned_nbytes'])} kept,"
        f" {format_nbytes(run['streamed_nbytes'])} read in every pass"
    )
    decode = run["decode"]
    rows = [["first pass", f"{run['first_pass_s']:.3g} s", ""]]
    for length, prompt in run["prefill"].items():
        rate = f", {prompt['gflop_s']:.3g} GFLOP/s" if "gflop_s" in prompt else ""
        rows.append([f"prompt of {length}", f"{prompt['tok_s']:.3g} tok/s{rate}", _of(prompt)])
    disk = f", {decode['bytes_read'] / decode['seconds'] / 1e6:.0f} MB/s from disk" if run["streamed_nbytes"] else ""
    rate = f"{decode['tok_s']:.3g} tok/s, {decode['gb_s']:.3g} GB/s of weights{disk}"
    rows.append([f"{decode['tokens']} tokens", rate, _of(decode)])
    experts = decode.get("experts")
    if experts and experts["hit_rate"] is not None:
        found = f"{experts['hit_rate']:.0%} in memory, {format_nbytes(experts['bytes_token'])} a token from disk"
        rows.append(["experts", f"{found}; {experts['guesses_used']} of {experts['guesses']} guesses used", ""])
    budget = f" of {format_nbytes(run['budget'])}" if run["streamed_nbytes"] else ""
    rows.append(["peak memory", f"{format_nbytes(run['peak_rss_bytes'])}{budget}", ""])
    rows.append(["read", f"{format_nbytes(run['bytes_read'])} in {run['passes']} passes", ""])
    yield from table(rows)


def _drafting(run: dict[str, Any]) -> Iterator[str]:
    under = f", under {format_nbytes(run['budget'])}" if run["budget"] else ""
    if run["name"] is None and not run["proposed_tokens"]:
        yield f"drafted ({run['draft']}){under}: nobody drafts here, {run['token_s']:.3g} s a token"
        return
    yield f"drafted by {run['name']}{under}: {run['tokens']} tokens of text"
    accepted = f"{run['accepted_tokens']} of {run['proposed_tokens']} proposed"
    share = f", {run['acceptance']:.0%}" if run["acceptance"] is not None else ""
    given_up = f"; {run['given_up']} was given up" if run["given_up"] else ""
    took = f"{run['draft_s']:.3g} s, {run['load_s']:.3g} of them to load {format_nbytes(run['nbytes'])}"
    yield from table(
        [
            ["tokens a pass", f"{run['tokens_a_pass']:.2f}"],
            ["accepted", f"{accepted}{share}{given_up}"],
            ["drafting", took if run["nbytes"] else f"{run['draft_s']:.3g} s"],
            ["s a token", f"{run['token_s']:.3g}, without {run['token_s_off']:.3g}: {run['gain']:.2f} times as fast"],
        ]
    )


def _of(result: dict[str, Any]) -> str:
    return f"{result['of_ceiling']:.0%} of what {result['bound']} allows" if "of_ceiling" in result else ""


def table(rows: list[list[str]]) -> Iterator[str]:
    """Columns as wide as they need to be, indented by two."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
