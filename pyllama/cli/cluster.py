"""`pyllama cluster`: boards that share a model: what of it lies on their disks."""

import argparse
from typing import Any

from pyllama.cli import streams
from pyllama.cli.options import add_quiet


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "cluster",
        help="prepare and check boards that share a model",
        description="What boards that share a model by --hosts need (docs/cluster.md).",
    )
    actions = parser.add_subparsers(metavar="ACTION", help="push; it has a --help of its own")
    parser.set_defaults(run=lambda args: print(parser.format_help(), end="") or 0)
    _add_push(actions)


def _add_push(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = actions.add_parser(
        "push",
        help="write each board's part of a model to it, over ssh",
        description="Pack each board's rows of a model and write them to it over ssh, into its cache folder "
        "(pyllama/parts/MODEL), where run, chat and serve find them with the same --hosts. After a kill the same "
        "command goes on; a part comes to exist when all of it is whole, and has been read back.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model that is here: a path, or the name of a pulled one")
    _add_hosts(parser)
    add_quiet(parser)
    parser.set_defaults(run=push)


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
