"""Clients that leave free their slot, and the model stops; the language that a client prefers."""

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from rag.types import Message, Sampling
from server.auth import parse_grant
from server.middleware import preferred_language
from tests.fakes import CopyingGenerator
from tests.server.servers import SampleServer, sample_server, wait_for

QUESTION = "试用期不得超过几个月？"


class SlowGenerator(CopyingGenerator):
    """Reads the prompt for a minute unless it is stopped, then pauses before each piece."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = threading.Event()
        self.stop_event = threading.Event()
        self.quick = False

    def stop(self) -> None:
        super().stop()
        self.stop_event.set()

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        if not self.quick:
            self.reading.set()
            self.stop_event.wait(60)
            return
        for piece in super().stream(messages, sampling):
            time.sleep(0.01)
            yield piece


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[SampleServer, SlowGenerator]]:
    generator = SlowGenerator()
    with sample_server(tmp_path, generator=generator, queue=2, patience=2.0) as sample:
        yield sample, generator


def ask_request(sample: SampleServer) -> bytes:
    body = f'{{"question":"{QUESTION}","knowledge_base":"mine","stream":true}}'.encode()
    head = f"POST /ask HTTP/1.1\r\nHost: {sample.client.base_url.netloc.decode()}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def connect(sample: SampleServer) -> socket.socket:
    url = sample.client.base_url
    return socket.create_connection((url.host, url.port or 80), timeout=10)


def test_a_client_that_leaves_while_the_model_reads_frees_its_slot(
    slow: tuple[SampleServer, SlowGenerator],
) -> None:
    sample, generator = slow
    writing = sample.state.answerer.local_queue
    with closing(connect(sample)) as leaving:
        leaving.sendall(ask_request(sample))
        assert generator.reading.wait(10)
        assert writing.running == 1
    wait_for(lambda: writing.running == 0)  # the model would have read for a minute
    generator.quick = True
    assert "六个月" in sample.ask(QUESTION)["answer"]


def test_a_client_that_leaves_the_queue_frees_its_entry(slow: tuple[SampleServer, SlowGenerator]) -> None:
    sample, generator = slow
    writing = sample.state.answerer.local_queue
    with closing(connect(sample)) as first:
        first.sendall(ask_request(sample))
        assert generator.reading.wait(10)
        with closing(connect(sample)) as waiting:
            waiting.sendall(ask_request(sample))
            wait_for(lambda: writing.waiting == 1)
        wait_for(lambda: writing.waiting == 0)
        assert writing.running == 1


def test_a_full_queue_answers_429_with_retry_after(slow: tuple[SampleServer, SlowGenerator]) -> None:
    sample, generator = slow
    lines = [connect(sample) for _ in range(3)]
    try:
        for number, line in enumerate(lines):
            line.sendall(ask_request(sample))
            wait_for(lambda n=number: generator.reading.is_set() and
                     sample.state.answerer.local_queue.waiting == n)  # fmt: skip
        body = {"question": QUESTION, "knowledge_base": "mine"}
        answer = sample.client.post("/ask", json=body)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "queue_full"
        # Searching does not wait for the model.
        assert sample.client.post("/search", json=body).status_code == 200
    finally:
        for line in lines:
            line.close()
    wait_for(lambda: sample.state.answerer.local_queue.running == 0)


def test_a_client_that_does_not_read_its_stream_is_disconnected(tmp_path: Path) -> None:
    """The pieces fill the connection's buffers, because the client reads none of them."""

    class Endless(CopyingGenerator):
        def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
            self.stopped = False
            while not self.stopped:
                yield "长" * 10_000

    with sample_server(tmp_path, generator=Endless(context=10**9), patience=1.0) as sample:
        writing = sample.state.answerer.local_queue
        with closing(connect(sample)) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.sendall(ask_request(sample))
            wait_for(lambda: writing.running == 1)
            wait_for(lambda: writing.running == 0)


@pytest.mark.parametrize("sent", [b"POST /ask HT", b"POST /ask HTTP/1.1\r\nHost: x\r\nA: b\r\n"])
def test_a_client_that_never_completes_its_headers_is_disconnected(
    slow: tuple[SampleServer, SlowGenerator], sent: bytes
) -> None:
    sample, _ = slow
    with closing(connect(sample)) as line:
        line.sendall(sent)
        assert line.recv(1000) == b""


@pytest.mark.parametrize("path", [b"/ask", b"/v1/chat/completions", b"/knowledge-bases/mine/documents"])
def test_a_body_that_stalls_ends_as_408(
    slow: tuple[SampleServer, SlowGenerator], path: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    sample, _ = slow
    request = ask_request(sample)[:-5].replace(b"/ask", path, 1)
    if b"documents" in path:
        head = request.partition(b"\r\n\r\n")[0].replace(
            b"application/json", b"multipart/form-data; boundary=x"
        )
        request = head + b"\r\n\r\n--x\r\nContent-Disposition: form-data; name=files"
    with closing(connect(sample)) as line:
        line.sendall(request)
        received = b""
        while piece := line.recv(1000):
            received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    assert b" 408 " in head
    assert b"connection: close" in head.lower()
    assert json.loads(body)["error"]["message"].startswith("the request stopped for 2 s")
    assert "without" not in caplog.text


def test_sixty_four_clients_get_answers_or_429(tmp_path: Path) -> None:
    with sample_server(tmp_path, queue=40) as sample:
        statuses: list[int] = []

        def client(number: int) -> None:
            with httpx.Client(base_url=sample.client.base_url, timeout=60) as one:
                for turn in range(4):
                    body = {"question": f"{QUESTION}{number}{turn}", "knowledge_base": "mine"}
                    statuses.append(one.post("/ask", json=body).status_code)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(statuses) == 64 * 4
        assert set(statuses) <= {200, 429}
        assert statuses.count(200) > 64
        assert sample.state.answerer.search_queue.running == 0


class BrokenGenerator(CopyingGenerator):
    """Raises an exception before or after its first piece."""

    first = ""

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        if self.first:
            yield self.first
        raise ZeroDivisionError("a bug")


@pytest.mark.parametrize(("first", "status"), [("", 500), ("so far", 200)])
def test_a_bug_is_logged_once_and_answered_without_details(
    first: str, status: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    generator = BrokenGenerator()
    generator.first = first
    with caplog.at_level(logging.ERROR), sample_server(tmp_path, generator=generator) as sample:
        body = {"question": QUESTION, "knowledge_base": "mine", "stream": bool(first)}
        try:
            answer = sample.client.post("/ask", json=body)
        except httpx.RemoteProtocolError:  # broken off in the middle
            assert first
        else:
            assert answer.status_code == status
            assert "ZeroDivision" not in answer.text
    (reply,) = (record for record in caplog.records if record.exc_info)
    assert reply.exc_info
    assert reply.exc_info[0] is ZeroDivisionError


def test_a_client_rejected_before_the_end_of_its_body_is_disconnected(tmp_path: Path) -> None:
    with sample_server(tmp_path, patience=60.0) as sample:
        sample.state.keys.create("somebody", [parse_grant("read")])
        with closing(connect(sample)) as line:
            line.sendall(ask_request(sample)[:-10])  # not all of the body that it has announced
            reply = b""
            while piece := line.recv(65536):  # until the server hangs up
                reply += piece
        assert reply.startswith(b"HTTP/1.1 401")
        assert b"connection: close" in reply.lower()
        key = sample.state.keys.create("b", [parse_grant("read")])
        whole = sample.client.post(
            "/search",
            json={"question": "a", "knowledge_base": "mine"},
            headers={"Authorization": f"Bearer {key}"},
        )
        assert whole.status_code == 200
        assert "connection" not in whole.headers


class DelayedGenerator(CopyingGenerator):
    """Pauses between two pieces."""

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        for piece in super().stream(messages, sampling):
            time.sleep(0.05)
            yield piece


@pytest.mark.parametrize("stream", [False, True])
def test_a_running_answer_is_finished_when_the_server_stops(stream: bool, tmp_path: Path) -> None:
    answers: list[str] = []
    with sample_server(tmp_path, generator=DelayedGenerator()) as sample:
        body = {"question": QUESTION, "knowledge_base": "mine", "stream": stream}
        address = f"{sample.client.base_url}/ask"
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(address, json=body, timeout=60).text)
        )
        asking.start()
        wait_for(lambda: sample.state.answerer.local_queue.running == 1)
        time.sleep(0.2)
        assert not answers
    asking.join()
    assert '"citations":' in answers[0]


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-US,en;q=0.9,zh;q=0.8", "en"),
        ("fr, zh;q=0.5", "zh"),
        ("fr", "en"),
        ("zh;q=0", "en"),
        ("zh;q=x, en", "en"),
        ("," * 10_000, "en"),
        ("*", "en"),
    ],
)
def test_preferred_language(accepted: str, language: str) -> None:
    assert preferred_language(accepted) == language


def test_pages_of_other_sites_are_let_in_only_if_they_are_named(tmp_path: Path) -> None:
    body = {"question": QUESTION, "knowledge_base": "mine"}
    ours, other = {"origin": "https://a.example"}, {"origin": "https://b.example"}
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    with sample_server(tmp_path / "open", origins=("https://a.example",)) as sample:
        allowed = sample.client.post("/ask", json=body, headers=ours | {"sec-fetch-site": "cross-site"})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        assert sample.client.options("/ask", headers=ours | asks).status_code == 200
        assert sample.client.options("/ask", headers=other | asks).status_code == 400
        refused = sample.client.post("/ask", json=body, headers=other)
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers
    with sample_server(tmp_path / "closed") as sample:
        refused = sample.client.post("/ask", json=body, headers=ours)
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers
        assert "access-control-allow-origin" not in sample.client.options("/ask", headers=ours | asks).headers


def test_the_reference_of_the_api_is_packaged(tmp_path: Path) -> None:
    with sample_server(tmp_path) as sample:
        page = sample.client.get("/docs")
        assert page.status_code == 200
        for link in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            assert link.startswith("/")
            assert sample.client.get(link).status_code == 200
        assert "/v1/chat/completions" in sample.client.get("/openapi.json").json()["paths"]
