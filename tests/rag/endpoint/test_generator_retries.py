"""Which failures are retried, and how often; the pauses are those of OpenAI's client."""

import pytest

from ingest.i18n import translate
from rag.endpoint.engines import EngineFailure, Unreachable
from tests.faulty import MODELS, Act, answers, drops, fails, faulty
from tests.rag.endpoint.clients import connect

SOON = {"Retry_After_Ms": "1"}


@pytest.mark.parametrize("act", [drops, *(fails(status, **SOON) for status in (408, 409, 429, 500, 503))])
def test_a_failure_before_the_stream_is_retried(act: Act) -> None:
    with faulty(act, act, answers("六个月")) as engine:
        assert connect(engine).reply() == "六个月"
        assert len(engine.chats) == 3


@pytest.mark.parametrize("tries", [1, 4])
def test_retries_are_limited(tries: int) -> None:
    with faulty(fails(503, "loading", **SOON)) as engine:
        with pytest.raises(Unreachable, match="503: loading") as failed:
            connect(engine, tries=tries).reply()
        assert len(engine.chats) == tries
        assert engine.address in str(failed.value)
        assert engine.address in translate(failed.value.message, "zh")


def test_a_long_retry_after_is_not_waited_for() -> None:
    with faulty(fails(429, "quota", Retry_After="3600"), answers("六个月")) as engine:
        with pytest.raises(Unreachable, match="429: quota"):
            connect(engine).reply()
        assert len(engine.chats) == 1


@pytest.mark.parametrize(("status", "message"), [
    (400, "refused the request (400: sorry)"),
    (401, "RAG_MODEL_KEY"),
    (403, "RAG_MODEL_KEY"),
    (404, "refused the request (404: sorry)"),
    (422, "422"),
])  # fmt: skip
def test_a_refusal_is_not_retried(status: int, message: str) -> None:
    with faulty(fails(status), answers("六个月")) as engine:
        with pytest.raises(EngineFailure) as failed:
            connect(engine).reply()
        assert message in str(failed.value)
        assert len(engine.chats) == 1


def test_an_unreachable_engine_is_named() -> None:
    with faulty(answers("六个月")) as engine:
        address = engine.address
    with pytest.raises(Unreachable, match=f"{address} can't be reached .*start the engine"):
        _ = connect(address, tries=2).generator.context


def test_after_a_failure_the_engine_is_explored_again() -> None:
    with faulty(fails(404), answers("六个月")) as engine:
        client = connect(engine)
        assert client.generator.context == 8192
        with pytest.raises(EngineFailure):
            client.reply()
        engine.paths["/v1/models"] = {"data": [MODELS["data"][0] | {"max_model_len": 2048}]}
        assert client.generator.context == 2048
