"""`pyllama plan`: does a model fit, how is the memory spent, how long will a token take; before anything is loaded."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllama.cli.options import add_budget, add_hosts, add_json, add_quiet
from pyllama.errors import HubError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyllama.architecture import Config
    from pyllama.checkpoint import Checkpoint
    from pyllama.checkpoint.outline import Outline
    from pyllama.hub.fetch import Wanted
    from pyllama.planning.drafting import DrafterPlan
    from pyllama.planning.memory import Plan
    from pyllama.planning.time import Rates, WhatIf
    from pyllama.terminal.progress import Progress

#: Types whose forecasts are shown beside a model's that is not quantized: nearly lossless, and what most people take.
QUANTIZED = ("q8_0", "q4_k_m")

HELP = "tell whether a model fits, and how fast it will be"
DESCRIPTION = (
    "Tell how a memory budget would be divided, what each pass reads from disk, and predict seconds "
    "per token and prompt from this machine's rates, measured in a few seconds. Loads nothing; of a model that "
    "is not here, only config.json and the index are fetched, or a GGUF file's header is read where it is."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="as for run; also org/name of a model that was not pulled",
    )
    add_budget(parser)
    parser.add_argument("--disk", metavar="RATE", help="bytes a second from disk, such as 90M or 0.85G, not measured")
    parser.add_argument("--dram", metavar="RATE", help="bytes a second from memory, such as 10.5G, not measured")
    parser.add_argument(
        "--board",
        choices=("pi5", "pi4", "rk3588", "orion-o6"),
        help="predict for this board, by rates of a model of it; needs --memory",
    )
    parser.add_argument(
        "--draft",
        metavar="WHO",
        default="auto",
        help="who proposes tokens for a pass to verify, by rates that are borrowed: auto (a pulled model with the same "
        "tokenizer, a copy made by pyllama quantize --draft, look-up), a model, self, lookup or off; default: auto, "
        "where weights are read in every pass",
    )
    add_hosts(parser)
    add_json(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    from pyllama.cli.plan_lines import lines
    from pyllama.cli.report import print_report
    from pyllama.machine.memory import budget_of, parse_size
    from pyllama.planning.memory import telling_enough

    if args.board and args.memory is None:
        raise RequestError("--board: needs --memory, what the process may take there")
    disk_gb_s, dram_gb_s = _rate("--disk", args.disk), _rate("--dram", args.dram)
    if args.hosts:
        return _plan_hosts(args)
    budget = parse_size(args.memory) if args.board else budget_of(args.memory)
    model = _open(args.model, args.quiet)
    with telling_enough(args.memory):
        report = make_report(
            model,
            budget,
            asked_context=args.context_length,
            kv_dtype=args.kv_dtype,
            rates=lambda files: _rates(args.board, files, disk_gb_s, dram_gb_s),
            draft=args.draft,
            opened=lambda name: _open(name, args.quiet),
        )
    print_report(report, lines, as_json=args.json)
    return 0


def _plan_hosts(args: argparse.Namespace) -> int:
    """Of boards that are asked and measured, or, with --board, of such ones as a model of them has it."""
    from pyllama.cli.cluster import checked
    from pyllama.cli.report import print_report
    from pyllama.cluster.hosts import read_hosts
    from pyllama.machine.memory import parse_size
    from pyllama.measure.cluster import predict
    from pyllama.measure.cluster_lines import planned_lines
    from pyllama.planning.time import BOARDS

    if args.disk or args.dram or args.draft not in ("auto", "off"):
        raise RequestError("--hosts: without --disk, --dram and --draft; boards are measured, or those of --board")
    if args.board:
        rates, hosts, memory = BOARDS[args.board], read_hosts(args.hosts), parse_size(args.memory)
        report = predict(args.model, hosts, rates, memory, args.context_length, args.kv_dtype)
    else:
        report = checked(args)
    print_report(report, planned_lines, as_json=args.json)
    return 2 if report["wrong"] else 0


def make_report(
    model: "Checkpoint | Outline",
    budget: int,
    *,
    asked_context: int | None,
    kv_dtype: str,
    rates: "Callable[[list[Path]], Rates]",
    draft: str = "off",
    opened: "Callable[[str], Checkpoint | Outline] | None" = None,
) -> dict[str, Any]:
    """Everything `plan --json` prints. rates(files) measures or looks up, once the plan is known to work.

    draft   as --draft takes it
    opened  opens the drafter that it names
    """
    from dataclasses import asdict

    from pyllama.cli.plan_draft import AUTO, candidates, weigh
    from pyllama.cli.plan_lines import spent
    from pyllama.planning.memory import DEFAULT_CONTEXT_LENGTH, default_context, make_plan
    from pyllama.planning.time import enough, packed, what_if

    config = model.config
    if asked_context is not None and not 1 <= asked_context <= config.max_position_embeddings:
        raise RequestError(f"context_length: {asked_context}, expected 1 to {config.max_position_embeddings}")
    context = asked_context or default_context(config, budget, kv_dtype, DEFAULT_CONTEXT_LENGTH)
    tokenizer = _tokenizer(model)
    options: dict[str, Any] = {"context_length": context, "kv_dtype": kv_dtype, "interpreter": _interpreter(tokenizer)}
    plan = make_plan(model, budget, **options)
    wanted = draft != AUTO or plan.streamed > 0  # where nothing is read in every pass, nobody drafts unasked
    drafters = candidates(draft, model, tokenizer, opened or (lambda name: _open(name, True))) if wanted else []
    files = list(getattr(model, "files", ()))
    measured = rates(files)

    def outlook(of: "Checkpoint | Outline", plan: "Plan") -> dict[str, Any]:
        said, chosen = weigh(draft, drafters, of, budget, measured, options)
        return {
            "plan": spent(chosen.plan if chosen else plan),
            "forecast": _predicted(of, plan, measured, kv_dtype, chosen),
            "what_if": _table(what_if(of, budget, measured, **options)),
            "draft": said,
        }

    own = outlook(model, plan)
    report = {
        "model": _about(model, files),
        "context": _context(config.for_context(asked_context), context, kv_dtype),
        "plan": own["plan"],
        "enough_memory": enough(model, **options),
        "rates": asdict(measured),
        "forecast": own["forecast"],
        "what_if": own["what_if"],
        "packed": None,
        "quantized": _quantized(model, budget, measured, options),
        "draft": own["draft"],
    }
    smaller = packed(model)
    if smaller is not None:
        from pyllama.checkpoint.outline import stored_nbytes

        nbytes = stored_nbytes(smaller)
        report["packed"] = {"nbytes": nbytes, **outlook(smaller, make_plan(smaller, budget, **options))}
    return report


def _counted(model: "Checkpoint | Outline", plan: "Plan") -> float | None:
    """The hits of a pool of those experts that were chosen most so far, if that is written down."""
    from pyllama.streaming.expert_counts import counts_of, hit_share

    counts = counts_of(model, model.path) if plan.experts_share else None
    return None if counts is None else hit_share(counts, plan.expert_slots)


def _quantized(
    model: "Checkpoint | Outline", budget: int, rates: "Rates", options: dict[str, Any]
) -> list[dict[str, Any]]:
    """The same of files that `pyllama quantize` would make; none for a model that is one, or has no GGUF form."""
    from pyllama.checkpoint.dtypes import PLAIN

    if model.dtype not in PLAIN:
        return []
    from pyllama.checkpoint.outline import stored_nbytes
    from pyllama.errors import UnsupportedError
    from pyllama.planning.memory import make_plan
    from pyllama.planning.time import forecast
    from pyllama.quantizing.prospect import prospect

    found = []
    for name in QUANTIZED:
        try:
            smaller = prospect(model, name)
        except UnsupportedError:
            return []
        plan = make_plan(smaller, budget, **options)
        predicted = forecast(smaller, plan, rates, kv_dtype=options["kv_dtype"])
        found.append({"type": name, "nbytes": stored_nbytes(smaller), "streamed": plan.streamed,
                      "token_s": predicted.token_s})  # fmt: skip
    return found


def _open(name: str, quiet: bool) -> "Checkpoint | Outline":
    """The model's files if they are here, else what its config and index tell."""
    from pyllama.checkpoint import open_checkpoint
    from pyllama.checkpoint.huggingface_outline import describes, outline_huggingface
    from pyllama.hub.find import NotInCacheError, resolve

    try:
        path = resolve(name)
    except NotInCacheError:
        return _fetch_outline(name, quiet)
    if describes(path):
        return outline_huggingface(path)
    return open_checkpoint(path)


def _fetch_outline(name: str, quiet: bool) -> "Checkpoint | Outline":
    from pyllama import hub
    from pyllama.checkpoint.huggingface_outline import outline_huggingface
    from pyllama.hub.choose import INDEX
    from pyllama.hub.listing import list_files
    from pyllama.hub.names import DEMO, parse_name
    from pyllama.terminal.progress import Progress

    if name == DEMO:
        raise HubError(f"{DEMO}: not in the cache, and small: pyllama pull {DEMO}")
    model = parse_name(name)
    with Progress(quiet=quiet) as progress:
        there = list_files(model, progress.note).files
        if model.quantization or not any(file.endswith(".safetensors") for file in there):
            return _remote_gguf(name, progress)
        folder = hub.pull(name, progress, weights=False)
    if not (folder / "config.json").is_file():
        raise HubError(f"{name}: has no config.json to plan from; pull it first: pyllama pull {name}")
    nbytes = None
    if not (folder / INDEX).is_file():
        sizes = [f.nbytes for f in there.values() if f.name.endswith(".safetensors") and "/" not in f.name]
        if not sizes:
            raise HubError(f"{name}: has no safetensors weights to plan for; pull what it has: pyllama pull {name}")
        nbytes = sizes[0] if len(sizes) == 1 else None
    return outline_huggingface(folder, nbytes)


class _SeenError(Exception):
    """What was to be looked at is known; nothing is to be fetched."""


def _remote_gguf(name: str, progress: "Progress") -> "Outline":
    """A GGUF file by its header, which is read where it is."""
    from pyllama import hub
    from pyllama.checkpoint.gguf import open_gguf
    from pyllama.checkpoint.outline import Outline

    seen: list[Wanted] = []

    def before(wanted: "Wanted") -> None:
        seen.append(wanted)
        raise _SeenError

    try:
        hub.pull(name, progress, before=before)
    except _SeenError:
        pass
    (wanted,) = seen
    if not wanted.weights[0].endswith(".gguf"):
        raise HubError(f"{name}: has no safetensors and no GGUF weights to plan for; pull it: pyllama pull {name}")
    with open_gguf(Path(wanted.weights[0]), wanted.open) as found:
        return Outline(Path(name), "gguf", found.config, found.tensors, found.rope_interleaved, found.metadata)


def _rates(board: str | None, files: list[Path], disk_gb_s: float | None, dram_gb_s: float | None) -> "Rates":
    if board is None:
        from pyllama.measure.rates import measure

        return measure(files, disk_gb_s=disk_gb_s, dram_gb_s=dram_gb_s)
    from dataclasses import replace

    from pyllama.planning.time import BOARDS

    rates = BOARDS[board]
    given = {"disk": disk_gb_s, "dram": dram_gb_s}
    source = rates.source | {name: "as given" for name, rate in given.items() if rate is not None}
    return replace(rates, disk_gb_s=disk_gb_s or rates.disk_gb_s, dram_gb_s=dram_gb_s or rates.dram_gb_s, source=source)


def _rate(option: str, text: str | None) -> float | None:
    """GB/s of "90M" or "0.85G" (powers of 1000)."""
    if text is None:
        return None
    scale = {"M": 1e-3, "G": 1.0}.get(text[-1:].upper(), 1e-9)
    try:
        rate = float(text if scale == 1e-9 else text[:-1]) * scale
    except ValueError:
        rate = 0.0
    if not 1e-4 <= rate < 1e5:
        raise RequestError(f"{option}: got {text!r}, expected bytes a second, such as 90M or 0.85G")
    return rate


def _tokenizer(model: "Checkpoint | Outline") -> Any:
    """The model's tokenizer, or None where it has none that works."""
    from pyllama.errors import PyllamaError
    from pyllama.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(model)
    except PyllamaError:
        return None
    return None if tokenizer.kind == "none" else tokenizer


def _interpreter(tokenizer: Any) -> int:
    """Resident bytes of this process with the model's tokenizer: what it would have before weights are loaded."""
    from pyllama.machine.memory import interpreter_nbytes, resident_nbytes
    from pyllama.planning.memory import INTERPRETER

    return max(INTERPRETER, resident_nbytes()) if tokenizer is None else interpreter_nbytes(tokenizer)


def _about(model: "Checkpoint | Outline", files: list[Path]) -> dict[str, Any]:
    import math
    import shutil

    from pyllama.checkpoint.outline import stored_nbytes

    config = model.config
    about = {
        "path": str(model.path),
        "architecture": config.architecture,
        "parameters": sum(math.prod(t.shape) for t in model.tensors.values()),
        "dtype": model.dtype,
        "nbytes": stored_nbytes(model),
        "here": bool(files),
    }
    if not files:
        from pyllama.hub.cache import hub_cache
        from pyllama.measure.rates import nearest

        about["disk_free"] = shutil.disk_usage(nearest(hub_cache())).free
    return about


def _context(config: "Config", positions: int, kv_dtype: str) -> dict[str, Any]:
    """What the length of a context decides, or does not: LongRoPE's factors, and what windows leave unseen."""
    from pyllama.architecture import layers_of
    from pyllama.architecture.layer import attentions
    from pyllama.decoder import Shape
    from pyllama.decoder.page_pool import beyond_windows_nbytes

    keeping = [mixer.window for mixer in attentions(layers_of(config))]
    windows = [window for window in config.layer_windows if window is not None]
    unseen = beyond_windows_nbytes(Shape.whole(config), keeping, positions, kv_dtype)
    scaling = config.rope_scaling
    longrope = scaling if scaling and scaling.kind == "longrope" else None
    return {
        "rotary_factors": ("long" if longrope.long else "short") if longrope else None,
        "original_positions": longrope.original_max_position_embeddings if longrope else None,
        "windows": {"layers": len(windows), "positions": min(windows), "unseen_nbytes": unseen} if windows else None,
    }


def _predicted(
    model: "Checkpoint | Outline", plan: "Plan", rates: "Rates", kv_dtype: str, drafted: "DrafterPlan | None"
) -> dict[str, Any]:
    """Of the plan, or of the drafter's: then with a token as drafted, and with its loading in the first pass."""
    from dataclasses import asdict

    from pyllama.planning.time import forecast

    of = drafted.plan if drafted else plan
    predicted = asdict(forecast(model, of, rates, kv_dtype=kv_dtype, counted=_counted(model, of)))
    if drafted is not None:
        predicted["token_s"] = drafted.forecast.token_s
        predicted["bound"]["token"] = drafted.forecast.bound
        predicted["first_s"] += drafted.forecast.load_s
    return predicted | {
        "prompt_s": {str(n): s for n, s in predicted["prompt_s"].items()},
        "by_hit_rate": list(predicted["by_hit_rate"]),
    }


def _table(table: "WhatIf") -> dict[str, Any]:
    disks = [{"disk": name, "gb_s": rate, "token_s": list(row)}
             for (name, rate), row in zip(table.disks, table.token_s, strict=True)]  # fmt: skip
    return {"budgets": list(table.budgets), "disks": disks}
