"""The engine's numbers and the HTTP answers, in Prometheus' text format."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from pyllama.engine import AsyncEngine

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000)


class _EngineCollector:
    """Reads the engine when it is asked: nothing is counted twice."""

    def __init__(self, engine: AsyncEngine):
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        stats = self._engine.stats()
        for name, value, about in (
            ("requests_waiting", stats.waiting, "Requests in the queue"),
            ("requests_running", stats.running, "Requests that share passes"),
            ("kv_pages_used", stats.pages_used, "Pages of the KV cache in use, kept texts included"),
            ("kv_pages_kept", stats.pages_kept, "Pages of texts kept for requests to come"),
            ("kv_pages", stats.max_pages, "Pages the KV cache may have"),
            ("kv_page_bytes", stats.page_nbytes, "Bytes of a page"),
            ("layer", stats.layer, "Layer the present pass is in, 0 between passes"),
            ("tokens_a_pass", stats.tokens_a_pass, "Tokens an answer took of a pass, on average since the start"),
        ):
            yield GaugeMetricFamily(f"pyllama_{name}", about, value=value)
        for name, value, about in (
            ("passes", stats.passes, "Passes over the weights"),
            ("prompt_tokens", stats.prompt_tokens, "Tokens of prompts"),
            ("prompt_tokens_cached", stats.cached_tokens, "Tokens of prompts that were not computed again"),
            ("completion_tokens", stats.completion_tokens, "Tokens written"),
            ("draft_passes", stats.drafted_passes, "Passes that computed proposed tokens as well"),
            ("draft_proposed_tokens", stats.proposed_tokens, "Tokens that a drafter proposed and passes computed"),
            ("draft_accepted_tokens", stats.accepted_tokens, "Of those, the ones that became part of an answer"),
            ("draft_seconds", stats.draft_s, "Seconds spent on proposing"),
            ("preemptions", stats.preemptions, "Times a request gave its pages up to an older one"),
            ("bytes_read", self._engine.model.bytes_read, "Bytes read from the model's files"),
            *self._of_experts(),
        ):
            yield CounterMetricFamily(f"pyllama_{name}", about, value=value)
        yield InfoMetricFamily("pyllama_drafter", "Who proposes tokens", value={"name": stats.drafter or ""})
        ended = CounterMetricFamily("pyllama_requests", "Requests that ended, by how", labels=["how"])
        for how in ("stop", "length", "cancelled", "error"):
            ended.add_metric([how], stats.requests.get(how, 0))
        yield ended

    def _of_experts(self) -> tuple[tuple[str, float, str], ...]:
        """Counters of a mixture's experts; none of another model."""
        experts = self._engine.model.decoder.weights.expert_counters
        if experts is None:
            return ()
        return (
            ("experts_asked", experts.asked, "Experts that a layer of a pass needed"),
            ("experts_hits", experts.hits, "Those of them that were in memory"),
            ("experts_guesses", experts.guesses, "Experts read by guess while the disk was idle"),
            ("experts_guesses_used", experts.guessed, "Those of them that were needed"),
            ("experts_bytes_read", experts.nbytes, "Bytes read for experts"),
            ("experts_tokens", experts.tokens, "Tokens that computed with them"),
        )


class Metrics:
    """One registry for one server."""

    def __init__(self, engine: AsyncEngine):
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine))
        ProcessCollector(registry=self._registry)
        self._responses = Counter(
            "pyllama_http_responses", "HTTP responses, by path and status", ["path", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "pyllama_http_seconds", "Seconds until a response was complete", ["path"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip

    def responded(self, path: str, status: int, seconds: float) -> None:
        self._responses.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)
