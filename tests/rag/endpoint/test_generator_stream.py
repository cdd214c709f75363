"""Replies of an engine, complete and broken."""

import json

import pytest

from ingest.errors import UserError
from ingest.i18n import translate
from rag.endpoint.engines import EngineFailure, Unreachable
from rag.endpoint.generator import TokenUsage
from rag.types import Sampling
from tests.faulty import ROLE, Act, answers, chunk, drops, event, fails, faulty, reply, says, stalls
from tests.rag.endpoint.clients import QUESTION, connect

TEXT = "试用期最长不得超过六个月😀[1]。"


def test_pieces_come_as_the_engine_sends_them() -> None:
    with faulty(answers("试用期", "", "六个月", "。")) as engine:
        client = connect(engine)
        assert list(client.generator.stream(QUESTION, Sampling())) == ["试用期", "六个月", "。"]
        assert client.generator.usage == TokenUsage(11, 3)


def test_a_reply_begins_with_its_first_word() -> None:
    """ChatGLM3 and GLM-4 begin with a line end."""
    with faulty(answers("\n", " ", " 试用期", " \n", "六个月。\n")) as engine:
        assert list(connect(engine).generator.stream(QUESTION, Sampling())) == ["试用期", " \n", "六个月。\n"]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_packets_may_end_within_a_character(size: int) -> None:
    with faulty(says(reply(*TEXT), size=size)) as engine:
        assert connect(engine).reply() == TEXT


@pytest.mark.parametrize("line", ["\n", "\r\n", "\r"])
def test_lines_may_end_as_the_standard_allows(line: str) -> None:
    stream = (
        b": ping"
        + line.encode() * 2
        + b"".join(event(each, line) for each in (ROLE, chunk(TEXT), chunk(finish="stop"), "[DONE]"))
    )
    with faulty(says(stream, size=1)) as engine:
        assert connect(engine).reply() == TEXT


def test_two_surrogates_become_one_character() -> None:
    """JSON's \\u writes 😀 as two; one alone is no character."""
    for written, text in ((json.dumps("😀")[1:-1], "😀"), (json.dumps("😀")[1:-1][:6], "\ufffd")):
        body = f'{{"choices":[{{"delta":{{"content":"好{written}"}}}}]}}'
        with faulty(says(b"".join(event(each) for each in (body, chunk(finish="stop"), "[DONE]")))) as engine:
            assert connect(engine).reply() == f"好{text}"


def test_half_a_character_at_a_disconnect_is_dropped() -> None:
    whole = event(ROLE) + event(chunk("六个"))
    torn = event(chunk("月")).partition("月".encode()[:2])
    with faulty(says(whole + torn[0] + torn[1], ends=False)) as engine:
        pieces: list[str] = []
        with pytest.raises(UserError, match="broke off after 2 characters"):
            pieces.extend(connect(engine).generator.stream(QUESTION, Sampling()))
        assert len(engine.chats) == 1


def test_text_before_a_disconnect_is_given_once() -> None:
    with faulty(says(event(chunk("六个")), ends=False), answers("again")) as engine:
        pieces: list[str] = []
        with pytest.raises(EngineFailure) as broken:
            pieces.extend(connect(engine).generator.stream(QUESTION, Sampling()))
        assert pieces == ["六个"]
        assert engine.address in str(broken.value)
        assert "2 个字符" in translate(broken.value.message, "zh")
        assert len(engine.chats) == 1


def test_an_unannounced_end_is_an_error() -> None:
    with faulty(says(event(chunk("六个")))) as engine, pytest.raises(EngineFailure, match="has no end"):
        connect(engine).reply()


def test_a_disconnect_after_the_announced_end_is_ignored() -> None:
    stream = event(chunk("六个月")) + event(chunk(finish="stop"))
    with faulty(says(stream, ends=False)) as engine:
        assert connect(engine).reply() == "六个月"


def test_thoughts_are_not_part_of_an_answer() -> None:
    chunks = (
        ROLE, chunk(reasoning_content="嗯"), chunk(reasoning="嗯"), chunk("六个月", finish="stop"), "[DONE]",
    )  # fmt: skip
    with faulty(says(b"".join(map(event, chunks)))) as engine:
        assert connect(engine).reply() == "六个月"
    chunks = (ROLE, chunk(reasoning_content="嗯"), chunk(finish="length"), "[DONE]")
    with (
        faulty(says(b"".join(map(event, chunks)))) as engine,
        pytest.raises(EngineFailure, match="raise max_new_tokens"),
    ):
        connect(engine).reply()


def test_a_truncated_answer_is_reported() -> None:
    with faulty(says(reply("六个", finish="length"))) as engine:
        client = connect(engine)
        assert client.reply_and_reason() == ("六个", "length")
        assert client.generator.usage == TokenUsage(11, 3)


def test_usage_is_estimated_if_the_engine_does_not_report_it() -> None:
    stream = b"".join(map(event, (chunk("六个月"), chunk(finish="stop"), "[DONE]")))
    with faulty(says(stream)) as engine:
        client = connect(engine)
        assert client.reply_and_reason() == ("六个月", "stop")
        assert client.generator.usage == TokenUsage(64 + 8 + 16, 6)


def test_only_chosen_sampling_options_are_sent() -> None:
    with faulty(answers("好")) as engine:
        client = connect(engine)
        client.reply(Sampling(7, temperature=0.5, top_p=0.9, seed=3))
        client.reply(Sampling(7, seed=3, response_format='{"type": "json_object"}'))
        first, second = (chat.body for chat in engine.chats)
        assert first["messages"] == [{"role": "user", "content": QUESTION[0].text}]
        assert {name: first[name] for name in ("model", "max_tokens", "temperature", "top_p", "seed")} == {
            "model": "glm", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 3,
        }  # fmt: skip
        assert "temperature" not in second
        assert "top_p" not in second
        assert second["response_format"] == {"type": "json_object"}
        assert "response_format" not in first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (event("{"), "does not answer as OpenAI's API does ({)"),
        (event("[" * 100_000), "does not answer as OpenAI's API does"),
        (event([1]), "does not answer as OpenAI's API does ([1])"),
        (event({"choices": [None]}), "does not answer as OpenAI's API does"),
        (event({"choices": [{"delta": {"content": ["?"]}}]}), "does not answer as OpenAI's API does"),
        (b"data: \xff\n\n", "does not answer as OpenAI's API does"),
        (b"data: " + b"x" * 2_000_000 + b"\n\n", "does not answer as OpenAI's API does (xxx"),
        (event({"error": {"message": "out\nof\x1b[31m memory", "code": 400}}), "out of [31m memory"),
        (event({"error": "out of memory"}), "out of memory"),
    ],
)  # fmt: skip
def test_an_invalid_stream_is_an_error_of_one_line(content: bytes, message: str) -> None:
    with faulty(says(content)) as engine, pytest.raises(EngineFailure) as failed:
        connect(engine).reply()
    assert message in str(failed.value)
    assert len(str(failed.value)) < 500
    assert engine.address in translate(failed.value.message, "zh")
    assert len(engine.chats) == 1


def test_an_error_within_the_stream_counts_the_text_before_it() -> None:
    error = event({"error": {"message": "overloaded", "code": 503}})
    for before, count in ((event(ROLE), 0), (event(chunk("六")), 1)):
        with faulty(says(before + error), answers("六个月")) as engine:
            with pytest.raises(EngineFailure, match=f"failed after {count} characters.*overloaded"):
                connect(engine).reply()
            assert len(engine.chats) == 1


@pytest.mark.parametrize("act", [says(event(ROLE), ends=False), says(event(ROLE)), says(b"", ends=False)])
def test_a_stream_that_ends_before_its_first_word_means_an_unreachable_engine(act: Act) -> None:
    with faulty(act) as engine:
        with pytest.raises(Unreachable, match=r"can't be reached \(.+\); start the engine"):
            connect(engine).reply()
        assert len(engine.chats) == 1


def test_a_web_page_is_not_a_stream() -> None:
    def page(call) -> None:
        call.begin("text/html")
        call.packet(b"<html>")
        call.end()

    with faulty(page) as engine, pytest.raises(EngineFailure, match=r"text/html.*check the address"):
        connect(engine).reply()
    with (
        faulty(drops, paths={"/v1/models": lambda _: "<html>"}) as engine,
        pytest.raises(UserError, match=r"does not answer as OpenAI's API does \(.*<html>\)"),
    ):
        connect(engine).reply()


def test_silence_is_an_error_and_not_retried() -> None:
    for act in (stalls(), stalls(event(chunk("六")))):
        with faulty(act, answers("六个月")) as engine:
            with pytest.raises(EngineFailure, match=r"silent for 0\.2 s"):
                connect(engine, silence_seconds=0.2).reply()
            assert engine.gone.wait(60)
            assert len(engine.chats) == 1


def test_the_error_of_a_long_prompt_names_the_way_out() -> None:
    message = "This model's maximum context length is 2048 tokens."
    with faulty(fails(400, message)) as engine, pytest.raises(EngineFailure) as failed:
        connect(engine).reply()
    assert message in str(failed.value)
    assert "set context to its window under [generate.endpoint]" in str(failed.value)
