"""`pyllama pack`: a model from the command line becomes a packed folder."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pyllama.cli.options import add_quiet
from pyllama.errors import RequestError

if TYPE_CHECKING:
    from pyllama.packing.own_rows import ForBoard

HELP = "write a model in pyllama's own form: the same bits, bfloat16 smaller, faster to stream"
DESCRIPTION = (
    "Write a model in pyllama's own form: bfloat16 weights in 12 bits, without losing one of theirs, "
    "in the order in which a pass reads them, with checksums. After a kill the same command goes on; DST comes "
    "to exist when all of it is whole."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SRC", help="a Hugging Face folder, a GGUF file, Meta's original folder, or a pulled model"
    )
    parser.add_argument("destination", metavar="DST", help="the folder to make")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="delete each weight file of SRC once its packed form was read back and is equal, "
        "so that the disk need not hold both",
    )
    parser.add_argument(
        "--for-host",
        metavar="K/N",
        help="pack the rows of the Kth of N boards alone, to run with the others by --hosts; with --hosts here: "
        "of its Kth board, or of the board of this name",
    )
    parser.add_argument(
        "--hosts",
        metavar="NAMES",
        help="with --for-host: the boards and their shares, as pi1,pi2,pi3=0.5 or a file (docs/cluster.md)",
    )
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the packed model's path on standard output."""
    from pyllama.packing import pack
    from pyllama.terminal.progress import Progress

    if args.hosts and not args.for_host:
        raise RequestError("--hosts: needs --for-host, which says whose rows are packed")
    board = _board(args.for_host, args.hosts) if args.for_host else None
    with Progress(f"packing {Path(args.source).name}", quiet=args.quiet) as progress:
        path = pack(args.source, args.destination, replace=args.replace, board=board, progress=progress)
    print(path)
    return 0


def _board(text: str, hosts: str | None) -> "ForBoard":
    """ "2/4", or with hosts also "2", or the name of one of them."""
    from pyllama.cluster.dealing import MOST_RANKS
    from pyllama.cluster.hosts import Host, read_hosts
    from pyllama.cluster.own_part import board_of

    boards = read_hosts(hosts) if hosts else []
    named = [host.place for host in boards if host.name == text]
    if len(named) > 1:
        raise RequestError(f"--for-host: {text} is named {len(named)} times, expected its number")
    if named:
        return board_of(boards, named[0])
    number, slash, count = text.partition("/")
    if hosts is None and slash and count.isascii() and count.isdigit() and 1 <= int(count[:4]) <= MOST_RANKS:
        boards = [Host(f"{place}", place=place) for place in range(int(count))]
    elif not boards or (slash and count != str(len(boards))):
        given = f" for the {len(boards)} boards of --hosts" if boards else ""
        raise RequestError(f"--for-host: got {text!r}, expected K/N{given}, N at most {MOST_RANKS}, such as 2/4")
    if not (number.isascii() and number.isdigit() and 1 <= int(number[:4]) <= len(boards)):
        raise RequestError(f"--for-host: got {text!r}, expected one of {len(boards)} boards, counted from 1")
    return board_of(boards, int(number) - 1)
