"""What `plan --json` prints -> a table a person can read."""

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyllama.terminal.progress import format_nbytes

if TYPE_CHECKING:
    from pyllama.planning.memory import Plan


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
    for text in _of_context(report["context"]):
        yield line("", text)
    for name, nbytes in parts(plan).items():
        note = f"  {plan['pinned'] / plan['weights']:.0%} of all" if name == "weights" else ""
        yield line(f"  {name}", f"{size(nbytes):>8}{note}")
    if plan["experts_stored"]:
        routed = f"a token goes to {format_nbytes(plan['active'])} of {format_nbytes(plan['experts_stored'])}"
        yield line("", f"{'':8}  the pool holds {plan['experts_share']:.0%} of the experts; {routed}")
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
    for number, text in enumerate(_draft(report["draft"])):
        yield line("" if number else "draft", text)
    yield ""
    yield from _times(predicted, report["packed"])
    if len(predicted["by_hit_rate"]) > 1:
        yield ""
        yield from _hit_rates(predicted["by_hit_rate"])
    if report["draft"]["candidates"]:
        yield ""
        yield from _drafts(report)
    if report["quantized"]:
        yield ""
        yield from _quantized(report["quantized"])
    if plan["streamed"] or plan["experts_share"] < 1:
        yield ""
        yield from _what_ifs(report)


def _of_context(context: dict[str, Any]) -> Iterator[str]:
    """What the length of the context decides of the model, and what it keeps that nobody sees."""
    original = context["original_positions"]
    if context["rotary_factors"] == "short":
        yield f"short rotary factors; with --context above {original} the long ones, which change all logits"
    elif context["rotary_factors"] == "long":
        yield f"long rotary factors, since --context is above {original}: other logits than with less, for all texts"
    windows = context["windows"]
    if windows and windows["unseen_nbytes"]:
        yield (
            f"{windows['layers']} layers see {windows['positions']} positions; all are kept for them too, "
            f"{size(windows['unseen_nbytes'])} of the cache more than is seen"
        )


def parts(plan: dict[str, Any]) -> dict[str, int]:
    """What a plan's bytes are spent on, by the names that people see; drafter and experts where there are some."""
    others = {name: plan[name] for name in ("states", "drafter", "branches", "experts") if plan[name]}
    names = {"process": "interpreter", "cache": "cache", "activations": "activations", "ring": "ring"}
    return {name: plan[key] for name, key in names.items()} | others | {"weights": plan["pinned"]}


def spent(plan: "Plan") -> dict[str, Any]:
    """A plan as --json has it."""
    names = ("budget", "context_length", "max_pass_tokens", "process", "cache", "states", "state_slots",
             "activations", "ring", "pinned", "drafter", "branches", "weights", "stored", "streamed", "experts",
             "expert_slots", "expert_room", "experts_stored", "experts_share", "active")  # fmt: skip
    return {"interpreter" if name == "process" else name: getattr(plan, name) for name in names}


def memory_text(plan: "Plan") -> str:
    """A plan in one line: "1G: process 144M, cache 112M, ..., weights 679M, 73% of all"."""
    items = ", ".join(f"{name} {size(nbytes)}" for name, nbytes in parts(spent(plan)).items())
    return f"{size(plan.budget)}: {items}, {plan.pinned / plan.weights:.0%} of all"


def verdict(report: dict[str, Any]) -> str:
    """What most people want to know, in one line."""
    about, plan, token_s = report["model"], report["plan"], report["forecast"]["token_s"]
    times = f"{duration(token_s)} a token, {duration(100 * token_s)} for 100"
    if not about["here"] and about["disk_free"] <= about["nbytes"]:
        return f"does not fit on the disk: {format_nbytes(about['nbytes'])}, {format_nbytes(about['disk_free'])} free"
    budget = size(plan["budget"])
    drafted = report["draft"]["chosen"]
    by = f", drafted by {drafted['name']}" if drafted else ""
    if plan["experts_share"] < 1:
        return f"runs in {budget}, reading the experts it lacks for every token{by}: {times} if all are chosen alike"
    if not plan["streamed"]:
        return f"fits in {budget}: {times}{by}"
    share = f"{plan['streamed'] / plan['stored']:.0%}" if plan["stored"] else "all"
    if by:
        return f"runs in {budget}, reading {share} of it from disk in every pass: {times}{by}"
    return f"runs in {budget}, reading {share} of it from disk for every token: {times}"


def _draft(draft: dict[str, Any]):
    """Who drafts, and by which rates that is said; nothing where nobody was thought of."""
    chosen, named = draft["chosen"], draft["asked"] != "auto"
    for row in [chosen] if chosen else draft["candidates"] if named else []:
        who = "look-up in the text"
        if row["kind"] != "lookup":
            what = "a copy of the model" if row["kind"] == "copy" else "with the same tokenizer"
            who = f"{row['name']}, {what}{'' if row['here'] else ', not made yet'}"
        if row["pays"]:
            yield f"{who}: a {row['shape']} of {row['nodes']} in every pass, for {row['tokens_a_pass']:.1f} tokens each"
        else:
            slower = f"{duration(row['token_s'])} a token, {duration(row['off_s'])} without"
            yield f"{who}: would not pay, and is left out ({slower})"
        yield draft["rates"]


def _drafts(report: dict[str, Any]):
    """What each drafter would change; the text is the same with all of them and with none."""
    draft, packed = report["draft"], report["packed"]
    after = {row["name"]: row for row in packed["draft"]["candidates"]} if packed else {}
    head = f"{'drafted (the same text)':28}{'nodes':>10}{'a pass':>12}{'a token':>10}{'100 tokens':>12}"
    yield head + (f"{'packed':>10}" if packed else "")
    off_s = next((row["off_s"] for row in draft["candidates"] if row["fits"]), None)
    if off_s is not None:
        tail = next((f"{duration(row['off_s']):>10}" for row in after.values() if row["fits"]), "")
        yield f"{'by nobody':28}{'-':>10}{'1 token':>12}{duration(off_s):>10}{duration(100 * off_s):>12}{tail}"
    for row in draft["candidates"]:
        name = row["name"] if len(row["name"]) <= 25 else f"...{row['name'][-22:]}"
        if not row["fits"]:
            yield f"{'by ' + name:28}{'no room':>10}"
            continue
        with_pack = after.get(row["name"], {})
        tail = f"{duration(with_pack['token_s']) if with_pack.get('fits') else '-':>10}" if packed else ""
        tokens = f"{row['tokens_a_pass']:.1f} tokens"
        yield (
            f"{'by ' + name:28}{row['shape'] + ' ' + str(row['nodes']):>10}{tokens:>12}"
            f"{duration(row['token_s']):>10}{duration(100 * row['token_s']):>12}{tail}"
        )
    if draft["asked"] == "auto" and not any(row["path"] and row["kind"] == "sibling" for row in draft["candidates"]):
        yield "no smaller model that was pulled has the same tokenizer; one of the same family would draft"
    if any(row["kind"] == "copy" and not row["here"] for row in draft["candidates"]):
        name = shlex.quote(report["model"]["path"]) if report["model"]["here"] else "MODEL"
        yield f"the copy is made by: pyllama quantize {name} --draft --calibration TEXT"


def _quantized(rows: list[dict[str, Any]]):
    yield f"{'quantized (another text)':28}{'size':>10}{'from disk':>12}{'a token':>10}{'100 tokens':>12}"
    for row in rows:
        disk = format_nbytes(row["streamed"]) if row["streamed"] else "nothing"
        yield (
            f"{'quantize --type ' + row['type']:28}{format_nbytes(row['nbytes']):>10}{disk:>12}"
            f"{duration(row['token_s']):>10}{duration(100 * row['token_s']):>12}"
        )


def _times(predicted: dict[str, Any], packed: dict[str, Any] | None):
    """Seconds as they are, and after `pyllama pack`, with what bounds them."""
    yield f"{'predicted':20} {'as it is':>24}" + (f" {'after pyllama pack':>24}" if packed else "")
    columns = [_time_cells(predicted)] + ([_time_cells(packed["forecast"])] if packed else [])
    for name in columns[0]:
        yield f"{name:20} " + " ".join(f"{column[name]:>24}" for column in columns)


def _time_cells(forecast: dict[str, Any]) -> dict[str, str]:
    bound, token_s = forecast["bound"], forecast["token_s"]
    seconds = {"a token": (token_s, "token"), "100 tokens": (100 * token_s, "token"),
               "the first pass": (forecast["first_s"], "first")}  # fmt: skip
    seconds |= {f"a prompt of {tokens}": (s, f"prompt_{tokens}") for tokens, s in forecast["prompt_s"].items()}
    return {name: f"{duration(s)} ({bound[of]})" for name, (s, of) in seconds.items()}


def _hit_rates(rates: list[dict[str, Any]]):
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
        if report["draft"]["chosen"]:
            title = title.replace(",", " undrafted,")
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
