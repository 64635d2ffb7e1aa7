"""`pyllama rm`: a pulled model's files are deleted."""

import argparse

HELP = "delete a pulled model"
DESCRIPTION = (
    "Delete models from the Hugging Face cache, whoever brought them there. org/name is all of a "
    "repository; with @revision or :quantization only that, and no file that something else there still needs. The "
    "copy that pyllama quantize --draft made of a model goes with it."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help="as pyllama list prints it")


def run(args: argparse.Namespace) -> int:
    from pyllama.drafting.copies import remove_copies
    from pyllama.hub.disk import disk_errors
    from pyllama.hub.installed import installed, remove
    from pyllama.terminal.progress import format_nbytes

    for name in args.names:
        there = [model.path for model in installed()]
        nbytes = remove(name)
        with disk_errors(name):
            nbytes += remove_copies(there)
        print(f"{name}: removed, {format_nbytes(nbytes)} free")
    return 0
