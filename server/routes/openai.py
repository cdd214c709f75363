"""/v1: what clients of OpenAI's API know how to use. The knowledge base is the model."""

import base64
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.sse import format_sse_event
from pydantic import BaseModel, ConfigDict, Field

from ingest.errors import UserError
from rag.pipeline import LONGEST_QUESTION, Pipeline
from rag.prompt import marks, numbers
from rag.types import Message
from server import schemas
from server.answering import Asked, Event
from server.error_responses import EVENT_STREAM, responses
from server.errors import Conflict
from server.fair_queue import Full, in_thread
from server.routes.ask import Events, begun, broken_off
from server.routes.knowledge_bases import Name
from server.state import By, Server, State


class Lenient(BaseModel):
    """A request. Fields that are not known are let pass, as clients send many; those that would
    change the answer and can't be had are refused."""

    model_config = ConfigDict(extra="allow", strict=True)


class Part(Lenient):
    type: Literal["text"]
    text: str = Field(min_length=1, max_length=LONGEST_QUESTION)


class UserMessage(Lenient):
    """A question; the last one is answered."""

    role: Literal["user"]
    content: schemas.Question | Annotated[list[Part], Field(min_length=1, max_length=20)]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class AssistantMessage(Lenient):
    """An answer of before."""

    role: Literal["assistant"]
    content: Annotated[str, Field(max_length=100_000)] | None = None

    @property
    def text(self) -> str:
        return self.content or ""


class SystemMessage(Lenient):
    """Taken and left out: the knowledge base's own instruction holds."""

    role: Literal["system", "developer"]
    content: str | list[Part]


ChatMessage = Annotated[UserMessage | AssistantMessage | SystemMessage, Field(discriminator="role")]
ASKED: dict[str, Any] = {
    "contains": {"properties": {"role": {"const": "user"}}, "required": ["role"]}
}


class StreamOptions(Lenient):
    include_usage: bool = False


class Chat(Lenient):
    """What of OpenAI's request has a meaning here."""

    model: str = Field(min_length=1, max_length=200, examples=["laws"])
    """A knowledge base, or anything where `knowledge_base` names one."""
    knowledge_base: schemas.BaseName | None = None
    messages: list[ChatMessage] = Field(min_length=1, max_length=200, json_schema_extra=ASKED)
    """One of the user at least, whose last is the question."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: schemas.Tokens | None = None
    max_completion_tokens: schemas.Tokens | None = None
    temperature: schemas.Temperature | None = None
    top_p: schemas.TopP | None = None
    seed: schemas.Seed | None = None
    n: Annotated[int, Field(strict=False, ge=1, le=1), schemas.WHOLE] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None


class UrlCitation(BaseModel):
    start_index: int
    end_index: int
    """Of the mark in the content."""
    title: str
    url: str
    """The document's text, below this server's address."""


class Annotation(BaseModel):
    type: Literal["url_citation"] = "url_citation"
    url_citation: UrlCitation
    citation: schemas.Citation
    """The quote and where it stands, exactly."""


class Reply(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    annotations: list[Annotation]


class Choice(BaseModel):
    index: int = 0
    message: Reply
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    refused: bool
    """Whether the documents do not answer the question."""
    sequence: int
    """The change of the knowledge base that the passages were found at."""
    hits: list[schemas.Hit]


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "chatglm-rag"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


Input = Annotated[str, Field(min_length=1, max_length=20_000)]


class Embed(Lenient):
    model: schemas.BaseName
    """A knowledge base, whose encoder is used."""
    input: Input | Annotated[list[Input], Field(min_length=1, max_length=256)]
    input_type: Literal["passage", "query"] = "passage"
    """Passages and questions are embedded differently."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(strict=False, ge=1), schemas.WHOLE] | None = None


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])
CHUNK = "chat.completion.chunk"
STREAMED = {200: {"content": EVENT_STREAM}}


@router.get("/models")
def list_models(server: Server, by: By) -> ModelList:
    """The knowledge bases that the key may read."""
    now = int(time.time())
    names = [name for name in server.bases.names() if by.who.may("read", name)]
    return ModelList(data=[Model(id=name, created=now) for name in names])


@router.get("/models/{model}")
def get_model(model: Name, server: Server, by: By) -> Model:
    by.must("read", model)
    server.bases.path(model)
    return Model(id=model, created=int(time.time()))


@router.post(
    "/chat/completions", response_model=Completion, responses=STREAMED | responses(502, 503)
)
async def chat(body: Chat, server: Server, by: By):
    """An answer from the knowledge base that `model` or `knowledge_base` names; citations are in the
    message's annotations."""
    by.must("read", body.knowledge_base or body.model)
    asked = await in_thread(lambda: _asked(body, server))
    if body.stream:
        events = server.answering.answer(asked, by.who, by.say)
        return Events(_chunks(await begun(events), body, by))
    answer = await server.answering.whole(asked, by.who, by.say)
    reply = Reply(content=answer.answer, annotations=annotations(answer))
    return Completion(
        id=f"chatcmpl-{answer.id}",
        created=int(time.time()),
        model=body.model,
        choices=[Choice(message=reply, finish_reason=_end(answer))],
        usage=_usage(answer),
        refused=answer.refused,
        sequence=answer.sequence,
        hits=answer.hits,
    )


@router.post("/embeddings", responses=responses(409, 503))
async def embeddings(body: Embed, server: Server, by: By) -> EmbeddingList:
    """Vectors of the encoder of a knowledge base. What does not fit its window is refused, never
    cut."""
    by.must("read", body.model)
    async with server.answering.reading.turn(by.who.id):
        return await in_thread(lambda: _embedded(body, server))


def _embedded(body: Embed, server: State) -> EmbeddingList:
    texts = [body.input] if isinstance(body.input, str) else body.input
    with server.bases.reading(body.model) as pipeline:
        encoder = pipeline.embedder
        if body.dimensions not in (None, encoder.dim):
            raise Conflict(
                "dimensions is {dimensions}; {name} has {dim}",
                dimensions=body.dimensions,
                name=encoder.name,
                dim=encoder.dim,
            )
        counts = encoder.count_many(texts)
        if body.input_type == "query":
            vectors = np.array([encoder.embed_query(text) for text in texts])
        else:
            _fits(counts, pipeline)
            vectors = encoder.embed_passages(texts)
    return EmbeddingList(
        data=[
            Embedding(index=index, embedding=_encoded(vector, body.encoding_format))
            for index, vector in enumerate(vectors)
        ],
        model=body.model,
        usage=EmbeddingUsage(prompt_tokens=sum(counts), total_tokens=sum(counts)),
    )


def _fits(counts: list[int], pipeline: Pipeline) -> None:
    room = pipeline.embedder.max_tokens
    for index, count in enumerate(counts):
        if count > room:
            raise Conflict(
                "input {index} has {count} tokens, the encoder's window holds {room}; split it",
                index=index,
                count=count,
                room=room,
            )


def _encoded(vector: np.ndarray, form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


def _asked(body: Chat, server: State) -> Asked:
    """The user's last message is the question, what was said before it the conversation."""
    said = [each for each in body.messages if not isinstance(each, SystemMessage)]
    while said and isinstance(said[-1], AssistantMessage):
        said.pop()
    if not said:
        raise UserError("no message is the user's")
    *before, last = said
    base = body.knowledge_base or body.model
    given: dict[str, Any] = {
        "max_new_tokens": body.max_completion_tokens or body.max_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "seed": body.seed,
    }
    given = {name: value for name, value in given.items() if value is not None}
    return Asked(
        last.text,
        base,
        tuple(Message(each.role, each.text) for each in before),
        server.bases.sampling(base, **given) if given else None,
    )


def annotations(answer: schemas.Answer) -> list[Annotation]:
    """One for each mark of the text that is a citation's number."""
    cited: dict[int, list[schemas.Citation]] = {}
    for citation in answer.citations:
        cited.setdefault(citation.number, []).append(citation)
    return [
        Annotation(
            url_citation=UrlCitation(
                start_index=mark.start(),
                end_index=mark.end(),
                title=" · ".join(part for part in (citation.name, citation.label) if part),
                url=(
                    f"/knowledge-bases/{answer.knowledge_base}/documents/{citation.document}"
                    f"/text?start={citation.start}&end={citation.end}"
                ),
            ),
            citation=citation,
        )
        for mark in marks(answer.answer)
        for number in numbers(mark)
        for citation in cited.get(number, [])
    ]


def _usage(answer: schemas.Answer) -> Usage:
    read, written = answer.usage.read, answer.usage.written
    return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


def _end(answer: schemas.Answer) -> Literal["stop", "length"]:
    return "length" if answer.usage.cut else "stop"


async def _chunks(events: AsyncGenerator[Event], body: Chat, by: By) -> AsyncGenerator[bytes]:
    """OpenAI's chunks: the role, the text, then annotations and the reason of the end."""
    frame: dict[str, Any] = {"object": CHUNK, "created": int(time.time()), "model": body.model}

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _data(frame | {"choices": [choice]} | more)

    async with aclosing(events):
        try:
            async for event in events:
                match event:
                    case schemas.Found():
                        frame["id"] = f"chatcmpl-{event.id}"
                        found = event.model_dump(include={"sequence", "hits"})
                        yield chunk({"role": "assistant", "content": ""}, **found)
                    case schemas.Piece():
                        yield chunk({"content": event.text})
                    case schemas.Answer():
                        told = [each.model_dump() for each in annotations(event)]
                        yield chunk({"annotations": told}, _end(event), refused=event.refused)
                        if body.stream_options and body.stream_options.include_usage:
                            usage = _usage(event).model_dump()
                            yield _data(frame | {"choices": [], "usage": usage})
        except (UserError, Full) as problem:
            yield _data(broken_off(problem, by).model_dump())
    yield format_sse_event(data_str="[DONE]")


def _data(value: dict[str, Any]) -> bytes:
    return format_sse_event(data_str=json.dumps(value, ensure_ascii=False))
