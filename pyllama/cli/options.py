"""The options that several commands share: which model, how to sample. Translates, never computes."""

import argparse
from typing import TYPE_CHECKING, Any

from pyllama.cli import streams
from pyllama.kv_dtypes import KV_DTYPES

if TYPE_CHECKING:
    from pyllama.cli.pass_line import PassLine
    from pyllama.model import Model
    from pyllama.terminal.status_line import StatusLine


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL and how to read its files, for commands that read no weights."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a Hugging Face folder, a GGUF file, Meta's original folder, one that `pyllama pack` wrote, or the name "
        "of a pulled model",
    )
    parser.add_argument(
        "--pre-tokenizer",
        metavar="NAME",
        help="how a GGUF file's model splits text (llama-bpe, qwen2, ...), in place of its tokenizer.ggml.pre",
    )


def add_quiet(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def add_json(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_budget(
    group: argparse._ActionsContainer,
    context: str = "positions of the context; default: the model's own, at most 4096 and an eighth of the memory",
    promise: str = "the text does not depend on it",
) -> None:
    """What the memory plan is made of; context: what --context says of itself."""
    group.add_argument(
        "--memory",
        metavar="SIZE",
        help="what the whole process may take, such as 250M or 1.5G; default: what is available, less a margin;"
        f" {promise}",
    )
    group.add_argument(
        "-c",
        "--context",
        metavar="N",
        type=int,
        dest="context_length",
        help=context,
    )
    group.add_argument(
        "--kv-dtype",
        choices=KV_DTYPES,
        default="f16",
        help="how the cache keeps keys and values; default: f16",
    )


def add_threads(group: argparse._ActionsContainer, promise: str = "the text does not depend on it") -> None:
    group.add_argument("-t", "--threads", metavar="N", type=int, help=f"default: the physical cores; {promise}")


def add_draft(group: argparse._ActionsContainer, default: str | None = "auto", purpose: str = "") -> None:
    """Who drafts; purpose: what the command wants it for, where it is not to run faster."""
    group.add_argument(
        "--draft",
        metavar="WHO",
        default=default,
        help=purpose
        or "what proposes tokens, so that a pass gives several: a small model with the same tokenizer, self (the copy "
        "that `pyllama quantize --draft` makes), lookup (what stood there before), off; default: auto, what is here "
        "and pays where weights are streamed; the text does not depend on it",
    )


def add_hosts(group: argparse._ActionsContainer) -> None:
    """The boards of a cluster."""
    group.add_argument(
        "--hosts",
        metavar="NAMES",
        help="boards that share the model, this one among them, such as pi1,pi2,pi3=0.5 (half a share), or a file with "
        "a line for each (docs/cluster.md); the text does not depend on it",
    )
    group.add_argument(
        "--interface", metavar="NAME", help="with --hosts: through which they talk, such as eth0; default: any"
    )


# Of add_loading()'s options, what load() takes.
LOADING = (
    "memory",
    "context_length",
    "kv_dtype",
    "threads",
    "pre_tokenizer",
    "chat_template",
    "draft",
    "hosts",
    "interface",
)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """MODEL and how to load it."""
    add_model(parser)
    group = parser.add_argument_group("the model")
    add_budget(group)
    add_threads(group)
    group.add_argument(
        "--chat-template",
        metavar="FILE",
        help="a template (Jinja) that writes conversations, in place of the model's own",
    )
    add_draft(group)
    add_hosts(group)
    group.add_argument("--quiet", action="store_true", help="show no progress of what takes more than a second")


def add_sampling(parser: argparse.ArgumentParser, *, greedy: bool) -> None:
    """How to choose tokens and when to stop, in OpenAI's words.

    greedy  whether the most probable token is taken where nobody says otherwise; else what the model's files say
    """
    group = parser.add_argument_group("sampling")

    def add(names: str, kind: type, metavar: str, help: str, *defaults: str) -> None:
        if defaults:  # on this command line, and in a conversation where the model's files say nothing
            help += f"; default: {defaults[0]}" if greedy else f"; default: the model's own, else {defaults[1]}"
        group.add_argument(*names.split(), type=kind, metavar=metavar, help=help)

    add("--temperature --temp", float, "X", "0 takes the most probable token, 1 draws as the model says", "0", "0.7")
    add("--top-k", int, "K", "draw among the K most probable tokens, 0 for all", "0", "40")
    add("--top-p", float, "P", "draw among the most probable tokens that together reach P", "1, all", "0.95")
    add("--min-p", float, "P", "draw among tokens at least P times as probable as the best", "0, all", "0.05")
    add("-s --seed", int, "N", "the same seed gives the same text, on any machine; default: a fresh one")
    add("--repetition-penalty", float, "X", "divides the logits of tokens in prompt and answer", "1", "1")
    add("--presence-penalty", float, "X", "lowers the logit of a token once the answer has it; default: 0")
    add("--frequency-penalty", float, "X", "the same for each time the answer has it; default: 0")
    add("-n --max-tokens", int, "N", "tokens to write at most; default: until the model or the context ends")
    group.add_argument(
        "--stop",
        metavar="TEXT",
        type=streams.utf8,
        action="append",
        help="end before this text; may be repeated",
    )
    group.add_argument(
        "--ignore-eos",
        action="store_true",
        default=None,
        help="go on past the model's own end of text",
    )


SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "max_tokens",
    "stop",
    "ignore_eos",
)


def sampling(args: argparse.Namespace) -> dict:
    """The sampling options that were given, under their names in Python; RequestError if one is wrong."""
    from pyllama.generation.sampler import SamplingParams

    given = {name: value for name in (*SAMPLING, "logprobs") if (value := vars(args).get(name)) is not None}
    SamplingParams.from_options(**given)  # complains before minutes are spent on loading
    return given


def sampling_text(options: dict[str, Any]) -> str:
    """Sampling options for a person, in one line: "temperature 0.7, top-k 40"."""
    if not options.get("temperature"):
        drawing = ("temperature", "top_k", "top_p", "min_p", "seed")
        options = {"temperature": "0 (greedy)"} | {k: v for k, v in options.items() if k not in drawing}
    return ", ".join(f"{name.replace('_', '-')} {value}" for name, value in options.items())


def load_model(args: argparse.Namespace, signs: "StatusLine", **more: Any) -> "Model":
    """The model of add_loading()'s options, and more of load()'s; loading it shows on the status line."""
    from pyllama.cli.fetching import offer
    from pyllama.loading import load

    offer(args)
    signs.show("loading")
    return load(args.model, **{name: getattr(args, name) for name in LOADING}, **more)


def load_watched(args: argparse.Namespace, signs: "PassLine") -> "Model":
    """The same for one whose passes show there, too."""
    model = load_model(args, signs, on_layer=signs.on_layer)
    signs.watch(model)
    return model
