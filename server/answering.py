"""Questions at work: each waits for its turn, runs in a thread, and stops when its client leaves."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from typing import TypedDict, TypeVar

import anyio
from anyio.to_thread import run_sync

from rag.language import Speaker
from rag.pipeline import Pipeline
from rag.types import Answer, Message, Retrieved, Sampling
from server import schemas, shapes
from server.bases import Bases
from server.keys import Principal
from server.metrics import Metrics
from server.spans import Spans
from server.traces import Traces, Watch, identity, told
from server.turns import Turns

T = TypeVar("T")
NUDGE = 0.2  # seconds between two tries to stop a model

Event = schemas.Found | schemas.Piece | schemas.Answer


class Named(TypedDict):
    """What an answer is called, and what it was made from."""

    trace: str
    base: str
    sequence: int


@dataclass(frozen=True)
class Asked:
    """A question and what belongs to it."""

    question: str
    base: str
    history: tuple[Message, ...] = ()
    sampling: Sampling | None = None


@dataclass(frozen=True)
class Answering:
    """What the routes, the OpenAI routes and the MCP tools ask and search with.

    `reading` are the turns of those who search and quote, `writing` that of the language model.
    """

    bases: Bases
    traces: Traces
    metrics: Metrics
    spans: Spans
    reading: Turns
    writing: Turns

    async def search(self, question: str, base: str, limit: int, who: Principal) -> schemas.Found:
        """The best passages, whether or not they answer."""

        def work() -> schemas.Found:
            with self.bases.reading(base) as pipeline:
                watch, named = Watch(), _named(base, pipeline)
                found = pipeline.watched(watch).retrieve(question, limit=limit)
                self._note("search", named, watch)
                self.traces.keep("search", **named, record=told(watch, (), None))
                return shapes.found(found, **named)

        async with self.reading.turn(who.id):
            return await run_sync(work)

    async def answer(self, asked: Asked, who: Principal, say: Speaker) -> AsyncGenerator[Event]:
        """What was found, the text piece by piece, the answer. Closing it frees the turn."""
        with ExitStack() as stack:
            pipeline = await run_sync(stack.enter_context, self.bases.reading(asked.base))
            turns = self.writing if pipeline.generator else self.reading
            async with turns.turn(who.id):
                watch, named = Watch(), _named(asked.base, pipeline)
                pipeline = replace(pipeline.watched(watch), say=say)
                async with aclosing(_pieces(pipeline, asked)) as pieces:
                    async for piece in pieces:
                        match piece:
                            case Retrieved():
                                yield shapes.found(piece, **named)
                            case Answer():
                                await run_sync(self._done, named, watch, asked, pipeline, piece)
                                yield shapes.answer(piece, say, **named)
                            case text:
                                yield schemas.Piece(text=text)

    async def whole(self, asked: Asked, who: Principal, say: Speaker) -> schemas.Answer:
        """The answer alone."""
        async with aclosing(self.answer(asked, who, say)) as events:
            last = [event async for event in events][-1]
        assert isinstance(last, schemas.Answer)
        return last

    def _done(
        self, named: Named, watch: Watch, asked: Asked, pipeline: Pipeline, answer: Answer
    ) -> None:
        self._note("ask", named, watch)
        self.metrics.answers.labels("refused" if answer.refused else "answered").inc()
        if watch.prompt and pipeline.generator:
            self.metrics.tokens.labels("read").inc(watch.prompt.tokens)
            self.metrics.tokens.labels("written").inc(tokens(pipeline, answer.text))
        self.traces.keep("ask", **named, record=told(watch, asked.history, answer))

    def _note(self, kind: str, named: Named, watch: Watch) -> None:
        for stage, seconds in watch.seconds.items():
            self.metrics.stage.labels(stage).observe(seconds)
        self.spans.tell(
            kind, watch.seconds, {"rag.trace": named["trace"], "rag.base": named["base"]}
        )


def tokens(pipeline: Pipeline, text: str) -> int:
    """Tokens of a text: the language model's, or the encoder's where there is none."""
    if not pipeline.generator:
        return pipeline.embedder.count(text)
    count = pipeline.generator.count
    return count([Message("user", f"-{text}")]) - count([Message("user", "-")])


def _named(base: str, pipeline: Pipeline) -> Named:
    return {"trace": identity(), "base": base, "sequence": pipeline.store.sequence}


async def _pieces(pipeline: Pipeline, asked: Asked) -> AsyncGenerator[Retrieved | str | Answer]:
    """`Pipeline.stream`, a step of which runs in a thread. Closing it ends the work."""
    pieces = pipeline.stream(asked.question, asked.history, asked.sampling)
    try:
        while (piece := await _step(lambda: next(pieces, None), pipeline)) is not None:
            yield piece
    finally:
        pieces.close()


async def _step(work: Callable[[], T], pipeline: Pipeline) -> T:
    """`work` in a thread. Where the client leaves meanwhile, the model is told to stop until it has,
    for it may be about to begin."""
    running = asyncio.ensure_future(run_sync(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            while not running.done():
                if pipeline.generator:
                    pipeline.generator.stop()
                await asyncio.wait([running], timeout=NUDGE)
        if not running.cancelled():
            running.exception()  # of a question that nobody waits for any more
        raise
