"""How long to wait before asking a hub again. Knows no protocol but the one header that says so."""

from collections.abc import Mapping

RETRY_DELAYS_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # as many tries as there are, and one more
LONGEST_WAIT_S = 300.0  # the Hub's rate limit counts in windows of five minutes


def retry_after_s(headers: Mapping[str, str], delay_s: float) -> float:
    """The wait a Retry-After header asks for, in reason, else our own; dates are not read."""
    asked = (headers.get("Retry-After") or "").strip()
    if not asked.isascii() or not asked.isdigit():
        return delay_s
    return min(max(float(asked[:6]), delay_s), LONGEST_WAIT_S)
