"""A reply is left at any moment, and the engine sees it."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest

from rag.endpoint import Address, EndpointOptions
from rag.endpoint.client import Unreachable
from rag.endpoint.generator import Endpoint, EndpointGenerator
from rag.types import Sampling
from tests.faulty import PATIENCE, answers, chunk, event, fails, faulty, never_ends, stalls
from tests.rag.endpoint.reached import ASKED, reach


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def test_closing_the_iterator_ends_the_request() -> None:
    with faulty(never_ends) as engine:
        pieces = reach(engine).generator.stream(ASKED, Sampling())
        assert next(pieces) == "又"
        pieces.close()
        assert engine.gone.wait(PATIENCE)
    assert [each for each in threading.enumerate() if "portal" in each.name] == []


def test_stop_ends_a_reply_as_if_it_were_complete() -> None:
    with faulty(never_ends) as engine:
        generator = reach(engine).generator
        pieces = generator.stream(ASKED, Sampling())
        assert next(pieces) == "又"
        generator.stop()
        assert set(pieces) <= {"又"}
        assert engine.gone.wait(PATIENCE)


@pytest.mark.parametrize("sent", [b"", event(chunk(role="assistant"))])
def test_stop_reaches_an_engine_that_still_reads_the_prompt(
    sent: bytes, pool: ThreadPoolExecutor
) -> None:
    with faulty(stalls(sent)) as engine:
        reached = reach(engine)
        text = pool.submit(reached.reply)
        assert engine.begun.wait(PATIENCE)
        reached.generator.stop()
        assert text.result(PATIENCE) == ""
        assert engine.gone.wait(PATIENCE)


def test_stop_ends_a_pause_between_two_tries(pool: ThreadPoolExecutor) -> None:
    paused = threading.Event()

    async def pause(seconds: float) -> None:
        paused.set()
        await anyio.sleep_forever()

    with faulty(fails(503), answers("no")) as engine:
        address = Address.parse(engine.address)
        endpoint = Endpoint(address, EndpointOptions(), key="", note=print, sleep=pause)
        generator = EndpointGenerator(endpoint)
        text = pool.submit(lambda: "".join(generator.stream(ASKED, Sampling())))
        assert paused.wait(PATIENCE)
        generator.stop()
        assert text.result(PATIENCE) == ""
        assert len(engine.chats) == 1


def test_stop_ends_a_count_too(pool: ThreadPoolExecutor) -> None:
    counting, release = threading.Event(), threading.Event()

    def count(body: dict) -> dict:
        if body["messages"][0]["content"] != "-":
            counting.set()
            release.wait(PATIENCE)
        return {"count": 5}

    with faulty(answers("六个月"), paths={"/tokenize": count}) as engine:
        generator = reach(engine).generator
        counted = pool.submit(lambda: generator.count(ASKED))
        assert counting.wait(PATIENCE)
        generator.stop()
        with pytest.raises(Unreachable, match="was stopped"):
            counted.result(PATIENCE)
        release.set()


def test_without_a_reply_stop_does_nothing() -> None:
    with faulty(answers("六个月")) as engine:
        reached = reach(engine)
        reached.generator.stop()
        assert reached.reply() == "六个月"


def test_a_conversation_apart_is_stopped_apart() -> None:
    with faulty(never_ends) as engine:
        one = reach(engine).generator
        other = one.apart()
        first, second = (each.stream(ASKED, Sampling()) for each in (one, other))
        assert next(first) == next(second) == "又"
        one.stop()
        assert set(first) <= {"又"}
        assert next(second) == "又"
        second.close()
        asked = [each.path for each in engine.seen].count("/v1/models")
        assert asked == 1  # what is served there was asked for both
