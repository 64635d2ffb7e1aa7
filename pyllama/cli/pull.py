"""`pyllama pull`: a model's name from the command line becomes files in the cache."""

import argparse

from pyllama.cli.options import add_quiet

HELP = "fetch a model, or the rest of one"
DESCRIPTION = (
    "Fetch a model into the Hugging Face cache and print where it is. What is there already, "
    "from here or from other programs, is used; after an interruption the same command goes on. What pyllama "
    "cannot run is refused before its weights are fetched."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Environment: HF_TOKEN (private and gated models), HF_ENDPOINT (another hub), HF_HOME or "
        "HF_HUB_CACHE (where the cache is), HF_HUB_OFFLINE."
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help="org/name, org/name@revision, org/name:Q4_K_M (the GGUF file of that quantization), or smollm2",
    )
    parser.add_argument(
        "--file",
        metavar="PATTERN",
        action="append",
        default=[],
        dest="patterns",
        help="take these files for the weights, e.g. 'original/*'; may be repeated",
    )
    parser.add_argument(
        "--pack",
        metavar="DST",
        help="pack the model into this folder, file by file as they come, and keep no other copy",
    )
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the model's path, and nothing else, on standard output."""
    from pyllama import hub
    from pyllama.cli.fetching import refuse_what_cannot_run
    from pyllama.terminal.progress import Progress

    with Progress(quiet=args.quiet) as progress:
        if args.pack is None:
            before = None if args.patterns else refuse_what_cannot_run  # who names files knows
            path = hub.pull(args.name, progress, patterns=args.patterns, before=before)
        else:
            from pyllama.packing import pull_packed

            path = pull_packed(args.name, args.pack, progress=progress, patterns=args.patterns)
    print(path)
    return 0
