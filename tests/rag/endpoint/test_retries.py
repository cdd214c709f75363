"""What is tried again, when, and how often."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from rag.endpoint.client import Failed, Unreachable
from tests.faulty import MODELS, ROLE, Act, answers, drops, event, fails, faulty, says
from tests.rag.endpoint.reached import reach


@pytest.mark.parametrize(
    "act",
    [drops, says(event(ROLE), ends=False), says(b"", ends=False), *map(fails, (408, 409, 429, 500, 503))],
)  # fmt: skip
def test_what_fails_before_the_first_piece_is_tried_again(act: Act) -> None:
    with faulty(act, act, answers("六个月")) as engine:
        reached = reach(engine)
        assert reached.reply() == "六个月"
        assert len(engine.chats) == 3
        first, second = reached.pauses
        assert 0.25 <= first <= 0.5 <= second <= 1


def test_pauses_grow_and_end() -> None:
    with faulty(fails(503, "loading")) as engine:
        reached = reach(engine, tries=9)
        with pytest.raises(Unreachable, match="503: loading") as failed:
            reached.reply()
        assert len(engine.chats) == 9
        assert [0.5 <= pause / least <= 1 for pause, least in zip(
            reached.pauses, (0.5, 1, 2, 4, 8, 8, 8, 8), strict=True
        )] == [True] * 8  # fmt: skip
        assert engine.address in str(failed.value)
        assert engine.address in failed.value.zh


def test_an_engine_that_asks_to_wait_is_given_the_time() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    acts = [fails(429, Retry_After="7"), fails(503, Retry_After=soon), fails(503, Retry_After="?")]
    with faulty(*acts, answers("六个月")) as engine:
        reached = reach(engine)
        assert reached.reply() == "六个月"
        first, second, third = reached.pauses
        assert first == 7
        assert 30 < second <= 40
        assert third <= 2


def test_who_asks_for_an_hour_is_not_waited_for() -> None:
    with faulty(fails(429, "quota", Retry_After="3600"), answers("六个月")) as engine:
        reached = reach(engine)
        with pytest.raises(Unreachable, match="429: quota"):
            reached.reply()
        assert reached.pauses == []


@pytest.mark.parametrize(("status", "said"), [
    (400, "refused the request (400: sorry)"),
    (401, "RAG_MODEL_KEY"),
    (403, "RAG_MODEL_KEY"),
    (404, "refused the request (404: sorry)"),
    (422, "422"),
    (501, "501"),
])  # fmt: skip
def test_a_refusal_is_not_tried_again(status: int, said: str) -> None:
    with faulty(fails(status), answers("六个月")) as engine:
        reached = reach(engine)
        with pytest.raises(Failed) as failed:
            reached.reply()
        assert said in str(failed.value)
        assert reached.pauses == []
        assert len(engine.chats) == 1


def test_what_is_asked_before_a_reply_is_tried_again_too() -> None:
    with faulty(answers("六个月")) as engine:
        address = engine.address
    reached = reach(address, tries=3)  # nobody is there any more
    with pytest.raises(Unreachable, match=f"{address} can't be reached .*start the engine"):
        _ = reached.generator.context
    assert len(reached.pauses) == 2


def test_after_a_failure_an_engine_is_asked_anew_what_it_is() -> None:
    with faulty(fails(404), answers("六个月")) as engine:
        reached = reach(engine)
        assert reached.generator.context == 8192
        with pytest.raises(Failed):
            reached.reply()
        engine.paths["/v1/models"] = {"data": [MODELS["data"][0] | {"max_model_len": 2048}]}
        assert reached.generator.context == 2048
