"""`pyllama run`: a prompt in, the answer on standard output as it comes, or one JSON object."""

import argparse
from typing import TYPE_CHECKING, Any

from pyllama.cli import chat, streams
from pyllama.cli.constraints import Constraints, add_constraints, constrain, read_constraints
from pyllama.cli.options import add_loading, add_sampling, load_watched, sampling, sampling_text
from pyllama.cli.pass_line import PassLine
from pyllama.cli.prompt import NO_PROMPT, add_prompt, read_prompt
from pyllama.errors import RequestError

if TYPE_CHECKING:
    from pyllama.generation import Generation, Step
    from pyllama.model import Model

HELP = "answer one prompt"
DESCRIPTION = (
    "Answer a prompt. A model with a chat template gets the prompt as a user's message; any other, "
    "and every model with --raw, continues the text. Text from a pipe, a file's and the words after MODEL make "
    "one prompt, in this order, with an empty line between; one newline at the end of each does not count. On a "
    "terminal, without any of them, a conversation begins, as with pyllama chat."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_loading(parser)
    group = parser.add_argument_group("the prompt")
    add_prompt(group)
    group.add_argument("--system", metavar="TEXT", type=streams.utf8, help="a system message before it")
    chat.add_no_think(group)
    group.add_argument("--raw", action="store_true", help="continue the prompt as it is, without template")
    add_sampling(parser, greedy=True)
    add_constraints(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object at the end, and no text")
    group.add_argument(
        "--logprobs",
        metavar="N",
        type=int,
        help="a line a token instead of the text: its log-probability, and the N most probable beside it",
    )
    group.add_argument(
        "--verbose",
        action="store_true",
        help="on standard error, how the memory is divided, how tokens were chosen, and timings",
    )


def run(args: argparse.Namespace) -> int:
    if args.raw and args.system is not None:
        raise RequestError("--system: needs the chat template, and --raw is without it")
    options = sampling(args)
    args.constraints = read_constraints(args)
    if args.tools and args.raw:
        raise RequestError("--tools: needs the chat template, and --raw is without it")
    with PassLine(quiet=args.quiet) as signs:
        prompt = read_prompt(args, signs)
        if prompt is None:
            if not streams.is_conversation() or args.raw or args.json or args.logprobs or args.constraints:
                raise RequestError(NO_PROMPT)
            return chat.run(args)
        with load_watched(args, signs) as model:
            return _answer(model, prompt, options, args, signs)


def _answer(model: "Model", prompt: str, options: dict[str, Any], args: argparse.Namespace, signs: PassLine) -> int:
    import json

    from pyllama.cli.answer_lines import show_calls, show_logprobs
    from pyllama.cli.answer_view import show_plain, split_of, view_of
    from pyllama.cli.drafting import drafted, who_drafts
    from pyllama.cli.timings import timings
    from pyllama.generation.harmony import is_harmony, said

    request = _as_request(model, prompt, args)
    chats = not isinstance(request, str)
    form = constrain(model, args.constraints)
    variables: dict[str, Any] = {"enable_thinking": False} if args.no_think else {}
    if form.tools:
        variables["tools"] = form.tools
    with model.generate(
        request,
        fingerprint=args.json,
        variables=variables,
        guide=form.guide,
        show_special=form.tools is not None,
        **options,
    ) as generation:
        if args.json:
            steps = list(generation)
            signs.clear()
            told = _as_json(model, generation, form, steps if args.logprobs else None)
            if chats and form.parser is None and is_harmony(model.tokenizer.chat_template):
                thought, text = said(generation.text)
                told |= {"text": text, "reasoning_content": thought}
            print(json.dumps(told, allow_nan=False))
        elif args.logprobs:
            show_logprobs(generation, model.tokenizer, signs)
        elif form.parser:
            show_calls(generation, form.parser, signs)
        elif chats and (view := view_of(generation, model.tokenizer, signs, fold=False, wrap=False)):
            view.show(generation)
        else:
            show_plain(generation, signs, split_of(model.tokenizer, generation.prompt_ids) if chats else None)
        if args.verbose:
            if model.plan is not None:
                from pyllama.cli.plan_lines import memory_text

                streams.note(f"memory: {memory_text(model.plan)}")
            streams.note(f"sampling: {sampling_text(options)}")
            streams.note(timings(generation))
            streams.note(who_drafts(model, args))
            if (line := drafted(model, generation)) is not None:
                streams.note(line)
    return 0


def _as_request(model: "Model", prompt: str, args: argparse.Namespace) -> str | list[dict[str, str]]:
    """What to hand to generate(): the prompt itself to be continued, or messages for the template."""
    if args.raw or model.tokenizer.chat_template is None:
        if args.system is not None:
            raise RequestError("--system: this model has no chat template to put a system message into")
        return prompt
    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    return [*system, {"role": "user", "content": prompt}]


def _as_json(model: "Model", generation: "Generation", form: Constraints, steps: "list[Step] | None") -> dict[str, Any]:
    from pyllama.cli.answer_lines import logprobs_of
    from pyllama.cli.drafting import as_json
    from pyllama.cli.timings import rate
    from pyllama.machine.memory import peak_resident_nbytes

    decoded = generation.completion_tokens - 1  # the first one came out of the prefill
    experts = model.decoder.weights.expert_counters
    result = {
        "text": generation.text,
        "token_ids": generation.token_ids,
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.completion_tokens,
        "finish_reason": generation.finish_reason,
        "prefill_s": generation.prefill_s,
        "decode_s": generation.decode_s,
        "prefill_tok_s": rate(generation.prompt_tokens, generation.prefill_s),
        "decode_tok_s": rate(decoded, generation.decode_s),
        "peak_rss_bytes": peak_resident_nbytes(),
        "bytes_read": model.bytes_read,
        "experts": experts and experts.as_dict(),
        "passes": model.passes,
        "fingerprint": generation.fingerprint.hexdigest() if generation.fingerprint else None,
        "draft": as_json(model, generation),
    }
    if form.parser:
        content, calls = form.parser.take(generation.text, generation.finish_reason)
        result |= {"text": content, "tool_calls": [call.as_openai() for call in calls]}
    if steps:
        result["logprobs"] = [logprobs_of(step, model.tokenizer) for step in steps]
    return result
