"""/search and /ask."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from starlette.types import Send

from ingest.errors import UserError
from rag.types import Message, Sampling
from server import schemas
from server.answering import Asked, Event
from server.error_responses import EVENT_STREAM, responses
from server.errors import failure
from server.fair_queue import Full, in_thread
from server.state import By, Server

router = APIRouter(tags=["questions"])

EVENTS = {schemas.Found: "passages", schemas.Piece: "text", schemas.Answer: "citations"}
STREAMED = {
    200: {
        "description": (
            "The answer; where it is streamed, the events `passages` (Found), `text` (Piece, many), "
            "`citations` (Answer), or `error` (Problem)"
        ),
        "content": EVENT_STREAM,
    }
}


class Events(StreamingResponse):
    """Server-sent events, whose source is closed at the very moment that the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        # The header has a proxy pass each event on at once.
        super().__init__(events, headers={"x-accel-buffering": "no"})

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self.body_iterator):  # pyright: ignore[reportArgumentType]
            await super().stream_response(send)


@router.post("/search", responses=responses(503))
async def search(body: schemas.Search, server: Server, by: By) -> schemas.Found:
    """The passages nearest to a question, best first."""
    by.must("read", body.knowledge_base)
    return await server.answering.search(body.question, body.knowledge_base, body.limit, by.who)


@router.post("/ask", response_model=schemas.Answer, responses=STREAMED | responses(502, 503))
async def ask(body: schemas.Ask, request: Request, server: Server, by: By):
    """An answer with citations, or a refusal that says what was looked at."""
    by.must("read", body.knowledge_base)
    asked = Asked(
        body.question,
        body.knowledge_base,
        tuple(Message(turn.role, turn.content) for turn in body.history),
        await in_thread(lambda: sampling(server, body)),
    )
    if body.stream or "text/event-stream" in request.headers.get("accept", ""):
        first = server.answering.answer(asked, by.who, by.say)
        return Events(_sse(await begun(first), by))
    return await server.answering.whole(asked, by.who, by.say)


def sampling(server: Server, body: schemas.Ask) -> Sampling | None:
    """What the request says, over the knowledge base's settings; None where it says nothing."""
    said = {
        name: value
        for name in ("max_new_tokens", "temperature", "top_p", "seed")
        if (value := getattr(body, name)) is not None
    }
    return server.bases.sampling(body.knowledge_base, **said) if said else None


async def begun(events: AsyncGenerator[Event]) -> AsyncGenerator[Event]:
    """The same events; what goes wrong before the first is raised here, while the answer can still
    have a status."""
    try:
        first = await anext(events)
    except BaseException:
        await events.aclose()
        raise

    async def all_of_them() -> AsyncGenerator[Event]:
        async with aclosing(events):
            yield first
            async for event in events:
                yield event

    return all_of_them()


async def _sse(events: AsyncGenerator[Event], by: By) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        try:
            async for event in events:
                data = event.model_dump_json()
                yield format_sse_event(event=EVENTS[type(event)], data_str=data)
        except (UserError, Full) as problem:
            data = broken_off(problem, by).error.model_dump_json()
            yield format_sse_event(event="error", data_str=data)


def broken_off(problem: UserError | Full, by: By) -> schemas.Failure:
    said = problem if isinstance(problem, UserError) else UserError("{problem}", problem=problem)
    return failure(said, by.say, kind="invalid_request_error", code="broken_off")
