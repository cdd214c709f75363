"""OpenTelemetry spans, JSON logs, Prometheus metrics, and records of how answers were made."""

import json
import logging
import sys
import traceback
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from time import time, time_ns
from typing import Any, Literal

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rag.render import hit_record, record
from rag.types import Answer, Message, Retrieval
from server import schemas
from server.database import Database

SPANS: TelemetryConfig = {"auto_configure": True, "metrics": False, "logs": False}
"""FastAPI exports spans to where the variables OTEL_EXPORTER_OTLP_… of the OpenTelemetry specification say,
if one is set. Its log would hold messages of errors, and with them text of documents."""
_tracer = trace.get_tracer("chatglm-rag")


def record_spans(kind: str, seconds: Mapping[str, float], about: Mapping[str, str]) -> None:
    """One span for the question and one for each stage, which ran one after the other.

    The stage `retrieve` is left out: it consists of `embed` and `search`.
    """
    stages = {stage: duration for stage, duration in seconds.items() if stage != "retrieve"}
    at = time_ns() - int(sum(stages.values()) * 1e9)
    root = _tracer.start_span(f"rag.{kind}", start_time=at, attributes=dict(about))
    context = trace.set_span_in_context(root)
    for stage, duration in stages.items():
        span = _tracer.start_span(f"rag.{stage}", context, start_time=at)
        at += int(duration * 1e9)
        span.end(at)
    root.end(at)


QUIET_LOGGERS = ("uvicorn", "uvicorn.error", "mcp", "httpx", "httpx2", "openai", "asyncio")


class JsonLines(logging.Formatter):
    """One JSON object a line. Tracebacks contain positions in the code and types of errors, but not
    the errors' messages, which may hold text of documents."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "event": record.getMessage().strip(),
            **fields,
        }
        if record.exc_info and record.exc_info[1]:
            line["traceback"] = _traceback(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False)


def _traceback(error: BaseException) -> str:
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    first = f"{_traceback(before)}then\n" if before else ""
    return f"{first}{''.join(traceback.format_tb(error.__traceback__))}{type(error).__qualname__}\n"


def log_json(level: int) -> None:
    """Send all logging of this process from `level` upwards to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """A server's own registry, so that two servers in one process stay apart."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        timer = partial(Histogram, buckets=BUCKETS, registry=self.registry)
        self.requests = counter("rag_requests_total", "Requests", ["route", "method", "status"])
        self.latency = timer("rag_request_seconds", "Seconds to the end of the response", ["route"])
        self.stage = timer("rag_stage_seconds", "Seconds of each stage of an answer", ["stage"])
        self.answers = counter("rag_answers_total", "Answers", ["outcome"])
        tokens = "Tokens read and written by the language model"
        self.tokens = counter("rag_tokens_total", tokens, ["kind"])
        self.rejections = counter("rag_turned_away_total", "Requests answered with 429", ["why"])

    def gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Register a number that is read at each scrape."""
        Gauge(name, about, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        return generate_latest(self.registry)


PRUNE_INTERVAL = 100  # traces between two deletions of the oldest
Kind = Literal["ask", "search"]


def trace_record(
    found: Retrieval,
    seconds: Mapping[str, float],
    history: Sequence[Message] = (),
    answer: Answer | None = None,
) -> dict[str, Any]:
    """The candidates of one question (chunk keys and scores, best first), the hits, the prompt, the
    answer, and the seconds of each stage."""
    answer_record = record(answer) if answer else None
    if answer_record:
        del answer_record["hits"]
    prompt = answer.prompt if answer else None
    return {
        "question": found.query.text,
        "history": [asdict(message) for message in history],
        "confidence": found.confidence,
        "threshold": found.threshold,
        "candidates": [*zip(found.ranking.keys.tolist(), found.ranking.scores.tolist(), strict=True)],
        "hits": [hit_record(hit) for hit in found.hits],
        "prompt": [asdict(message) for message in prompt.messages] if prompt else None,
        "answer": answer_record,
        "seconds": seconds,
    }


class Traces:
    """The newest `limit` traces. They hold text of documents and are deleted together with them."""

    def __init__(self, database: Database, limit: int = 1) -> None:
        self._database, self.limit = database, limit

    def add(self, kind: Kind, *, trace: str, base: str, sequence: int, record: dict[str, Any]) -> None:
        text = json.dumps(record, ensure_ascii=False)
        with self._database.change() as sql:
            (number,) = sql.execute("SELECT coalesce(max(number), 0) + 1 FROM traces").fetchone()
            row = (trace, number, time(), kind, base, sequence, text)
            sql.execute("INSERT INTO traces VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            documents = {(hit["document"], trace) for hit in record["hits"]}
            sql.executemany("INSERT INTO quoted VALUES (?, ?)", documents)
            if number % PRUNE_INTERVAL == 0:
                sql.execute("DELETE FROM traces WHERE number <= ?", (number - self.limit,))

    def get(self, trace: str) -> schemas.TraceResponse | None:
        row = self._database.row("SELECT * FROM traces WHERE id = ?", (trace,))
        if row is None:
            return None
        return schemas.TraceResponse(
            id=row["id"], created=row["created"], kind=row["kind"], knowledge_base=row["base"],
            sequence=row["sequence"], record=json.loads(row["record"]),
        )  # fmt: skip

    def delete_documents(self, base: str, documents: Iterable[str]) -> None:
        """Delete all traces that hold text of these documents of `base`."""
        query = "DELETE FROM traces WHERE base = ? AND id IN (SELECT trace FROM quoted WHERE document = ?)"
        with self._database.change() as sql:
            sql.executemany(query, ((base, document) for document in documents))
        self._database.shred()

    def delete_except(self, base: str, documents: Container[str]) -> None:
        """Delete all traces that hold text of other documents than these."""
        rows = self._database.rows(
            "SELECT DISTINCT document FROM quoted JOIN traces ON id = trace WHERE base = ?", (base,)
        )
        if missing := [row["document"] for row in rows if row["document"] not in documents]:
            self.delete_documents(base, missing)

    def delete_knowledge_base(self, base: str) -> None:
        self._database.execute("DELETE FROM traces WHERE base = ?", (base,))
        self._database.shred()
