"""`pyllama unpack`: a packed folder becomes safetensors with the bytes it was made from."""

import argparse
from pathlib import Path

from pyllama.cli.options import add_quiet

HELP = "give back the tensors of a packed model"
DESCRIPTION = (
    "Write the tensors of a packed model as safetensors, byte for byte what they were, with the "
    "config and tokenizer taken along."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a folder that pyllama pack made")
    parser.add_argument("destination", metavar="DST", help="the folder to make")
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the new folder's path on standard output."""
    from pyllama.packing import unpack
    from pyllama.terminal.progress import Progress

    with Progress(f"unpacking {Path(args.source).name}", quiet=args.quiet) as progress:
        path = unpack(args.source, args.destination, progress=progress)
    print(path)
    return 0
