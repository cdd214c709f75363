"""OpenTelemetry spans of the stages of an answer, where the operator has configured them."""

import json
import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from time import time_ns
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


CONFIGURED = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Variables of the OpenTelemetry specification, one of which says where spans go."""


class Spans:
    """Without a provider, nothing is told and nothing is imported."""

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer("chatglm-rag") if provider else None

    def tell(self, kind: str, seconds: Mapping[str, float], about: Mapping[str, str]) -> None:
        """One span for the question and one for each stage, which ran one after the other.

        `retrieve` is around embed and search, which are its children in time.
        """
        if self._tracer is None:
            return
        from opentelemetry.trace import set_span_in_context

        inner = {stage: took for stage, took in seconds.items() if stage != "retrieve"}
        at = time_ns() - int(sum(inner.values()) * 1e9)
        root = self._tracer.start_span(f"rag.{kind}", start_time=at, attributes=dict(about))
        context = set_span_in_context(root)
        for stage, took in inner.items():
            span = self._tracer.start_span(f"rag.{stage}", context, start_time=at)
            at += int(took * 1e9)
            span.end(at)
        root.end(at)

    def close(self) -> None:
        if self.provider:
            self.provider.shutdown()


def exported() -> Spans:
    """Spans that go where the OTEL_… variables say, by OTLP over HTTP."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "chatglm-rag"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Spans(provider)


QUIET = ("uvicorn", "uvicorn.error", "mcp", "httpx", "httpx2", "openai", "asyncio")


class JsonLines(logging.Formatter):
    """A traceback names places in the code and kinds of errors; their messages may hold text of
    documents, and are left out."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "event": record.getMessage().strip(),
            **fields,
        }
        if record.exc_info and record.exc_info[1]:
            line["traceback"] = _places(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False)


def _places(error: BaseException) -> str:
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    first = f"{_places(before)}then\n" if before else ""
    return f"{first}{''.join(traceback.format_tb(error.__traceback__))}{type(error).__qualname__}\n"


def log_json(level: int) -> None:
    """All logging of this process to standard error, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


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
