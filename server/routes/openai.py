"""/v1: an API compatible with OpenAI's. The knowledge base is the model."""

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
from ingest.i18n import Translator
from rag.cite import marks, numbers
from rag.types import Message
from server import schemas
from server.answering import Event, UserQuestion
from server.error_responses import EVENT_STREAM, responses
from server.errors import Conflict, error_body
from server.fair_queue import in_thread
from server.middleware import Context
from server.routes.ask import EventStreamResponse, start
from server.routes.knowledge_bases import Name
from server.state import ServerState


class LenientRequest(BaseModel):
    """A request body. Unknown fields are ignored, because clients send many; fields that would
    change the answer but are not supported are rejected."""

    model_config = ConfigDict(extra="allow", strict=True)


class ContentPart(LenientRequest):
    type: str
    text: str | None = None


class ChatMessage(LenientRequest):
    """The user's last message is the question. Those of the system stand before the knowledge base's own
    instruction."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ContentPart] | None = None

    @property
    def text(self) -> str:
        """Its text. Raises `UserError` if it has parts of another kind, such as images."""
        if not isinstance(self.content, list):
            return self.content or ""
        if others := [part.type for part in self.content if part.type != "text"]:
            raise UserError("a message has a part of the type {type}; only text is read here", type=others[0])
        return "".join(part.text or "" for part in self.content)


class StreamOptions(LenientRequest):
    include_usage: bool = False


class ResponseFormat(LenientRequest):
    type: Literal["text", "json_object", "json_schema"]


class ChatRequest(LenientRequest):
    """The fields of OpenAI's request that have an effect here."""

    model: str = Field(min_length=1, max_length=200, examples=["laws"])
    """A knowledge base; ignored if `knowledge_base` names one."""
    knowledge_base: schemas.BaseName | None = None
    scope: schemas.ScopeRequest = schemas.ScopeRequest()
    messages: list[ChatMessage] = Field(min_length=1, max_length=200)
    """At least one of the user; the last one is the question."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: schemas.Tokens | None = None
    max_completion_tokens: schemas.Tokens | None = None
    temperature: schemas.Temperature | None = None
    top_p: schemas.TopP | None = None
    seed: schemas.Seed | None = None
    n: Annotated[int, Field(strict=False, ge=1, le=1), schemas.WHOLE] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    response_format: ResponseFormat | None = None


UNSUPPORTED = "tools", "functions", "logprobs", "top_logprobs"
"""Fields that are refused if they ask for something."""

Input = Annotated[str, Field(min_length=1, max_length=20_000)]


class EmbeddingsRequest(LenientRequest):
    model: schemas.BaseName
    """The knowledge base whose encoder is used."""
    input: Input | Annotated[list[Input], Field(min_length=1, max_length=256)]
    input_type: Literal["passage", "query"] = "passage"
    """The encoder embeds passages and questions differently."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(strict=False, ge=1), schemas.WHOLE] | None = None


Body = dict[str, Any]
"""A response as OpenAI documents it. Fields of our own are said at the route."""

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])
STREAM_RESPONSE = {200: {"content": EVENT_STREAM}}


@router.get("/models")
def list_models(context: Context) -> Body:
    """The knowledge bases that the key may read."""
    names = context.state.knowledge_bases.names()
    return {"object": "list", "data": [_model(name) for name in names if context.who.may("read", name)]}


@router.get("/models/{model}")
def get_model(model: Name, context: Context) -> Body:
    context.require("read", model)
    context.state.knowledge_bases.path(model)
    return _model(model)


def _model(name: str) -> Body:
    return {"id": name, "object": "model", "created": int(time.time()), "owned_by": "chatglm-rag"}


@router.post("/chat/completions", response_model=Body, responses=STREAM_RESPONSE | responses(502, 503))
async def chat(body: ChatRequest, context: Context):
    """An answer from the knowledge base that `model` or `knowledge_base` names. The message's
    `annotations` are its citation marks, each with its quote in `citation`. `refused`, `sequence` and `hits`
    are those of /ask."""
    context.require("read", body.knowledge_base or body.model)
    question = _question(body)
    if body.stream:
        return EventStreamResponse(_chunks(await start(question, context), body, context.say))
    answer = await context.state.answerer.answer(question, context.who, context.say)
    message = {
        "role": "assistant", "content": answer.answer, "refusal": None, "annotations": annotations(answer),
    }  # fmt: skip
    choice = {
        "index": 0, "message": message, "finish_reason": _finish_reason(answer), "logprobs": None,
    }  # fmt: skip
    return {
        "id": f"chatcmpl-{answer.id}", "object": "chat.completion", "created": int(time.time()),
        "model": body.model, "choices": [choice], "usage": _usage(answer),
        **answer.model_dump(include={"refused", "sequence", "hits"}),
    }  # fmt: skip


@router.post("/embeddings", responses=responses(409, 503))
async def embeddings(body: EmbeddingsRequest, context: Context) -> Body:
    """Vectors of a knowledge base's encoder. An input that is too long for it is refused, not
    truncated."""
    context.require("read", body.model)
    async with context.state.answerer.search_queue.slot(context.who.id):
        return await in_thread(lambda: _embed(body, context.state))


def _embed(body: EmbeddingsRequest, state: ServerState) -> Body:
    texts = [body.input] if isinstance(body.input, str) else body.input
    with state.knowledge_bases.open(body.model) as pipeline:
        encoder = pipeline.embedder
        if body.dimensions not in (None, encoder.dim):
            raise Conflict(
                "dimensions is {dimensions}; {name} has {dim}",
                dimensions=body.dimensions, name=encoder.name, dim=encoder.dim,
            )  # fmt: skip
        counts = encoder.count_many(texts)
        if body.input_type == "query":
            vectors = np.array([encoder.embed_query(text) for text in texts])
        else:
            for index, count in enumerate(counts):
                if count > encoder.max_tokens:
                    raise Conflict(
                        "input {index} has {count} tokens, but the encoder's window is {limit} "
                        "tokens; split it",
                        index=index, count=count, limit=encoder.max_tokens,
                    )  # fmt: skip
            vectors = encoder.embed_passages(texts)
    rows: list[Any] = vectors.astype("<f4").tolist()
    if body.encoding_format == "base64":
        rows = [base64.b64encode(row.tobytes()).decode() for row in vectors.astype("<f4")]
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    usage = {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
    return {"object": "list", "data": data, "model": body.model, "usage": usage}


def _turn(message: ChatMessage) -> Message:
    return Message("assistant" if message.role == "assistant" else "user", message.text)


def _question(body: ChatRequest) -> UserQuestion:
    """The user's last message is the question, the messages before it are the conversation."""
    if unsupported := [name for name in UNSUPPORTED if (body.model_extra or {}).get(name)]:
        raise UserError("documents answer here, without {fields:and}; leave them out", fields=unsupported)
    messages = [each for each in body.messages if each.role in ("user", "assistant")]
    while messages and messages[-1].role == "assistant":
        messages.pop()
    if not messages:
        raise UserError("no message has the role user")
    *history, last = messages
    base, most = body.knowledge_base or body.model, body.max_completion_tokens or body.max_tokens
    form = body.response_format if body.response_format and body.response_format.type != "text" else None
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    system = "\n\n".join(each.text for each in body.messages if each.role in ("system", "developer"))
    overrides = body.model_dump(include={"temperature", "top_p", "seed"}) | {
        "max_new_tokens": most,
        "stop": tuple(filter(None, stop)) or None,
        "response_format": form and form.model_dump_json(),
    }
    overrides = {name: value for name, value in overrides.items() if value is not None}
    turns = tuple(_turn(each) for each in history if each.text)
    scope = body.scope.value()
    return UserQuestion(last.text, base, turns, overrides, system.strip(), most or 0, scope)


def annotations(answer: schemas.AnswerResponse) -> list[Body]:
    """One for each citation mark in the text. Its URL is the path of the document's text on this server."""
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": mark.start(), "end_index": mark.end(),
                "title": " · ".join(part for part in (citation.name, citation.label) if part),
                "url": f"/knowledge-bases/{answer.knowledge_base}/documents/{citation.document}"
                f"/text?start={citation.start}&end={citation.end}",
            },
            "citation": citation.model_dump(),
        }
        for mark in marks(answer.answer)
        for number in numbers(mark)
        for citation in answer.citations
        if citation.number == number
    ]  # fmt: skip


def _usage(answer: schemas.AnswerResponse) -> Body:
    read, written = answer.usage.read, answer.usage.written
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _finish_reason(answer: schemas.AnswerResponse) -> Literal["stop", "length"]:
    return "length" if answer.usage.cut else "stop"


async def _chunks(events: AsyncGenerator[Event], body: ChatRequest, say: Translator) -> AsyncGenerator[bytes]:
    """OpenAI's chunks: the role, the text, then the annotations and the finish reason."""
    frame: dict[str, Any] = {
        "object": "chat.completion.chunk", "created": int(time.time()), "model": body.model,
    }  # fmt: skip

    def chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return _encode(frame | {"choices": [choice]} | more)

    async with aclosing(events):
        try:
            async for event in events:
                match event:
                    case schemas.SearchResponse():
                        frame["id"] = f"chatcmpl-{event.id}"
                        passages = event.model_dump(include={"sequence", "hits"})
                        yield chunk({"role": "assistant", "content": ""}, **passages)
                    case schemas.PieceEvent():
                        yield chunk({"content": event.text})
                    case schemas.AnswerResponse():
                        delta = {"annotations": annotations(event)}
                        yield chunk(delta, _finish_reason(event), refused=event.refused)
                        if body.stream_options and body.stream_options.include_usage:
                            yield _encode(frame | {"choices": [], "usage": _usage(event)})
        except UserError as problem:
            yield _encode(error_body(problem, say, "broken_off").model_dump())
    yield format_sse_event(data_str="[DONE]")


def _encode(value: dict[str, Any]) -> bytes:
    return format_sse_event(data_str=json.dumps(value, ensure_ascii=False))
