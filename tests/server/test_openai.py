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
    messages = [{"role": "system", "content": "You are…"}, {"role": "user", "content": QUESTION}]
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


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"model": "none"}, openai.NotFoundError),
        ({"n": 2}, openai.UnprocessableEntityError),
        ({"messages": [{"role": "assistant", "content": "?"}]}, openai.BadRequestError),
        ({"messages": [{"role": "user", "content": " "}]}, openai.UnprocessableEntityError),
        ({"messages": [{"role": "user", "content": "长" * 2001}]}, openai.UnprocessableEntityError),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]},
         openai.UnprocessableEntityError),
    ],
)  # fmt: skip
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
