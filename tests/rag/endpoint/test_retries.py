"""What is tried again, and how often; the pauses are those of OpenAI's client."""

import pytest

from ingest.i18n import translate
from rag.endpoint.engines import Failed, Unreachable
from tests.faulty import MODELS, Act, answers, drops, fails, faulty
from tests.rag.endpoint.reached import reach

SOON = {"Retry_After_Ms": "1"}


@pytest.mark.parametrize(
    "act", [drops, *(fails(status, **SOON) for status in (408, 409, 429, 500, 503))]
)
def test_what_fails_before_the_stream_is_tried_again(act: Act) -> None:
    with faulty(act, act, answers("六个月")) as engine:
        assert reach(engine).reply() == "六个月"
        assert len(engine.chats) == 3


@pytest.mark.parametrize("tries", [1, 4])
def test_tries_end(tries: int) -> None:
    with faulty(fails(503, "loading", **SOON)) as engine:
        with pytest.raises(Unreachable, match="503: loading") as failed:
            reach(engine, tries=tries).reply()
        assert len(engine.chats) == tries
        assert engine.address in str(failed.value)
        assert engine.address in translate(failed.value.message, "zh")


def test_who_asks_for_an_hour_is_not_waited_for() -> None:
    with faulty(fails(429, "quota", Retry_After="3600"), answers("六个月")) as engine:
        with pytest.raises(Unreachable, match="429: quota"):
            reach(engine).reply()
        assert len(engine.chats) == 1


@pytest.mark.parametrize(("status", "said"), [
    (400, "refused the request (400: sorry)"),
    (401, "RAG_MODEL_KEY"),
    (403, "RAG_MODEL_KEY"),
    (404, "refused the request (404: sorry)"),
    (422, "422"),
])  # fmt: skip
def test_a_refusal_is_not_tried_again(status: int, said: str) -> None:
    with faulty(fails(status), answers("六个月")) as engine:
        with pytest.raises(Failed) as failed:
            reach(engine).reply()
        assert said in str(failed.value)
        assert len(engine.chats) == 1


def test_who_is_not_there_is_named() -> None:
    with faulty(answers("六个月")) as engine:
        address = engine.address
    with pytest.raises(Unreachable, match=f"{address} can't be reached .*start the engine"):
        _ = reach(address, tries=2).generator.context


def test_after_a_failure_an_engine_is_asked_again_what_it_is() -> None:
    with faulty(fails(404), answers("六个月")) as engine:
        reached = reach(engine)
        assert reached.generator.context == 8192
        with pytest.raises(Failed):
            reached.reply()
        engine.paths["/v1/models"] = {"data": [MODELS["data"][0] | {"max_model_len": 2048}]}
        assert reached.generator.context == 2048
