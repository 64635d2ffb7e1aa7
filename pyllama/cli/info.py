"""`pyllama info`: what a model is, read from its headers; no weight is touched."""

import argparse
import math
from typing import TYPE_CHECKING, Any

from pyllama.cli.options import add_json, add_model
from pyllama.errors import PyllamaError
from pyllama.terminal.progress import format_nbytes

if TYPE_CHECKING:
    from pathlib import Path

    from pyllama.checkpoint import Checkpoint

_OF_CONFIG = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "tie_word_embeddings", "rope_theta",
)  # fmt: skip

HELP = "tell what a model is"
DESCRIPTION = (
    "Tell what a model is: architecture, sizes, dtypes, context, tokenizer, chat template, "
    "files. Reads headers, no weights."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_json(parser)
    parser.add_argument("--template", action="store_true", help="print the chat template and nothing else")


def run(args: argparse.Namespace) -> int:
    from pyllama.checkpoint import open_checkpoint
    from pyllama.cli.fetching import offer
    from pyllama.cli.report import print_report
    from pyllama.hub import resolve

    offer(args)
    with open_checkpoint(resolve(args.model)) as checkpoint:
        if args.template:
            from pyllama.tokenizer import load_tokenizer

            print(load_tokenizer(checkpoint, args.pre_tokenizer).chat_template or "")
            return 0
        description = describe(checkpoint, args.pre_tokenizer)
    print_report(description, _lines, as_json=args.json)
    return 0


def describe(checkpoint: "Checkpoint", pre_tokenizer: str | None = None) -> dict[str, Any]:
    """Everything `info --json` prints."""
    from pyllama.architecture.tensors import PARTS, model_tensors
    from pyllama.decoder import Shape
    from pyllama.decoder.page_pool import POSITIONS, cache_nbytes
    from pyllama.drafting.copies import copy_of

    config = checkpoint.config
    parts = {name: {"parameters": 0, "nbytes": 0} for name in PARTS}
    dtypes: dict[str, int] = {}
    for of_model in model_tensors(config):
        part, tensor = parts[of_model.part], checkpoint.tensors[of_model.name]
        part["parameters"] += math.prod(tensor.shape)
        part["nbytes"] += tensor.nbytes
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + tensor.nbytes
    scaling = config.rope_scaling
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "packed": checkpoint.packed,
        "architecture": config.architecture,
        "model_type": config.model_type,
        "parameters": sum(part["parameters"] for part in parts.values()),
        "nbytes": checkpoint.nbytes,
        "parts": parts,
        "dtypes": dict(sorted(dtypes.items(), key=lambda item: -item[1])),
        **{name: getattr(config, name) for name in _OF_CONFIG},
        "rope_scaling": None if scaling is None else {"kind": scaling.kind, "factor": scaling.factor},
        "usual_positions": config.usual_positions,
        "sliding_window": _window(config.layer_windows),
        "max_position_embeddings": config.max_position_embeddings,
        "kv_cache_nbytes_per_token": cache_nbytes(Shape.whole(config), POSITIONS, "f16") // POSITIONS,
        "tokenizer": _tokenizer(checkpoint, pre_tokenizer),
        "draft_copy": _file(copy_of(checkpoint.path)),
        "files": [_file(path) for path in checkpoint.files],
    }


def _file(path: "Path | None") -> dict[str, Any] | None:
    return None if path is None else {"path": str(path), "nbytes": path.stat().st_size}


def _window(layer_windows: tuple[int | None, ...]) -> dict[str, int] | None:
    windows = [window for window in layer_windows if window is not None]
    return {"positions": min(windows), "layers": len(windows)} if windows else None


def _tokenizer(checkpoint: "Checkpoint", pre_tokenizer: str | None) -> dict[str, Any]:
    """The tokenizer's part; {"error": ...} if it cannot be loaded: the rest still holds."""
    from pyllama.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(checkpoint, pre_tokenizer)
        chat_template = tokenizer.chat_template  # raises where there is no tokenizer
    except PyllamaError as error:
        return {"error": str(error)}

    def token(token_id: int | None) -> dict[str, Any] | None:
        if token_id is None:
            return None
        return {"id": token_id, "text": tokenizer.token_bytes(token_id).decode("utf-8", "replace")}

    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "bos": token(tokenizer.bos_token_id),
        "eos": [token(token_id) for token_id in tokenizer.eos_token_ids],
        "chat_template": chat_template is not None,
    }


def _lines(d: dict[str, Any]):
    """The description for a person: one line a fact."""

    def line(name: str, value: str) -> str:
        return f"{name:15} {value}".rstrip()

    yield line("model", d["path"])
    packed = ", packed by pyllama" if d["packed"] else ""
    yield line("format", f"{d['format']}{packed}, {len(d['files'])} file{'s'[: len(d['files']) != 1]}")
    yield line("architecture", f"{d['architecture']} ({d['model_type']})")
    yield line("parameters", f"{_count(d['parameters']):>8}  {format_nbytes(d['nbytes']):>9}")
    for name, part in d["parts"].items():
        if part["parameters"]:
            yield line(f"  {name}", f"{_count(part['parameters']):>8}  {format_nbytes(part['nbytes']):>9}")
        elif name == "lm_head" and d["tie_word_embeddings"]:
            yield line(f"  {name}", "the embedding")
    yield line("dtypes", ", ".join(f"{name} {format_nbytes(nbytes)}" for name, nbytes in d["dtypes"].items()))
    yield line(
        "layers",
        f"{d['num_hidden_layers']}, hidden_size {d['hidden_size']}, intermediate_size {d['intermediate_size']}",
    )
    yield line(
        "attention",
        f"{d['num_attention_heads']} heads, {d['num_key_value_heads']} for keys and values,"
        f" head_dim {d['head_dim']}{_window_text(d['sliding_window'])}",
    )
    yield line("rope", f"theta {d['rope_theta']:g}{_scaling_text(d['rope_scaling'])}")
    cache = format_nbytes(d["kv_cache_nbytes_per_token"])
    yield line("context", f"{d['max_position_embeddings']} positions{_usual_text(d)}, cache {cache} a token (f16)")
    yield from _tokenizer_lines(d["tokenizer"], line)
    if d["draft_copy"]:
        yield line("draft copy", f"{d['draft_copy']['path']}  {format_nbytes(d['draft_copy']['nbytes'])}")
    for index, file in enumerate(d["files"]):
        yield line("" if index else "files", f"{file['path']}  {format_nbytes(file['nbytes'])}")


def _tokenizer_lines(tokenizer: dict[str, Any], line):
    if "error" in tokenizer:
        yield line("tokenizer", f"none that works: {tokenizer['error'].removeprefix('no tokenizer, so ')}")
        return
    yield line("tokenizer", f"{tokenizer['kind']}, {tokenizer['vocab_size']} tokens")
    bos, eos = tokenizer["bos"], tokenizer["eos"]
    yield line("  begins with", f"{bos['text']} ({bos['id']})" if bos else "nothing")
    yield line("  ends with", ", ".join(f"{end['text']} ({end['id']})" for end in eos) or "nothing")
    yield line("chat template", "yes (--template prints it)" if tokenizer["chat_template"] else "none")


def _window_text(window: dict[str, int] | None) -> str:
    return f", {window['layers']} layers see {window['positions']} positions" if window else ""


def _usual_text(d: dict[str, Any]) -> str:
    usual = d["usual_positions"]
    if usual == d["max_position_embeddings"]:
        return ""
    return f" (beyond {usual} only with --context, which changes all logits: the long rotary factors hold then)"


def _scaling_text(scaling: dict[str, Any] | None) -> str:
    return f", scaled: {scaling['kind']}, factor {scaling['factor']:g}" if scaling else ""


def _count(number: int) -> str:
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return str(number)
