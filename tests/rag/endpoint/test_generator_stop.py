"""Any moment of a reply can be stopped, and the engine sees it."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from rag.endpoint.engines import Unreachable
from rag.types import Sampling
from tests.faulty import PATIENCE, answers, chunk, event, fails, faulty, never_ends, stalls
from tests.rag.endpoint.clients import QUESTION, connect


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_closing_the_iterator_ends_the_request() -> None:
    with faulty(never_ends) as engine:
        pieces = connect(engine).generator.stream(QUESTION, Sampling())
        assert next(pieces) == "又"
        pieces.close()
        assert engine.gone.wait(PATIENCE)
    assert [each for each in threading.enumerate() if "portal" in each.name] == []


def test_stop_ends_a_reply_as_if_it_were_complete() -> None:
    with faulty(never_ends) as engine:
        generator = connect(engine).generator
        pieces = generator.stream(QUESTION, Sampling())
        assert next(pieces) == "又"
        generator.stop()
        assert set(pieces) <= {"又"}
        assert engine.gone.wait(PATIENCE)


@pytest.mark.parametrize("sent", [b"", event(chunk(role="assistant"))])
def test_stop_reaches_an_engine_that_still_reads_the_prompt(sent: bytes, pool: ThreadPoolExecutor) -> None:
    with faulty(stalls(sent)) as engine:
        client = connect(engine)
        text = pool.submit(client.reply)
        assert engine.begun.wait(PATIENCE)
        client.generator.stop()
        assert text.result(PATIENCE) == ""
        assert engine.gone.wait(PATIENCE)


def test_stop_ends_a_pause_between_two_tries(
    pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    paused = threading.Event()
    caplog.set_level("INFO", "openai")
    caplog.handler.addFilter(lambda record: "Retrying" not in record.msg or paused.set() or True)
    with faulty(fails(503, Retry_After="60"), answers("no")) as engine:
        client = connect(engine)
        text = pool.submit(client.reply)
        assert paused.wait(PATIENCE)
        client.generator.stop()
        assert text.result(PATIENCE / 2) == ""
        assert len(engine.chats) == 1


def test_stop_ends_a_connection_that_is_not_accepted(pool: ThreadPoolExecutor) -> None:
    """The queue of a socket that nobody accepts from is full: the next connection waits."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        port = silent.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        generator = connect(f"http://127.0.0.1:{port}", connect_seconds=PATIENCE).generator
        context = pool.submit(lambda: generator.context)
        while not generator._requests:
            time.sleep(0.01)
        generator.stop()
        with pytest.raises(Unreachable, match="was stopped"):
            context.result(PATIENCE / 2)
        for each in waiting:
            each.close()


def test_stop_ends_a_count_too(pool: ThreadPoolExecutor) -> None:
    counting, release = threading.Event(), threading.Event()

    def count(body: dict) -> dict:
        if body["messages"][0]["content"] != "-":
            counting.set()
            release.wait(PATIENCE)
        return {"count": 5}

    with faulty(answers("六个月"), paths={"/tokenize": count}) as engine:
        generator = connect(engine).generator
        counted = pool.submit(lambda: generator.count(QUESTION))
        assert counting.wait(PATIENCE)
        generator.stop()
        with pytest.raises(Unreachable, match="was stopped"):
            counted.result(PATIENCE)
        release.set()


def test_without_a_reply_stop_does_nothing() -> None:
    with faulty(answers("六个月")) as engine:
        client = connect(engine)
        client.generator.stop()
        assert client.reply() == "六个月"


def test_stop_ends_only_its_own_conversation() -> None:
    with faulty(never_ends) as engine:
        one = connect(engine).generator
        other = one.copy()
        first, second = (each.stream(QUESTION, Sampling()) for each in (one, other))
        assert next(first) == next(second) == "又"
        one.stop()
        assert set(first) <= {"又"}
        assert next(second) == "又"
        second.close()
        lists = [each.path for each in engine.seen].count("/v1/models")
        assert lists == 1  # one list of models serves both
