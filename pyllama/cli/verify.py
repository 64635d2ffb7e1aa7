"""`pyllama verify`: is a model on this disk what it should be?"""

import argparse
from pathlib import Path

from pyllama.cli.options import add_quiet
from pyllama.errors import CheckpointError

HELP = "look for damage in a model's files"
DESCRIPTION = (
    "Read every byte of a packed model and compare it with its checksums; of any other model, check "
    "that every tensor is there and lies within its file. Damage is told by tensor and rows, a line each."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="PATH", help="a model's path, or the name of a pulled one")
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Prints what was checked, or each damage; 2 if there is any."""
    from pyllama.hub import resolve
    from pyllama.packing import verify
    from pyllama.printable import one_line
    from pyllama.terminal.progress import Progress, format_nbytes

    with Progress(f"verifying {Path(args.model).name}", quiet=args.quiet) as progress:
        report = verify(resolve(args.model), progress)
    for line in report.damage:
        print(one_line(line))
    if report.damage:
        raise CheckpointError(f"{args.model}: damaged in {len(report.damage)} places, see above")
    if report.packed:
        what = f"{report.blocks} blocks of {report.tensors} tensors"
        print(f"{args.model}: sound, {what}, {format_nbytes(report.nbytes)}")
    else:
        print(
            f"{args.model}: {report.tensors} tensors lie within their files, {format_nbytes(report.nbytes)}; "
            f"this form has no checksums, so their bytes were not looked at"
        )
    return 0
