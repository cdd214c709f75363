"""/search, /ask and /traces."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from starlette.types import Send

from ingest.errors import UserError
from ingest.i18n import Translator
from rag.types import Message
from server import schemas
from server.answering import Event, UserQuestion
from server.error_responses import EVENT_STREAM, responses
from server.errors import NotFound, error_body
from server.middleware import Context, RequestContext

router = APIRouter(tags=["questions"])
Id = Annotated[str, Path(pattern="^[0-9a-f]{24}$")]

EVENT_NAMES = {
    schemas.SearchResponse: "passages",
    schemas.ReadingEvent: "reading",
    schemas.PieceEvent: "text",
    schemas.AnswerResponse: "citations",
}
STREAM_RESPONSE = {
    200: {
        "description": (
            "The answer. If it is streamed: the events `passages` (SearchResponse), `reading` (ReadingEvent, "
            "while a model reads them), `text` (PieceEvent, many), `citations` (AnswerResponse), or `error` (ErrorDetail)"
        ),
        "content": EVENT_STREAM,
    }
}


class EventStreamResponse(StreamingResponse):
    """Server-sent events. Their generator is closed as soon as the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        # The header makes nginx pass on each event at once.
        super().__init__(events, headers={"x-accel-buffering": "no"})

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self.body_iterator):  # pyright: ignore[reportArgumentType]
            await super().stream_response(send)


@router.post("/search", responses=responses(503))
async def search(body: schemas.SearchRequest, context: Context) -> schemas.SearchResponse:
    """The passages nearest to a question, best first."""
    context.require("read", body.knowledge_base)
    search = context.state.answerer.search
    scope = body.scope.value()
    return await search(body.question, body.knowledge_base, scope, body.limit, context.who, context.say)


@router.post("/ask", response_model=schemas.AnswerResponse, responses=STREAM_RESPONSE | responses(502, 503))
async def ask(body: schemas.AskRequest, request: Request, context: Context):
    """An answer with citations, or a refusal with the nearest passages."""
    context.require("read", body.knowledge_base)
    sampling = {"max_new_tokens", "temperature", "top_p", "seed"}
    overrides = body.model_dump(include=sampling, exclude_none=True)
    history = tuple(Message(turn.role, turn.content) for turn in body.history)
    question = UserQuestion(body.question, body.knowledge_base, history, overrides, scope=body.scope.value())
    if body.stream or "text/event-stream" in request.headers.get("accept", ""):
        return EventStreamResponse(_encode(await start(question, context), context.say))
    return await context.state.answerer.answer(question, context.who, context.say)


@router.get("/traces/{trace}")
def get_trace(trace: Id, context: Context) -> schemas.TraceResponse:
    """How an answer was made. This needs the scope admin, because it shows questions of others."""
    response = context.state.traces.get(trace)
    if response is None or not context.who.may("admin", response.knowledge_base):
        raise NotFound("there is no answer {trace}", trace=trace)
    return response


async def start(question: UserQuestion, context: RequestContext) -> AsyncGenerator[Event]:
    """The events of an answer, of which the first one exists already: an error before it is raised
    here, while the response can still have an error status."""
    events = context.state.answerer.stream(question, context.who, context.say)
    first = await anext(events)

    async def chain() -> AsyncGenerator[Event]:
        async with aclosing(events):
            yield first
            async for event in events:
                yield event

    return chain()


async def _encode(events: AsyncGenerator[Event], say: Translator) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        try:
            async for event in events:
                data = event.model_dump_json()
                yield format_sse_event(event=EVENT_NAMES[type(event)], data_str=data)
        except UserError as problem:
            data = error_body(problem, say, "broken_off").error.model_dump_json()
            yield format_sse_event(event="error", data_str=data)
