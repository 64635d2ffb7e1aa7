"""`pyllama cluster`: boards that share a model: what of it lies on their disks, what they can do."""

import argparse
from typing import Any

from pyllama.cli import streams
from pyllama.cli.options import add_budget, add_json, add_quiet

HELP = "prepare and check boards that share a model"
DESCRIPTION = "What boards that share a model by --hosts need (docs/cluster.md)."


def add_options(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", help="push or check; each has a --help of its own")
    parser.set_defaults(run=lambda args: print(parser.format_help(), end="") or 0)
    action = actions.add_parser(
        "push",
        help="write each board's part of a model to it, over ssh",
        description="Pack each board's rows of a model and write them to it over ssh, into its cache folder "
        "(pyllama/parts/MODEL), where run, chat and serve find them with the same --hosts. After a kill the same "
        "command goes on; a part comes to exist when all of it is whole, and has been read back.",
    )
    action.add_argument("model", metavar="MODEL", help="a model that is here: a path, or the name of a pulled one")
    _add_hosts(action)
    add_quiet(action)
    action.set_defaults(run=push)
    action = actions.add_parser(
        "check",
        help="measure the boards and what lies between them, and tell what is wrong",
        description="Ask each board over ssh for its version, clock, memory, disk and, with MODEL, what of it is "
        "there; measure its disk, memory and products, and messages between all of them; tell what is wrong, a line "
        "each. With MODEL also propose shares, and predict seconds a token with 1, 2, ... all of the boards.",
    )
    action.add_argument("model", metavar="MODEL", nargs="?", help="the model that they are to run")
    _add_hosts(action)
    action.add_argument("--interface", metavar="NAME", help="through which they talk, such as eth0; default: any")
    add_budget(action, promise="for each board")
    add_json(action)
    add_quiet(action)
    action.set_defaults(run=check)


def check(args: argparse.Namespace) -> int:
    """Prints the report; 2 if anything is wrong."""
    from pyllama.cli.report import print_report
    from pyllama.measure.cluster_lines import lines

    report = checked(args)
    print_report(report, lines, as_json=args.json)
    return 2 if report["wrong"] else 0


def checked(args: argparse.Namespace) -> dict[str, Any]:
    """What is found of the boards of --hosts; the status line tells what is asked of them."""
    from pyllama.cluster.hosts import parse_hosts
    from pyllama.machine.memory import parse_size
    from pyllama.measure.cluster import check as check_boards
    from pyllama.terminal.status_line import StatusLine

    with StatusLine(quiet=args.quiet) as signs:
        return check_boards(
            args.model,
            parse_hosts(args.hosts),
            memory=None if args.memory is None else parse_size(args.memory),
            context_length=args.context_length,
            kv_dtype=args.kv_dtype,
            interface=args.interface,
            say=signs.show,
        )


def _add_hosts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hosts",
        metavar="NAMES",
        required=True,
        help="the boards, such as pi1,pi2,pi3=0.5 (half a share), or a file with a line for each (docs/cluster.md)",
    )


def push(args: argparse.Namespace) -> int:
    """Prints where each board has its part; what went wrong with a board is a line on standard error, and 2."""
    from pyllama.cluster.hosts import parse_hosts
    from pyllama.cluster.pushing import push as push_parts
    from pyllama.terminal.progress import Progress

    hosts = sorted(parse_hosts(args.hosts), key=lambda host: host.place)
    with Progress(f"pushing to {len(hosts)} boards", quiet=args.quiet) as progress:
        results = push_parts(args.model, hosts, progress)
    for result in results:
        if result.error is None:
            print(f"{result.host.name}: {result.path}{', which was there' if result.before else ''}")
    failed: list[Any] = [result.error for result in results if result.error is not None]
    for error in failed:
        streams.tell(error)
    return 2 if failed else 0
