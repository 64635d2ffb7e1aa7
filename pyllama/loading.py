"""A path or a name in, a loaded Model out: checkpoint, tokenizer, plan, weights and decoder put together."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllama.drafting import AUTO, OFF
from pyllama.errors import RequestError
from pyllama.kv_dtypes import KV_DTYPES
from pyllama.model import Model

if TYPE_CHECKING:
    from pyllama.checkpoint import Checkpoint
    from pyllama.cluster.hosts import Host
    from pyllama.decoder.exclusive import Exclusive
    from pyllama.drafting.drafts import AdaptiveDrafting
    from pyllama.planning.drafting import DrafterPlan


def load(
    model: str | os.PathLike[str],
    *,
    context_length: int | None = None,
    kv_dtype: str = "f16",
    threads: int | None = None,
    memory: int | str | None = None,
    on_layer: Callable[[int], None] | None = None,
    contexts: int = 1,
    pre_tokenizer: str | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    draft: str | os.PathLike[str] = AUTO,
    hosts: "str | os.PathLike[str] | Sequence[str] | None" = None,
    interface: str | None = None,
    **unknown: Any,
) -> "Model":
    """Opens a model; its weights are read by the first pass, and stay as far as memory allows.

    model           a Hugging Face folder, a GGUF file, Meta's original folder, one that `pyllama pack` wrote,
                    or the name of a model that was pulled ("org/name", "smollm2")
    context_length  positions a sequence may have; default: the model's own, at most 4096 and at most what an
                    eighth of the memory holds
    kv_dtype        how keys and values are kept: "f16", or "f32" at twice the memory
    threads         threads to compute with, for the whole process; default: the physical cores this process
                    may use. The results do not depend on it
    memory          what the whole process may take at its peak, in bytes or as "250M", "1.5G"; default: what is
                    available, less a margin. What does not fit is read again in every pass; the results do not
                    depend on it
    on_layer        called with the number of each layer before it runs; what it raises ends the pass and leaves
                    every sequence as it was
    contexts        sequences that are to have room for their keys and values, if memory allows: an Engine's
    pre_tokenizer   how a GGUF file's model splits text ("llama-bpe", "qwen2", ...), in place of what the file says
                    in tokenizer.ggml.pre
    chat_template   a file with a template (Jinja) that writes conversations, in place of the model's own
    draft           who proposes tokens, so that a pass gives several: a path or a name of a small model with the same
                    tokenizer, "self" (the copy that `pyllama quantize MODEL --draft` makes), "lookup" (what followed
                    the same tokens before), "auto" (what is there and pays, where weights are streamed) or "off".
                    The results do not depend on it
    hosts           boards that share the model, this one among them: their names, "pi1,pi2=0.5" (half a share), or a
                    file with a line for each (docs/cluster.md); `memory` is each one's then
    interface       through which of its networks they talk; default: any

    Warns (BudgetWarning) of a memory beyond what the machine or the control group has.

    Raises RequestError for an argument out of range, BudgetError for too little memory, HubError for a name that
    is not there, CheckpointError for damaged files and UnsupportedError for a model pyllama does not run. Cost:
    reads the files' headers and the small vectors.
    """
    from pyllama.checkpoint import open_checkpoint
    from pyllama.hub import resolve
    from pyllama.machine.memory import budget_of, interpreter_nbytes
    from pyllama.planning.memory import DEFAULT_CONTEXT_LENGTH, default_context, telling_enough
    from pyllama.tokenizer import load_tokenizer

    if unknown:
        raise _unknown_argument(next(iter(unknown)))
    check_computing(kv_dtype, threads)
    _check_integer("contexts", contexts, 1, 4096)
    budget = budget_of(memory)
    boards = None
    if hosts is not None:
        from pyllama.cluster.hosts import parse_hosts
        from pyllama.cluster.own_part import open_front

        boards = parse_hosts(hosts)
    with telling_enough(memory), ExitStack() as opened:
        checkpoint = opened.enter_context(open_front(model, boards) if boards else open_checkpoint(resolve(model)))
        _check_integer("context_length", context_length, 1, checkpoint.config.max_position_embeddings)
        config = checkpoint.config = checkpoint.config.for_context(context_length)
        if context_length is None:
            context_length = default_context(config, budget, kv_dtype, DEFAULT_CONTEXT_LENGTH)
        set_threads(threads)
        tokenizer = load_tokenizer(checkpoint, pre_tokenizer, chat_template)
        computing: dict[str, Any] = {
            "context_length": int(context_length), "kv_dtype": kv_dtype, "on_layer": on_layer, "contexts": contexts,
            "draft": draft,
        }  # fmt: skip
        if boards:
            options = {"model": os.fspath(model), "threads": threads, "interface": interface, **computing}
            asked = budget if memory is not None else None
            loaded = _assemble_cluster(checkpoint, tokenizer, boards, memory=asked, **options)
        else:
            interpreter = interpreter_nbytes(tokenizer)
            loaded = assemble(checkpoint, tokenizer, budget, interpreter=interpreter, **computing)
        checkpoint.forget_vocabulary()  # who may draft is known, for which vocabularies are compared
        opened.pop_all()
        return loaded


def assemble(
    checkpoint: "Checkpoint",
    tokenizer: Any,
    budget: int,
    *,
    interpreter: int,
    context_length: int,
    kv_dtype: str = "f16",
    on_layer: Callable[[int], None] | None = None,
    contexts: int = 1,
    draft: str | os.PathLike[str] = OFF,
) -> "Model":
    """A Model of parts that are open, which belong to it from then on: what load() does last.

    budget       bytes for it and for what is there already
    interpreter  bytes of what is there already
    the others   as of load()
    """
    from pyllama.decoder.exclusive import ExclusiveDecoder
    from pyllama.planning.memory import make_plan
    from pyllama.streaming import StreamedWeights
    from pyllama.streaming.expert_counts import counts_path

    options: dict[str, Any] = {
        "context_length": context_length, "kv_dtype": kv_dtype, "interpreter": interpreter, "contexts": contexts,
    }  # fmt: skip
    drafted, plan = None, make_plan(checkpoint, budget, **options)
    if draft != OFF and (draft != AUTO or plan.streamed > 0):
        from pyllama.drafting.opening import choose_drafter

        drafted = choose_drafter(draft, checkpoint, tokenizer, budget, **options)
    if drafted:
        plan = drafted.plan
    weights = StreamedWeights(
        checkpoint,
        slots=plan.slots,
        room=plan.room,
        pinned_nbytes=plan.pinned,
        expert_slots=plan.expert_slots,
        expert_room=plan.expert_room,
        counts=counts_path(checkpoint.path) if checkpoint.config.mixture else None,
    )
    decoder = ExclusiveDecoder(
        checkpoint.config,
        weights,
        context_length=plan.context_length,
        kv_dtype=kv_dtype,
        max_pass_tokens=plan.max_pass_tokens,
        rope_interleaved=checkpoint.rope_interleaved,
        on_layer=on_layer,
    )
    decoder.cache.keep_states(plan.state_slots)
    return Model(checkpoint, tokenizer, decoder, plan, _drafting(drafted, decoder))


def _assemble_cluster(
    checkpoint: "Checkpoint",
    tokenizer: Any,
    boards: "Sequence[Host]",
    *,
    memory: int | None,
    draft: str | os.PathLike[str],
    **options: Any,
) -> "Model":
    """A Model whose decoder is on several boards; a drafter is whole, and in this process."""
    from pyllama.cluster.opening import open_cluster
    from pyllama.machine.memory import interpreter_nbytes

    drafted, front = None, interpreter_nbytes(tokenizer)
    if draft != OFF:
        from pyllama.drafting.boards import choose_for_boards

        planned = {name: options[name] for name in ("context_length", "kv_dtype", "contexts")}
        drafted = choose_for_boards(draft, checkpoint, tokenizer, boards, memory, front=front, **planned)
    taken = drafted.plan if drafted else None
    decoder = open_cluster(
        checkpoint,
        boards,
        memory=memory,
        front_nbytes=front + (taken.drafter if taken else 0),
        branches=taken.branches if taken else 0,
        **options,
    )
    return Model(checkpoint, tokenizer, decoder, decoder.plan, _drafting(drafted, decoder))


def _drafting(drafted: "DrafterPlan | None", decoder: "Exclusive") -> "AdaptiveDrafting | None":
    if drafted is None:
        return None
    from pyllama.drafting.drafts import AdaptiveDrafting
    from pyllama.drafting.opening import open_drafter
    from pyllama.planning.drafting import branch_pages

    weights = decoder.weights
    return AdaptiveDrafting(
        open_drafter(drafted, context_length=decoder.context_length),
        streamed=lambda: weights.nbytes_streamed > 0,
        waited=lambda: weights.waited_s,
        on_drop=lambda: weights.pin_more(drafted.plan.drafter),
        branch_pages=branch_pages(drafted.shape, drafted.nodes),
        most_nodes=drafted.nodes,
        without=drafted.streamed_without / max(1, drafted.plan.streamed),
    )


def check_computing(kv_dtype: str, threads: int | None) -> None:
    """Raises RequestError for what load() does not take."""
    if kv_dtype not in KV_DTYPES:
        raise RequestError(f"kv_dtype: {kv_dtype!r}, expected {' or '.join(KV_DTYPES)}")
    _check_integer("threads", threads, 1, 1024)


def set_threads(threads: int | None) -> None:
    """Threads to compute with, for the whole process; None: the physical cores this process may use."""
    from pyllama import _kernels
    from pyllama.machine.threads import default_threads

    _kernels.set_num_threads(default_threads() if threads is None else threads)


def _unknown_argument(name: str) -> RequestError:
    from inspect import Parameter, signature

    from pyllama.synonyms import meant, why_not

    known = [p.name for p in signature(load).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    ours, why = meant(name, known), why_not(name)
    hint = f"did you mean {ours}?" if ours else why or f"expected one of {', '.join(known)}"
    return RequestError(f"{name}: no such argument of load(), {hint}")


def _check_integer(name: str, value: int | None, low: int, high: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise RequestError(f"{name}: {value!r}, expected {low} to {high}")
