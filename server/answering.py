"""Questions at work: each waits for its turn, runs in a thread, and stops when its client leaves."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypedDict, TypeVar

import anyio

from ingest.i18n import Translatable, Translator
from rag.endpoint.engines import Failed, Unreachable
from rag.endpoint.generator import EndpointGenerator
from rag.generate import Generator
from rag.pipeline import Pipeline
from rag.types import Answer, Message, Retrieved, Sampling
from server import schemas, serializers
from server.auth import Principal
from server.errors import Unknown
from server.fair_queue import Turns, in_thread
from server.knowledge_bases import Bases
from server.telemetry import Metrics, Spans
from server.traces import Timings, Traces, identity, trace_record

log = logging.getLogger("rag.server")

T = TypeVar("T")
NUDGE = 0.2  # seconds between two tries to stop a model

Record = dict[str, Any]
Event = schemas.Found | schemas.Piece | schemas.Answer


class Named(TypedDict):
    """What an answer is called, and the change of the knowledge base that it was made from."""

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

    `reading` are the turns of those who search and quote, `writing` that of the language model here,
    `asking` those of models that are served elsewhere.
    """

    bases: Bases
    traces: Traces
    metrics: Metrics
    spans: Spans
    reading: Turns
    writing: Turns
    asking: Turns

    async def search(self, question: str, base: str, limit: int, who: Principal) -> schemas.Found:
        """The best passages, whether or not they answer."""

        def work() -> schemas.Found:
            with self.bases.reading(base) as pipeline:
                timings = Timings()
                found = pipeline.observed(timings).retrieve(question, limit=limit)
                named = _named(base, identity(), found)
                self._note("search", named, timings)
                self._keep("search", named, pipeline, trace_record(found, timings))
                return serializers.found(found, **named)

        async with self.reading.turn(who.id):
            return await in_thread(work)

    async def answer(self, asked: Asked, who: Principal, say: Translator) -> AsyncGenerator[Event]:
        """What was found, the text piece by piece, the answer. Closing it frees the turn."""
        with ExitStack() as stack:
            reading = self.bases.reading(asked.base)
            pipeline = await in_thread(lambda: stack.enter_context(reading))
            turns, generator = self._writer(pipeline.generator)
            async with turns.turn(who.id):
                timings, trace = Timings(), identity()
                pipeline = replace(pipeline, observe=timings, say=say, generator=generator)
                async with aclosing(_pieces(pipeline, asked)) as pieces:
                    found = await anext(pieces)
                    assert isinstance(found, Retrieved)
                    named = _named(asked.base, trace, found)
                    yield serializers.found(found, **named)
                    async for piece in pieces:
                        if isinstance(piece, Answer):
                            done = partial(
                                self._done, named, timings, asked, pipeline, found, piece
                            )
                            usage = await in_thread(done)
                            yield serializers.answer(piece, usage, say, **named)
                        else:
                            yield schemas.Piece(text=str(piece))

    def _writer(self, generator: Generator | None) -> tuple[Turns, Generator | None]:
        """Whose turn an answer needs, and what writes it."""
        if isinstance(generator, EndpointGenerator):
            return self.asking, generator.apart()  # so that one can be stopped and no other
        return (self.writing if generator else self.reading), generator

    async def whole(self, asked: Asked, who: Principal, say: Translator) -> schemas.Answer:
        """The answer alone."""
        async with aclosing(self.answer(asked, who, say)) as events:
            last = [event async for event in events][-1]
        assert isinstance(last, schemas.Answer)
        return last

    def _done(
        self,
        named: Named,
        timings: Timings,
        asked: Asked,
        pipeline: Pipeline,
        found: Retrieved,
        answer: Answer,
    ) -> schemas.Usage:
        self._note("ask", named, timings)
        self.metrics.answers.labels("refused" if answer.refused else "answered").inc()
        used = usage(asked, pipeline, answer)
        if answer.prompt:
            self.metrics.tokens.labels("read").inc(used.read)
            self.metrics.tokens.labels("written").inc(used.written)
        record = trace_record(found, timings, asked.history, answer)
        self._keep("ask", named, pipeline, record)
        return used

    def _keep(
        self, kind: Literal["ask", "search"], named: Named, pipeline: Pipeline, record: Record
    ) -> None:
        """Keep a trace, unless a document that it quotes has been deleted meanwhile."""
        self.traces.keep(kind, **named, record=record)
        base = named["base"]
        try:
            with self.bases.reading(base) as now:
                if now.store is pipeline.store and now.store.sequence == named["sequence"]:
                    return
                quoted = {hit["document"] for hit in record["hits"]}
                gone = [document for document in quoted if now.store.by_id(document) is None]
        except Unknown:
            self.traces.forget_base(base)
        else:
            for document in gone:
                self.traces.forget_document(base, document)

    def _note(self, kind: str, named: Named, timings: Timings) -> None:
        for stage, seconds in timings.seconds.items():
            self.metrics.stage.labels(stage).observe(seconds)
        self.spans.tell(
            kind, timings.seconds, {"rag.trace": named["trace"], "rag.base": named["base"]}
        )


def usage(asked: Asked, pipeline: Pipeline, answer: Answer) -> schemas.Usage:
    """What an answer took: of the language model if it was asked, else of the encoder."""
    generator = pipeline.generator
    if isinstance(generator, EndpointGenerator) and (took := generator.usage):
        return schemas.Usage(read=took.read, written=took.written, cut=took.cut)
    if answer.prompt and generator:
        count = generator.count
        bare = count([Message("user", "-")])
        written = count([Message("user", f"-{answer.text}")]) - bare
        most = (asked.sampling or pipeline.config.generate.sampling).max_new_tokens
        return schemas.Usage(read=answer.prompt.tokens, written=written, cut=written >= most)
    read, written = pipeline.embedder.count_many([answer.question, answer.text])
    return schemas.Usage(read=read, written=written, cut=False)


def _named(base: str, trace: str, found: Retrieved) -> Named:
    return {"trace": trace, "base": base, "sequence": found.sequence}


async def _pieces(pipeline: Pipeline, asked: Asked) -> AsyncGenerator[Retrieved | str | Answer]:
    """`Pipeline.stream`, a step of which runs in a thread. Closing it ends the work."""
    pieces = pipeline.stream(asked.question, asked.history, asked.sampling)
    try:
        while (piece := await _step(lambda: next(pieces, None), pipeline)) is not None:
            yield piece
    except (Unreachable, Failed) as problem:
        _unnamed(problem, pipeline.generator)
        raise
    finally:
        pieces.close()


def _unnamed(problem: Unreachable | Failed, generator: Generator | None) -> None:
    """Where a model is served is the operator's to know: it stands in the log alone."""
    if isinstance(generator, EndpointGenerator):
        base = generator.address.base
        fields = {"problem": type(problem).__name__, "at": base}
        log.warning("model", extra={"fields": fields})
        model = Translatable("the language model")
        problem.replace_fields(lambda value: model if str(value) == base else value)


async def _step(work: Callable[[], T], pipeline: Pipeline) -> T:
    """`work` in a thread. Where the client leaves meanwhile, the model is told to stop until it has,
    for it may be about to begin."""
    running = asyncio.ensure_future(in_thread(work))
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
