"""The official client of OpenAI's API, unchanged, against this server."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import openai
import pytest

from tests.fakes import CopyingGenerator
from tests.server.servers import SampleServer, WideEmbedder, sample_server

QUESTION = "试用期不得超过几个月？"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SampleServer]:
    with sample_server(tmp_path_factory.mktemp("server")) as full:
        yield full


@pytest.fixture(scope="module")
def client(sample: SampleServer) -> Iterator[openai.OpenAI]:
    address = f"{sample.client.base_url}/v1"
    with closing(openai.OpenAI(base_url=address, api_key="none", max_retries=0)) as made:
        yield made


def ask(client: openai.OpenAI, **more):
    messages = [{"role": "user", "content": QUESTION}]
    return client.chat.completions.create(**{"model": "mine", "messages": messages, **more})


def test_models_are_the_knowledge_bases(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["mine"]


def test_a_completion_has_its_citations_as_annotations(client: openai.OpenAI, sample: SampleServer) -> None:
    completion = ask(client)
    message = completion.choices[0].message
    assert "六个月" in (message.content or "")
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage
    assert completion.usage.total_tokens > 0
    assert message.annotations
    for annotation in message.annotations:
        cited = annotation.url_citation
        assert (message.content or "")[cited.start_index : cited.end_index].startswith("[")
        quote = annotation.citation["quote"]  # type: ignore[attr-defined]
        assert sample.client.get(cited.url).json()["text"] == quote


def test_a_stream_has_the_same_text_and_annotations(client: openai.OpenAI) -> None:
    whole = ask(client).choices[0].message
    text, annotations, finish, usage = "", [], None, None
    for chunk in ask(client, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            annotations += getattr(choice.delta, "annotations", None) or []
            finish = choice.finish_reason or finish
    assert text == whole.content
    assert finish == "stop"
    assert usage
    told = [annotation.model_dump() for annotation in whole.annotations or []]
    assert [each["url_citation"] for each in annotations] == [each["url_citation"] for each in told]


def test_an_answer_has_the_sequence_that_it_was_made_from(
    client: openai.OpenAI, sample: SampleServer
) -> None:
    newest = sample.client.get("/knowledge-bases/mine").json()["sequence"]
    first = next(iter(ask(client, stream=True)))
    assert [each.model_dump()["sequence"] for each in (ask(client), first)] == [newest, newest]
    body = {"question": QUESTION, "knowledge_base": "mine"}
    assert sample.client.post("/search", json=body).json()["sequence"] == newest
    answer = sample.ask(QUESTION)
    assert answer["sequence"] == newest
    assert sample.client.get(f"/traces/{answer['id']}").json()["sequence"] == newest


def test_the_knowledge_base_can_be_an_extra_field(client: openai.OpenAI) -> None:
    completion = ask(client, model="gpt-4o", extra_body={"knowledge_base": "mine"})
    assert completion.model == "gpt-4o"
    assert "六个月" in (completion.choices[0].message.content or "")
    scope = {"places": ["poem.txt"]}
    refused = ask(client, model="mine", extra_body={"scope": scope})
    assert "poem.txt" in (refused.choices[0].message.content or "")


def test_content_parts_and_earlier_turns_are_accepted(client: openai.OpenAI) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Rust 多久发布新的稳定版本？"}]},
        {"role": "assistant", "content": "每六周。"},
        {"role": "user", "content": "那它的包管理器呢？"},
    ]
    answer = ask(client, messages=messages)
    assert "Rust" in (answer.choices[0].message.content or "")
    assert answer.choices[0].message.annotations


@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings_are_those_of_the_encoder(client: openai.OpenAI, form: str) -> None:
    texts = ["试用期", "包管理器"]
    made = client.embeddings.create(model="mine", input=texts, encoding_format=form)  # type: ignore[arg-type]
    got = [
        np.frombuffer(__import__("base64").b64decode(each.embedding), "<f4")
        if isinstance(each.embedding, str)
        else each.embedding
        for each in made.data
    ]
    assert np.allclose(got, WideEmbedder().embed_passages(texts), atol=1e-6)


def test_an_input_too_long_for_the_encoder_is_refused_not_truncated(client: openai.OpenAI) -> None:
    with pytest.raises(openai.ConflictError, match="501 tokens, but the encoder's window is 500"):
        client.embeddings.create(model="mine", input=["长" * 501])
    response = client.embeddings.create(model="mine", input=["长" * 501], extra_body={"input_type": "query"})
    assert len(response.data) == 1


SYSTEM = [{"role": "system", "content": "只用英文回答"}, {"role": "user", "content": QUESTION}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}]
NEEDS = "language model, but mine answers with sentences"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"n": 2}, "n must be 1 or less"),
        ({"messages": [{"role": "assistant", "content": "?"}]}, "no message has the role user"),
        ({"messages": [{"role": "user", "content": " "}]}, "the question is empty"),
        ({"messages": [{"role": "user", "content": "长" * 2001}]}, "2001 characters; the limit is 2000"),
        ({"messages": [{"role": "user", "content": 3}]}, "must be a text"),
        ({"messages": []}, "messages is empty"),
        ({"messages": IMAGE}, "a part of the type image_url; only text is read here"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "documents answer here, without tools; leave them out"),
        ({"functions": [{"name": "f"}]}, "without functions; leave them out"),
        ({"logprobs": True}, "without logprobs; leave them out"),
        ({"logprobs": True, "top_logprobs": 2}, "without logprobs and top_logprobs; leave them out"),
        ({"messages": SYSTEM}, f"system need a {NEEDS}"),
        ({"stop": "个"}, f"stop need a {NEEDS}"),
        ({"response_format": {"type": "json_object"}}, f"response_format need a {NEEDS}"),
        ({"max_tokens": 3}, "it quotes documents and is not cut"),
        ({"temperature": "x"}, "temperature must be a number"),
    ],
)  # fmt: skip
def test_what_can_not_be_done_is_refused_in_words(client: openai.OpenAI, more: dict, says: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **{"extra_body": more} if "functions" in more or "temperature" in more else more)
    assert says in refused.value.message
    assert refused.value.type == "invalid_request_error"
    assert "Input should" not in refused.value.message


def test_long_earlier_messages_and_parts_of_answers_are_read(client: openai.OpenAI) -> None:
    messages = [
        {"role": "user", "content": "这是一份很长的背景材料。" * 900},
        {"role": "assistant", "content": [{"type": "text", "text": "好的。" * 3000}]},
        {"role": "user", "content": QUESTION},
    ]
    assert "六个月" in (ask(client, messages=messages).choices[0].message.content or "")
    messages[-1]["content"] = "为什么？"
    ask(client, messages=messages)


@pytest.mark.parametrize("text", ["谢谢", "ok", "?", "你好", "exit", "讲个笑话", "1+1=?", "what is in here?"])
@pytest.mark.parametrize("route", ["/v1", "/ask"])
def test_small_talk_does_not_repeat_the_answer(
    client: openai.OpenAI, sample: SampleServer, text: str, route: str
) -> None:
    history = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "六个月 [1]"}]
    if route == "/ask":
        answer = sample.ask(text, history=history)
        content, citations = answer["answer"], answer["citations"]
    else:
        message = ask(client, messages=[*history, {"role": "user", "content": text}]).choices[0].message
        content, citations = message.content or "", message.annotations
    assert "六个月" not in content
    assert not citations
    assert ("劳动合同法.txt" in content) is (text != "讲个笑话")


def test_a_model_follows_stop_and_the_system(tmp_path: Path) -> None:
    generator = CopyingGenerator()
    with sample_server(tmp_path, generator=generator) as sample:
        address = f"{sample.client.base_url}/v1"
        with closing(openai.OpenAI(base_url=address, api_key="none", max_retries=0)) as client:
            whole = ask(client).choices[0].message.content or ""
            assert "不得超过" in whole
            for stop in ("不得超过", ["没有", "得超"]):
                cut = ask(client, stop=stop).choices[0]
                assert (
                    cut.message.content
                    == whole[: whole.index("不得超过" if stop == "不得超过" else "得超过")]
                )
                assert cut.finish_reason == "stop"
            ask(client, messages=SYSTEM)
            assert generator.prompts[-1][-1].text.startswith("只用英文回答\n\n请只根据")
            with pytest.raises(openai.BadRequestError, match="served elsewhere"):
                ask(client, response_format={"type": "json_object"})
            with pytest.raises(openai.BadRequestError, match="without logprobs and top_logprobs"):
                ask(client, logprobs=True, top_logprobs=1)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"model": "none"}, openai.NotFoundError),
        ({"messages": [{"role": "user", "content": " "}]}, openai.BadRequestError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_mistake_is_the_clients_own_error(
    client: openai.OpenAI, more: dict, error: type[Exception], stream: bool
) -> None:
    with pytest.raises(error):
        ask(client, stream=stream, **more)


def test_a_models_words_are_streamed_as_they_are_written(tmp_path: Path) -> None:
    with sample_server(tmp_path, generator=CopyingGenerator()) as sample:
        address = f"{sample.client.base_url}/v1"
        with closing(openai.OpenAI(base_url=address, api_key="none")) as client:
            chunks = [
                chunk.choices[0].delta.content
                for chunk in ask(client, stream=True, max_tokens=12)
                if chunk.choices and chunk.choices[0].delta.content
            ]
            assert len(chunks) == 12
            assert ask(client, max_tokens=12).choices[0].message.content == "".join(chunks)


def test_a_model_can_be_looked_up(client: openai.OpenAI) -> None:
    assert client.models.retrieve("mine").id == "mine"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


@pytest.mark.parametrize("stream", [False, True])
def test_a_truncated_answer_has_its_finish_reason_and_usage(tmp_path: Path, stream: bool) -> None:
    generator = CopyingGenerator()
    with sample_server(tmp_path, generator=generator) as sample:
        address = f"{sample.client.base_url}/v1"
        with closing(openai.OpenAI(base_url=address, api_key="none", max_retries=0)) as client:
            for most, expected in ((3, "length"), (500, "stop")):
                if stream:
                    more = {"stream": True, "stream_options": {"include_usage": True}}
                    *_, last, counted = ask(client, max_tokens=most, **more)
                    finish, usage = last.choices[0].finish_reason, counted.usage
                else:
                    completion = ask(client, max_tokens=most)
                    finish, usage = completion.choices[0].finish_reason, completion.usage
                assert finish == expected
                assert usage.completion_tokens <= most
                assert usage.prompt_tokens == generator.count(generator.prompts[-1])
