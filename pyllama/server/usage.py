"""What answers cost, in OpenAI's numbers and in ours."""

from pyllama.engine import Stream
from pyllama.server.json_object import JsonObject


def usage(streams: list[Stream], n: int, *, written: bool = True) -> JsonObject:
    """Tokens of all answers; a prompt counts once for its n choices. written: whether what was sampled is reported.

    Predicted are the tokens that passes computed because somebody proposed them: a drafter, or the request itself.
    """
    requests = [stream.request for stream in streams]
    prompts = requests[::n]
    prompt_tokens = sum(len(request.answer.prompt_ids) for request in prompts)
    completion_tokens = sum(len(request.answer.token_ids) for request in requests) if written else 0
    accepted = sum(request.accepted for request in requests)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(request.cached_tokens for request in prompts)},
        "completion_tokens_details": {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": sum(request.proposed for request in requests) - accepted,
        },
    }


def details(streams: list[Stream]) -> JsonObject:
    """The extension field `pyllama`: times in seconds, and what is needed to ask for the same answers again."""
    requests = [stream.request for stream in streams]

    def largest(name: str) -> float:
        return round(max((getattr(request, name) or 0.0 for request in requests), default=0.0), 4)

    found: JsonObject = {
        "queue_s": largest("queue_s"),
        "first_token_s": largest("first_token_s"),
        "total_s": largest("total_s"),
        "passes": max(request.passes for request in requests),
        "seeds": [request.answer.seed for request in requests],
    }
    prints = [request.answer.fingerprint for request in requests]
    if any(prints):
        found["logits_fingerprints"] = [one.hexdigest() for one in prints if one]
    return found


def progress(stream: Stream, layer: int, layers: int) -> JsonObject:
    """How far a request is, for those who have nothing else to look at."""
    request = stream.request
    sequence = request.sequence  # the engine's thread may take it away
    known = sequence.length if sequence else 0
    return {
        "queue_place": stream.place(),
        "prompt_tokens": len(request.answer.prompt_ids),
        "prompt_tokens_done": min(known, len(request.answer.prompt_ids)),
        "completion_tokens": len(request.answer.token_ids),
        "layer": layer,
        "layers": layers,
    }
