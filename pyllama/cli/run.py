"""`pyllama run`: a prompt in, the answer on standard output as it comes, or one JSON object."""

import argparse
import sys
from typing import TYPE_CHECKING

from pyllama.cli import streams
from pyllama.cli.options import add_loading, add_sampling, load_watched, sampling
from pyllama.cli.pass_line import PassLine
from pyllama.errors import RequestError, reason_of

if TYPE_CHECKING:
    from pyllama.generation import Generation
    from pyllama.model import Model

NO_PROMPT = "no prompt: give --prompt TEXT, --file PATH or text on standard input"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "run",
        help="answer one prompt",
        description="Answer a prompt. A model with a chat template gets the prompt as a user's message; any "
        "other, and every model with --raw, continues the text. The prompt comes from --prompt, --file or "
        "standard input, where one newline at the end does not count.",
    )
    add_loading(parser)
    group = parser.add_argument_group("the prompt")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", type=streams.utf8, help="the prompt itself")
    source.add_argument("--file", metavar="PATH", help="a file with the prompt; - for standard input")
    group.add_argument("--system", metavar="TEXT", type=streams.utf8, help="a system message before it")
    group.add_argument("--raw", action="store_true", help="continue the prompt as it is, without template")
    add_sampling(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object at the end, and no text")
    group.add_argument("--verbose", action="store_true", help="a line of timings on standard error")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.raw and args.system is not None:
        raise RequestError("--system: needs the chat template, and --raw is without it")
    options = sampling(args)
    prompt = _read_prompt(args)
    with PassLine(quiet=args.quiet) as signs, load_watched(args, signs) as model:
        request = _as_request(model, prompt, args)
        with model.generate(request, fingerprint=args.json, **options) as generation:
            if args.json:
                generation.read()
                signs.clear()
                print(_as_json(model, generation))
            else:
                _stream(generation, signs)
            if args.verbose:
                streams.note(_timings(generation))
    return 0


def _read_prompt(args: argparse.Namespace) -> str:
    if args.prompt is not None:
        return args.prompt
    if args.file in (None, "-"):
        if args.file is None and sys.stdin.isatty():
            raise RequestError(NO_PROMPT)
        text = streams.read_text(sys.stdin.buffer, "standard input")
        if args.file is None and not text:  # nothing was piped: a cron job, a closed stream
            raise RequestError(NO_PROMPT)
    else:
        try:
            file = open(args.file, "rb", buffering=0)  # noqa: SIM115 - closed below
        except (OSError, ValueError) as error:
            raise RequestError(f"{args.file}: {reason_of(error)}") from None
        with file:
            text = streams.read_text(file, args.file)
    return text.removesuffix("\n").removesuffix("\r")


def _as_request(model: "Model", prompt: str, args: argparse.Namespace) -> str | list[dict[str, str]]:
    """What to hand to generate(): the prompt itself to be continued, or messages for the template."""
    if args.raw or model.tokenizer.chat_template is None:
        if args.system is not None:
            raise RequestError("--system: this model has no chat template to put a system message into")
        return prompt
    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    return [*system, {"role": "user", "content": prompt}]


def _stream(generation: "Generation", signs: PassLine) -> None:
    for step in generation:
        signs.clear()
        sys.stdout.write(step.text)
        sys.stdout.flush()
    if not generation.text.endswith("\n"):
        sys.stdout.write("\n")


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None


def _as_json(model: "Model", generation: "Generation") -> str:
    import json

    from pyllama.machine.memory import peak_resident_nbytes

    decoded = generation.completion_tokens - 1  # the first one came out of the prefill
    result = {
        "text": generation.text,
        "token_ids": generation.token_ids,
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.completion_tokens,
        "finish_reason": generation.finish_reason,
        "prefill_s": generation.prefill_s,
        "decode_s": generation.decode_s,
        "prefill_tok_s": _rate(generation.prompt_tokens, generation.prefill_s),
        "decode_tok_s": _rate(decoded, generation.decode_s),
        "peak_rss_bytes": peak_resident_nbytes(),
        "bytes_read": model.bytes_read,
        "passes": model.passes,
        "fingerprint": generation.fingerprint.hexdigest() if generation.fingerprint else None,
    }
    return json.dumps(result, allow_nan=False)


def _timings(generation: "Generation") -> str:
    from pyllama.machine.memory import peak_resident_nbytes

    decoded = generation.completion_tokens - 1
    return (
        f"prefill {generation.prompt_tokens} tokens in {generation.prefill_s:.2f} s"
        f" ({_rate(generation.prompt_tokens, generation.prefill_s) or 0:.2f} tok/s), "
        f"decode {decoded} tokens in {generation.decode_s:.2f} s"
        f" ({_rate(decoded, generation.decode_s) or 0:.2f} tok/s), peak {peak_resident_nbytes() / 1e6:.0f} MB"
    )
