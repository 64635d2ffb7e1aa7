"""`pyllama list`: which models are here, what they take, what they are, and where."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pyllama.cli.options import add_json

if TYPE_CHECKING:
    from pyllama.hub.installed import Installed

HELP = "list the models that are here"
DESCRIPTION = (
    "List the models in the Hugging Face cache, from here or from other programs, by the names that "
    "commands take: size of the weights, family, place. Looks at no weights and not at the network."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print names alone")


def run(args: argparse.Namespace) -> int:
    from pyllama.cli.report import print_report
    from pyllama.hub.cache import hub_cache
    from pyllama.hub.installed import installed

    models = installed()
    if args.quiet:
        for model in models:
            if model.whole:
                print(model.name)
        return 0
    about = [
        {"name": model.name, "nbytes": model.nbytes, "family": _family(model), "path": str(model.path),
         "whole": model.whole} for model in models
    ]  # fmt: skip
    print_report({"cache": str(hub_cache()), "models": about}, _lines, as_json=args.json)
    return 0


def _family(model: "Installed") -> str | None:
    """As the files call it, whether pyllama runs it or not."""
    from pyllama.errors import PyllamaError

    try:
        return _said_family(model.path) if model.whole else None
    except (PyllamaError, OSError):
        return None


def _said_family(path: Path) -> str | None:
    if path.is_file():
        from pyllama.checkpoint.gguf import architecture_of

        return architecture_of(path)
    from pyllama.checkpoint.huggingface import CONFIG, read_object

    if not (path / CONFIG).is_file():
        return "llama" if (path / "params.json").is_file() else None
    said = read_object(path / CONFIG).get("model_type")
    return said if isinstance(said, str) else None


def _lines(report: dict):
    from pyllama.terminal.progress import format_nbytes

    models = report["models"]
    if not models:
        yield f"no models in {report['cache']}; pyllama pull smollm2 brings a small one"
        return
    width = max(len(model["name"]) for model in models)
    for model in models:
        family = model["family"] or ("" if model["whole"] else "not whole")
        yield f"{model['name']:{width}}  {format_nbytes(model['nbytes']):>8}  {family:10}  {model['path']}"
