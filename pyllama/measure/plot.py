"""Memory and disk over time -> an SVG: resident set beside its budget, disk rate beside its ceiling, tokens marked."""

import math
from collections.abc import Iterator
from html import escape
from typing import Any

WIDTH, LEFT, RIGHT = 860, 78, 20
PANEL, GAP, TOP, BOTTOM = 170, 76, 64, 46
INK, FAINT, MEMORY, DISK, TOKEN = "#222", "#ddd", "#1f77b4", "#d2691e", "#2a9d4f"


def plot(runs: list[dict[str, Any]], title: str, disk_gb_s: float) -> str:
    """The SVG of every run that has a series, one under the other."""
    runs = [run for run in runs if len(run.get("series", {}).get("time_s", ())) > 1]
    each = 2 * PANEL + 2 * GAP
    height = TOP + len(runs) * each + BOTTOM - GAP
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>',
    ]
    for number, run in enumerate(runs):
        out += _run(run, TOP + number * each, disk_gb_s)
    return "\n".join([*out, "</svg>"]) + "\n"


def _run(run: dict[str, Any], top: float, disk_gb_s: float) -> Iterator[str]:
    series = run["series"]
    times, end = series["time_s"], max(series["time_s"][-1], 1e-3)

    def x(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / end

    resident = [(t, nbytes / 1e6) for t, nbytes in zip(times, series["rss_bytes"], strict=True)]
    rates = rate_steps(times, series["bytes_read"], end)
    budget = [(run["budget"] / 1e6, "budget")] if run["streamed_nbytes"] else []
    ceiling = [(disk_gb_s * 1e3, "plain reads, 3 in flight")]
    below = top + PANEL + GAP
    yield from _tokens(series["events"], x, top, 2 * PANEL + GAP)
    yield from _panel(f"{run['model']}, {run['kind']}: resident set, MB", resident, budget, MEMORY, top, x, end)
    yield from _panel("read from disk, MB/s", rates, ceiling, DISK, below, x, end)
    yield f'<text x="{WIDTH - RIGHT}" y="{below + PANEL + 36}" text-anchor="end">seconds</text>'


def rate_steps(times: list[float], read: list[int], end: float, steps: int = 240) -> list[tuple[float, float]]:
    """MB/s over equal stretches of time, at the middle of each; at least three samples to a stretch."""
    count = max(1, min(steps, len(times) // 3))
    out = []
    at = 0
    before_t, before = times[0], read[0]
    for step in range(1, count + 1):
        until = end * step / count
        while at + 1 < len(times) and times[at + 1] <= until + 1e-9:
            at += 1
        if times[at] > before_t:
            out.append(((before_t + times[at]) / 2, (read[at] - before) / 1e6 / (times[at] - before_t)))
            before_t, before = times[at], read[at]
    return out


def _panel(label, points, lines, color, top, x, end) -> Iterator[str]:
    most = max([value for _, value in points] + [value for value, _ in lines] + [1e-9])
    ticks = nice_ticks(most)
    most = ticks[-1]

    def y(value: float) -> float:
        return top + PANEL * (1 - min(value, most) / most)

    right = WIDTH - RIGHT
    yield f'<text x="{LEFT}" y="{top - 10}">{escape(label)}</text>'
    for tick in ticks:
        yield f'<line x1="{LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="{FAINT}"/>'
        yield f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
    for tick in nice_ticks(end):
        if tick <= end:
            yield (f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top + PANEL}" y2="{top + PANEL + 4}" '
                   f'stroke="{INK}"/>')  # fmt: skip
            yield f'<text x="{x(tick):.1f}" y="{top + PANEL + 18}" text-anchor="middle">{tick:g}</text>'
    for value, name in lines:
        yield (f'<line x1="{LEFT}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="{INK}" '
               f'stroke-dasharray="5 4"/>')  # fmt: skip
        yield f'<text x="{right}" y="{y(value) - 5:.1f}" text-anchor="end">{escape(name)}</text>'
    path = " ".join(f"{x(t):.1f},{y(value):.1f}" for t, value in points)
    yield f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>'


def _tokens(events, x, top: float, height: float) -> Iterator[str]:
    """A faint line down both panels where a token came, a named one where something else began."""
    ends = [-1e9, -1e9]  # of the names in the two rows between the panels
    for seconds, what in events:
        at = x(seconds)
        if what == "token":
            yield (f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{top + height}" stroke="{TOKEN}" '
                   f'stroke-opacity="0.35"/>')  # fmt: skip
            continue
        yield (f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{top + height}" stroke="{INK}" '
               f'stroke-opacity="0.5" stroke-dasharray="2 3"/>')  # fmt: skip
        row = 0 if at >= ends[0] else 1
        if at >= ends[row]:
            low = top + PANEL + 34 + 13 * row
            width = 6.5 * len(what) + 6
            place = f'x="{at + 3:.1f}"' if at + width < WIDTH - RIGHT else f'x="{at - 3:.1f}" text-anchor="end"'
            yield f'<text {place} y="{low}" font-size="11">{escape(what)}</text>'
            ends[row] = at + width


def nice_ticks(most: float, about: int = 4) -> list[float]:
    """0 and round numbers up to one that is not below `most`."""
    raw = most / about
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(s * scale for s in (1, 2, 2.5, 5, 10) if s * scale >= raw * 0.999)
    count = math.ceil(most / step - 1e-9)
    return [round(i * step, 10) for i in range(count + 1)]
