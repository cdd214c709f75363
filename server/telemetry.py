"""OpenTelemetry spans of the stages of an answer, where the operator has configured them."""

from collections.abc import Mapping
from time import time_ns
from typing import TYPE_CHECKING

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
