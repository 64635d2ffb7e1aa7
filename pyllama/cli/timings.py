"""What an answer took, for a person."""

from pyllama.generation import Generation


def rate(tokens: int, seconds: float) -> float | None:
    """Tokens a second; None where there is nothing to tell."""
    return tokens / seconds if tokens > 0 and seconds > 0 else None


def timings(generation: Generation) -> str:
    """In one line."""
    from pyllama.machine.memory import peak_resident_nbytes

    computed = generation.prompt_tokens - generation.cached_tokens
    decoded = generation.completion_tokens - 1  # the first one came out of the prefill
    return (
        f"prefill {computed} tokens in {generation.prefill_s:.2f} s"
        f" ({rate(computed, generation.prefill_s) or 0:.2f} tok/s), "
        f"decode {decoded} tokens in {generation.decode_s:.2f} s"
        f" ({rate(decoded, generation.decode_s) or 0:.2f} tok/s), peak {peak_resident_nbytes() / 1e6:.0f} MB"
    )
