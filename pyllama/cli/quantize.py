"""`pyllama quantize`: a model from the command line becomes a GGUF file of fewer bits."""

import argparse
from pathlib import Path

from pyllama.cli.options import add_quiet
from pyllama.errors import RequestError


class _Draft(argparse.Action):
    """--draft: DST may be missing. (As a positional of nargs="?" it would have to stand beside SRC.)"""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object) -> None:
        setattr(namespace, self.dest, True)
        for action in parser._actions:
            if action.dest == "destination":
                action.required = False


HELP = "write a model as a GGUF file of fewer bits a weight, which llama.cpp reads as well"
DESCRIPTION = (
    "Write a model as a GGUF file of fewer bits a weight, with its tokenizer and chat template, for "
    "pyllama, llama.cpp and whatever reads its files. After a kill the same command goes on; DST comes to exist "
    "when all of it is whole."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SRC",
        help="a Hugging Face folder, a GGUF file, Meta's original folder, one that `pyllama pack` wrote, or a pulled "
        "model",
    )
    parser.add_argument("destination", metavar="DST", help="the file to make; none with --draft")
    parser.add_argument(
        "--draft",
        dest="draft_copy",  # not what PYLLAMA_DRAFT says of the others
        action=_Draft,
        nargs=0,
        default=False,
        help="make the copy of few bits that drafts for the model (q3_k_s), where --draft self and auto look for it: "
        "beside the model, or in pyllama's cache; --calibration makes it agree far more often",
    )
    parser.add_argument(
        "--type",
        metavar="TYPE",
        help="what to make of the weights: f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k_s, q3_k_m, q3_k_l, "
        "q4_k_s, q4_k_m, q5_k_s, q5_k_m, q6_k, iq4_nl or iq4_xs; q3_k, q4_k and q5_k mean their _m",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--calibration",
        metavar="FILE",
        help="a text in UTF-8: weights that it multiplies with large numbers are kept more exactly; what it tells is "
        "kept in DST.imatrix.gguf",
    )
    source.add_argument(
        "--imatrix", metavar="FILE", help="such a file, or an importance matrix of llama.cpp's, instead"
    )
    parser.add_argument(
        "--pre-tokenizer",
        metavar="NAME",
        help="how the model splits text (llama-bpe, qwen2, ...), in place of what its files say",
    )
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="what the whole process may take, such as 250M or 1.5G; default: what is available, less a margin; the "
        "file does not depend on it",
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, help="default: the physical cores; the file does not depend on it"
    )
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the file's path on standard output."""
    from pyllama.quantizing import quantize
    from pyllama.terminal.progress import Progress

    _settle(args)
    with Progress(f"quantizing {Path(args.source).name}", quiet=args.quiet) as progress:
        path = quantize(
            args.source,
            args.destination,
            args.type,
            calibration=args.calibration,
            imatrix=args.imatrix,
            pre_tokenizer=args.pre_tokenizer,
            memory=args.memory,
            threads=args.threads,
            progress=progress,
        )
    print(path)
    return 0


def _settle(args: argparse.Namespace) -> None:
    """DST and --type where --draft says them; RequestError for one too few or too many."""
    if not args.draft_copy:
        if args.type is None:
            raise RequestError("--type: missing, expected a type such as q4_k_m (or --draft, which knows which)")
        return
    from pyllama.checkpoint import open_checkpoint
    from pyllama.drafting.copies import TYPE, copy_destination
    from pyllama.hub import resolve

    for given, what in ((args.destination, "DST"), (args.type, "--type")):
        if given is not None:
            raise RequestError(f"{what}: given together with --draft, which says it itself")
    with open_checkpoint(resolve(args.source)) as checkpoint:
        args.destination, args.type = copy_destination(checkpoint.path), TYPE
