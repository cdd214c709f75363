"""Traces have all that led to an answer, and are deleted together with their documents."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rag.types import Message, Sampling
from server.database import trace_database
from server.telemetry import Traces
from tests.fakes import CopyingGenerator
from tests.server.servers import PAGES, sample_server

QUESTION = "试用期不得超过几个月？"


def test_a_trace_has_all_that_was_found_and_how_long_it_took(tmp_path: Path) -> None:
    with sample_server(tmp_path) as sample:
        answer = sample.ask(QUESTION)
        trace = sample.state.traces.get(answer["id"])
        assert trace
        record = json.loads(trace.model_dump_json())["record"]
        assert (record["question"], trace.sequence) == (QUESTION, answer["sequence"])
        assert len(record["candidates"]) >= len(record["hits"]) > 0
        assert record["answer"]["citations"]
        assert {"embed", "search", "extract"} <= record["seconds"].keys()


def add_trace(traces: Traces, number: int, document: str = "d") -> None:
    record = {"hits": [{"document": document}], "candidates": [], "question": str(number)}
    traces.add("ask", trace=f"{number:024x}", base="a", sequence=1, record=record)


def test_only_the_newest_traces_stay(tmp_path: Path) -> None:
    with closing(trace_database(tmp_path)) as database:
        traces = Traces(database, 150)
        for number in range(1, 401):
            add_trace(traces, number)
        assert traces.get(f"{400:024x}")
        assert traces.get(f"{251:024x}")
        assert traces.get(f"{250:024x}") is None
        assert database.row("SELECT count(*) FROM quoted")[0] == 150  # type: ignore[index]


def test_a_trace_is_deleted_with_its_document_or_base(tmp_path: Path) -> None:
    with closing(trace_database(tmp_path)) as database:
        traces = Traces(database, 100)
        for number, document in enumerate(["d", "e", "d"]):
            add_trace(traces, number, document)
        traces.delete_documents("a", ["d"])
        assert [traces.get(f"{number:024x}") is None for number in range(3)] == [True, False, True]
        traces.delete_knowledge_base("a")
        assert traces.get(f"{1:024x}") is None
        for path in tmp_path.glob("traces.sqlite*"):
            assert b"question" not in path.read_bytes()


def test_spans_name_the_stages_without_text(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    with sample_server(tmp_path) as sample:
        sample.ask(QUESTION)
        spans = exporter.get_finished_spans()
    names = {span.name for span in spans}
    assert {"rag.ask", "rag.embed", "rag.search", "rag.extract"} <= names
    root = next(span for span in spans if span.name == "rag.ask")
    assert root.parent is not None  # within that of the HTTP request
    for span in spans:
        if span.name in ("rag.embed", "rag.search", "rag.extract"):
            assert span.parent
            assert span.parent.span_id == root.context.span_id  # type: ignore[union-attr]
        assert "试用期" not in json.dumps(dict(span.attributes or {}), ensure_ascii=False)


ASKING_SERVER = """
import sys
from pathlib import Path
from tests.server.servers import sample_server
with sample_server(Path(sys.argv[1])) as sample:
    sample.ask("试用期不得超过几个月？")
print("opentelemetry.sdk" in sys.modules)
"""


@pytest.mark.parametrize("configured", [True, False])
def test_spans_are_exported_without_text_only_if_a_variable_says_where(
    configured: bool, tmp_path: Path
) -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing is logged."""

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        if configured:
            environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{collector.server_port}"
        result = subprocess.run(
            [sys.executable, "-c", ASKING_SERVER, str(tmp_path)],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        collector.shutdown()
    assert result.stdout.strip() == str(configured)
    assert {path for path, _ in received} == ({"/v1/traces"} if configured else set())
    sent = b"".join(body for _, body in received)
    assert (b"rag.ask" in sent) == configured
    assert "试用期".encode() not in sent


def test_a_job_deletes_traces_of_documents_removed_elsewhere(tmp_path: Path) -> None:
    with closing(trace_database(tmp_path)) as database:
        traces = Traces(database, 100)
        for number, document in enumerate(["d", "e", "f"]):
            add_trace(traces, number, document)
        traces.delete_except("other", set())
        assert all(traces.get(f"{number:024x}") for number in range(3))
        traces.delete_documents("other", ["d"])  # of another base, which holds the same file
        assert traces.get(f"{0:024x}")
        traces.delete_except("a", {"d", "f"})
        assert [traces.get(f"{number:024x}") is None for number in range(3)] == [False, True, False]


def test_a_new_version_deletes_the_traces_of_the_old_one(tmp_path: Path) -> None:
    with sample_server(tmp_path) as sample:
        trace = sample.ask(QUESTION)["id"]
        other = sample.client.post("/search", json={"question": "Rust", "knowledge_base": "mine"})
        assert sample.state.traces.get(trace)
        sample.upload(dict.fromkeys(PAGES, "别的内容。\n"))
        assert sample.state.traces.get(trace) is None
        assert sample.state.traces.get(other.json()["id"]) is None


def test_a_deletion_during_an_answer_leaves_no_trace_of_the_document(tmp_path: Path) -> None:
    class DeletingGenerator(CopyingGenerator):
        """Deletes all documents while it writes."""

        def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
            for document in sample.documents().values():
                sample.client.delete(f"/knowledge-bases/mine/documents/{document['id']}")
            yield from super().stream(messages, sampling)

    with sample_server(tmp_path, generator=DeletingGenerator()) as sample:
        body = {"question": QUESTION, "knowledge_base": "mine"}
        answer = httpx.post(f"{sample.client.base_url}/ask", json=body, timeout=60)
        assert "六个月" in answer.json()["answer"]
        assert sample.state.traces.get(answer.json()["id"]) is None


def test_a_deletion_during_an_answer_leaves_no_trace_of_the_base(tmp_path: Path) -> None:
    class ReplacingGenerator(CopyingGenerator):
        """Deletes its knowledge base while it writes, and perhaps creates another of the same name."""

        again = False

        def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
            sample.client.delete("/knowledge-bases/mine")
            if self.again:
                sample.client.post("/knowledge-bases", json={"name": "mine"})
            yield from super().stream(messages, sampling)

    for again in (False, True):
        generator = ReplacingGenerator()
        generator.again = again
        with sample_server(tmp_path / str(again), generator=generator) as sample:
            body = {"question": QUESTION, "knowledge_base": "mine"}
            answer = httpx.post(f"{sample.client.base_url}/ask", json=body, timeout=60)
            assert "六个月" in answer.json()["answer"]
            assert sample.state.traces.get(answer.json()["id"]) is None
