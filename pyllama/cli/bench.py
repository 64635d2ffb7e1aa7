"""`pyllama bench`: what this machine can do, and how near a model comes to it: a report worth posting."""

import argparse
from pathlib import Path

from pyllama.cli.options import add_draft, add_hosts, add_json, add_quiet
from pyllama.errors import RequestError

# Options that mean nothing without MODEL, and why.
_ABOUT_MODEL = {
    "plot": "there is nothing to draw without one",
    "memory": "it is the budget of the streamed run",
    "draft": "which the drafter would draft for",
    "hosts": "which the boards run",
}

HELP = "measure this machine, and a model on it"
DESCRIPTION = (
    "Measure memory, disk, arithmetic and kernels of this machine; with a model also prompts and "
    "decoding, resident and streamed, each beside what the machine allows. Names what is set wrong, and the "
    "remedy. Takes about half a minute, longer with a large model or a slow disk."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a model to measure too: a path, or the name of a pulled model",
    )
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="budget of the streamed run, such as 500M; default: what keeps a quarter of the weights",
    )
    parser.add_argument("--threads", metavar="N", type=int, help="default: the physical cores")
    parser.add_argument(
        "--file",
        metavar="FILE",
        help="an existing large file to measure the disk with; default: the model's, or one of 512 MB made for it",
    )
    add_draft(
        parser,
        default=None,
        purpose="measure a drafter too: how much of what it proposes MODEL accepts, and seconds a token with and "
        "without; a model with the same tokenizer, self, lookup, auto",
    )
    parser.add_argument(
        "--text", metavar="FILE", help="what MODEL continues for --draft; default: some lines of code, data and prose"
    )
    add_hosts(parser)
    add_json(parser)
    parser.add_argument("--csv", metavar="FILE", help="add a line a run to this file, in the format of bench/results/")
    parser.add_argument("--plot", metavar="FILE", help="draw memory and disk over time, as SVG; needs MODEL")
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    from pyllama.cli.report import print_report
    from pyllama.machine.memory import budget_of
    from pyllama.measure import csv_file, plot
    from pyllama.measure.drafting import read_text
    from pyllama.measure.report import measure
    from pyllama.measure.report_lines import lines
    from pyllama.terminal.status_line import StatusLine

    for option, why in _ABOUT_MODEL.items():
        if getattr(args, option) and not args.model:
            raise RequestError(f"--{option}: needs MODEL, {why}")
    if args.text and not args.draft:
        raise RequestError("--text: needs --draft, it is what is then continued")
    text = None if args.text is None else read_text(Path(args.text))
    if args.threads is not None and not 1 <= args.threads <= 1024:
        raise RequestError(f"threads: {args.threads}, expected 1 to 1024")
    memory = None if args.memory is None else budget_of(args.memory)
    if args.hosts:
        return _bench_hosts(args, memory)
    file = None if args.file is None else Path(args.file)
    with StatusLine(quiet=args.quiet) as signs:
        report = measure(
            args.model, memory=memory, file=file, threads=args.threads, say=signs.show, draft=args.draft, text=text
        )
    if args.csv:
        csv_file.append(Path(args.csv), csv_file.rows_of(report))
    if args.plot:
        about = report["machine"]
        title = f"pyllama {about['pyllama']} on {about['board'] or about['cpu']}, {report['date']}"
        Path(args.plot).write_text(plot.plot(report["models"], title, report["disk"]["read_gb_s"]["3"]))
    print_report(report, lines, as_json=args.json)
    return 0


def _bench_hosts(args: argparse.Namespace, memory: int | None) -> int:
    """The model on several boards; what each of them can do is told by `pyllama cluster check`."""
    from pyllama.cli.report import print_report
    from pyllama.measure.cluster_lines import timed_lines
    from pyllama.measure.hosts import measure
    from pyllama.terminal.status_line import StatusLine

    if args.file or args.draft or args.csv or args.plot:
        raise RequestError("--hosts: without --file, --draft, --csv and --plot, which are about one machine")
    with StatusLine(quiet=args.quiet) as signs:
        report = measure(
            args.model, args.hosts, memory=memory, threads=args.threads, interface=args.interface, say=signs.show
        )
    print_report(report, timed_lines, as_json=args.json)
    return 0
