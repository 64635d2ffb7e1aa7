"""`pyllama pack`: a model from the command line becomes a packed folder."""

import argparse
from pathlib import Path

from pyllama.cli.options import add_quiet


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "pack",
        help="write a model in pyllama's own form: the same bits, bfloat16 smaller, faster to stream",
        description="Write a model in pyllama's own form: bfloat16 weights in 12 bits, without losing one of theirs, "
        "in the order in which a pass reads them, with checksums. After a kill the same command goes on; DST comes "
        "to exist when all of it is whole.",
    )
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
    add_quiet(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the packed model's path on standard output."""
    from pyllama.packing import pack
    from pyllama.terminal.progress import Progress

    with Progress(f"packing {Path(args.source).name}", quiet=args.quiet) as progress:
        path = pack(args.source, args.destination, replace=args.replace, progress=progress)
    print(path)
    return 0
