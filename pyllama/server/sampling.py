"""Fields of an OpenAI request to sampling parameters. What it leaves out is the model's (generation/defaults.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyllama.generation.sampler import SamplingParams
from pyllama.server.errors import ApiError, invalid
from pyllama.server.json_object import JsonObject

SEED_RANGE = 1 << 64
# Fields that SamplingParams has by the same names, and takes as they are.
_SAMPLING = (
    "temperature top_k top_p min_p repetition_penalty presence_penalty frequency_penalty seed stop stop_token_ids "
    "ignore_eos"
).split()


@dataclass(frozen=True, slots=True)
class Wanted:
    """How answers are to be made and sent.

    params         for the first choice; those after it differ in the seed
    n              choices for each prompt
    top_logprobs   alternatives to report for each token; None: no log-probabilities at all
    """

    params: SamplingParams
    n: int
    top_logprobs: int | None
    stream: bool
    include_usage: bool
    include_progress: bool
    fingerprint: bool

    def params_of(self, choice: int) -> SamplingParams:
        """A seed for each choice: n equal answers would be no use."""
        seed = self.params.seed
        if seed is None or choice == 0:
            return self.params
        return replace(self.params, seed=(seed + choice) % SEED_RANGE)


def wanted(
    body: JsonObject,
    max_tokens: int | None,
    top_logprobs: int | None,
    vocab_size: int,
    defaults: Mapping[str, Any],
) -> Wanted:
    """What a checked body asks for; defaults: of sampling. Raises ApiError for what only makes sense together."""

    given = {name: value for name, value in body.items() if value is not None}
    stream, options = given.get("stream", False), given.get("stream_options", {})
    if "stream_options" in given and not stream:
        raise invalid("stream_options", "only with stream")
    sampling = {**defaults, **{name: given[name] for name in _SAMPLING if name in given}}
    sampling |= {"top_k": max(0, sampling["top_k"]), "stop": _stops(sampling.get("stop", ()))}
    if sampling["top_p"] == 0:  # the least that may be kept is one token
        sampling |= {"top_p": 1.0, "top_k": 1}
    params = SamplingParams(
        **sampling,
        logit_bias=_logit_bias(given.get("logit_bias", {}), vocab_size),
        max_tokens=max_tokens,
        # The chosen token's is computed beside that of at least one alternative.
        logprobs=0 if top_logprobs is None else max(1, top_logprobs),
    )
    return Wanted(
        params,
        n=given.get("n", 1),
        top_logprobs=top_logprobs,
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        include_progress=bool(options.get("include_progress")),
        fingerprint=given.get("logits_fingerprint", False),
    )


def _stops(given: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(stop for stop in ([given] if isinstance(given, str) else given) if stop)


def _logit_bias(given: dict[str, float], vocab_size: int) -> dict[int, float]:
    bias = {}
    for name, value in given.items():
        if not (name.isascii() and name.isdecimal() and len(name) < 10 and int(name) < vocab_size):
            raise ApiError(
                400, f"logit_bias: {name[:60]!r}, expected token ids from 0 to {vocab_size - 1}", "logit_bias"
            )
        bias[int(name)] = value
    return bias
