"""Counts and latencies for Prometheus. Names of stages and routes only: no text, no keys."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """One registry for each server, so that two in a process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "rag_requests_total", "Requests", ["route", "method", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "rag_request_seconds", "Seconds to the end of the response", ["route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.stage = Histogram(
            "rag_stage_seconds", "Seconds of each stage of an answer", ["stage"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.answers = Counter("rag_answers_total", "Answers", ["outcome"], registry=self.registry)
        self.tokens = Counter(
            "rag_tokens_total", "Tokens read and written by the language model", ["kind"],
            registry=self.registry,
        )  # fmt: skip
        self.turned_away = Counter(
            "rag_turned_away_total", "Requests answered with 429", ["why"], registry=self.registry
        )

    def gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        """A number that is looked up when it is asked for."""
        Gauge(name, about, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        return generate_latest(self.registry)
