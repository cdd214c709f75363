"""Answers: each waits in a queue, runs in a thread, and stops when its client leaves."""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import anyio

from ingest.errors import UserError
from ingest.i18n import Translatable, Translator
from rag.endpoint.engines import EngineFailure, Unreachable
from rag.endpoint.generator import EndpointGenerator
from rag.generate import Generator
from rag.pipeline import Pipeline
from rag.prompt import INSTRUCTION
from rag.question import script_of
from rag.scope import Scope
from rag.types import Answer, Message, Retrieval, Sampling
from server import schemas
from server.auth import Principal
from server.errors import NotFound
from server.fair_queue import FairQueue, in_thread
from server.knowledge_bases import KnowledgeBases
from server.models import LocalGenerator
from server.telemetry import Kind, Metrics, Traces, record_spans, trace_record

log = logging.getLogger("rag.server")

T = TypeVar("T")
STOP_INTERVAL = 0.2  # seconds between two attempts to stop a model
READING_INTERVAL = 0.5  # seconds between two reports of how much a model has read

Event = schemas.SearchResponse | schemas.ReadingEvent | schemas.PieceEvent | schemas.AnswerResponse


@dataclass(frozen=True)
class UserQuestion:
    """A question about the documents in `scope` of the knowledge base `base`, with its conversation.

    `overrides` are fields of `Sampling` that replace the knowledge base's, and `instruction` stands before its
    own. An answer of quotes that has more than `most_tokens` is refused; 0: none is."""

    question: str
    base: str
    history: tuple[Message, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    instruction: str = ""
    most_tokens: int = 0
    scope: Scope | None = None

    def sampling(self, pipeline: Pipeline) -> Sampling:
        return replace(pipeline.config.generate.sampling, **self.overrides)

    def instructed(self, pipeline: Pipeline) -> Pipeline:
        """The pipeline with the instruction. Raises `UserError` if nothing there can follow the request."""
        sampling, prompt = self.sampling(pipeline), pipeline.config.prompt
        form = sampling.response_format
        fields = {"stop": sampling.stop, "response_format": form, "system": self.instruction}
        if pipeline.generator is None and (needs := [name for name, value in fields.items() if value]):
            raise UserError(
                "{needs:and} need a language model, but {base} answers with sentences of its documents; "
                "leave them out",
                needs=needs, base=self.base,
            )  # fmt: skip
        if form and not isinstance(pipeline.generator, EndpointGenerator):
            raise UserError("response_format is for models that are served elsewhere; leave it out")
        if not self.instruction:
            return pipeline
        own = prompt.instruction or INSTRUCTION[script_of(self.question)]
        prompt = replace(prompt, instruction=f"{self.instruction}\n\n{own}")
        return replace(pipeline, config=replace(pipeline.config, prompt=prompt))


@dataclass(frozen=True)
class Answerer:
    """Searches and answers for the routes and the MCP tools.

    `search_queue` is for searches and extracted answers, `local_queue` for the language model in
    memory, `remote_queue` for models on other servers.
    """

    knowledge_bases: KnowledgeBases
    traces: Traces
    metrics: Metrics
    search_queue: FairQueue
    local_queue: FairQueue
    remote_queue: FairQueue

    async def search(
        self, question: str, base: str, scope: Scope | None, limit: int, who: Principal, say: Translator
    ) -> schemas.SearchResponse:
        """The best passages, even if they do not answer the question."""

        def work() -> schemas.SearchResponse:
            with self.knowledge_bases.open(base) as pipeline:
                trace, seconds = secrets.token_hex(12), dict[str, float]()
                asked = pipeline.scoped(scope).observed(seconds.__setitem__)
                found = asked.retrieve(question, limit=limit)
                record = trace_record(found, seconds)
                self._record("search", trace, base, pipeline, found.sequence, record)
                return schemas.SearchResponse.of(found, say, trace=trace, base=base)

        async with self.search_queue.slot(who.id):
            return await in_thread(work)

    async def stream(self, question: UserQuestion, who: Principal, say: Translator) -> AsyncGenerator[Event]:
        """The passages, the text piece by piece, the answer. Closing it frees the slot."""
        with ExitStack() as stack:
            opening = self.knowledge_bases.open(question.base)
            pipeline = await in_thread(lambda: stack.enter_context(opening))
            queue, generator = self._writer(pipeline.generator)
            async with queue.slot(who.id):
                trace, seconds = secrets.token_hex(12), dict[str, float]()
                pipeline = await in_thread(partial(pipeline.scoped, question.scope))
                pipeline = replace(pipeline, observe=seconds.__setitem__, say=say, generator=generator)
                async with aclosing(_pieces(question.instructed(pipeline), question)) as pieces:
                    found = await anext(pieces)
                    assert isinstance(found, Retrieval)
                    yield schemas.SearchResponse.of(found, say, trace=trace, base=question.base)
                    async for piece in pieces:
                        if isinstance(piece, schemas.ReadingEvent):
                            yield piece
                        elif isinstance(piece, Answer):
                            finish = partial(self._finish, question, pipeline, found, piece)
                            yield await in_thread(partial(finish, trace, seconds))
                        else:
                            if not generator and question.most_tokens:
                                _check_length(pipeline.embedder.count(str(piece)), question.most_tokens)
                            yield schemas.PieceEvent(text=str(piece))

    async def answer(self, question: UserQuestion, who: Principal, say: Translator) -> schemas.AnswerResponse:
        """The last event of `stream`."""
        async with aclosing(self.stream(question, who, say)) as events:
            last = [event async for event in events][-1]
        assert isinstance(last, schemas.AnswerResponse)
        return last

    def _writer(self, generator: Generator | None) -> tuple[FairQueue, Generator | None]:
        """The queue for an answer, and the generator that writes it."""
        if isinstance(generator, EndpointGenerator):
            return (self.remote_queue, generator.copy())  # so that `stop` stops only this answer
        return (self.local_queue if generator else self.search_queue), generator

    def _finish(
        self, question: UserQuestion, pipeline: Pipeline, found: Retrieval, answer: Answer,
        trace: str, seconds: dict[str, float],
    ) -> schemas.AnswerResponse:  # fmt: skip
        """Record an answer, and give it the form in which clients get it."""
        self.metrics.answers.labels("refused" if answer.refused else "answered").inc()
        tokens = usage(pipeline, answer)
        if answer.prompt:
            self.metrics.tokens.labels("read").inc(tokens.read)
            self.metrics.tokens.labels("written").inc(tokens.written)
        record = trace_record(found, seconds, question.history, answer)
        self._record("ask", trace, question.base, pipeline, found.sequence, record)
        return schemas.AnswerResponse.of(answer, found, tokens, pipeline.say, trace=trace, base=question.base)

    def _record(
        self, kind: Kind, trace: str, base: str, pipeline: Pipeline, sequence: int,
        record: dict[str, Any],
    ) -> None:  # fmt: skip
        """Record metrics, spans and the trace. The trace is deleted again if a document that it
        quotes was deleted in the meantime."""
        for stage, seconds in record["seconds"].items():
            self.metrics.stage.labels(stage).observe(seconds)
        record_spans(kind, record["seconds"], {"rag.trace": trace, "rag.base": base})
        self.traces.add(kind, trace=trace, base=base, sequence=sequence, record=record)
        try:
            with self.knowledge_bases.open(base) as now:
                if now.store is pipeline.store and now.store.sequence == sequence:
                    return
                documents = {hit["document"] for hit in record["hits"]}
                missing = [each for each in documents if now.store.by_id(each) is None]
        except NotFound:
            self.traces.delete_knowledge_base(base)
        else:
            self.traces.delete_documents(base, missing)


def usage(pipeline: Pipeline, answer: Answer) -> schemas.UsageResponse:
    """Token counts, of the language model if it wrote the answer, otherwise of the encoder."""
    generator, cut = pipeline.generator, answer.finish_reason == "length"
    if isinstance(generator, EndpointGenerator) and (tokens := generator.usage):
        return schemas.UsageResponse(read=tokens.read, written=tokens.written, cut=cut)
    if answer.prompt and generator:
        count, prompt = generator.count, answer.prompt.tokens
        written = count([Message("user", f"-{answer.text}")]) - count([Message("user", "-")])
        return schemas.UsageResponse(read=prompt, written=written, cut=cut)
    read, written = pipeline.embedder.count_many([answer.question, answer.text])
    return schemas.UsageResponse(read=read, written=written, cut=cut)


def _check_length(written: int, limit: int) -> None:
    if written > limit:
        raise UserError(
            "the answer has {written} tokens, more than {limit}; it quotes documents and is not cut, so "
            "raise max_tokens or leave it out",
            written=written, limit=limit,
        )  # fmt: skip


async def _pieces(
    pipeline: Pipeline, question: UserQuestion
) -> AsyncGenerator[Retrieval | schemas.ReadingEvent | str | Answer]:
    """`Pipeline.stream`, each step in a thread, and how far a local model has read. Closing it stops the
    generator."""
    pieces = pipeline.stream(question.question, question.history, question.sampling(pipeline))
    models = pipeline.generator.models if isinstance(pipeline.generator, LocalGenerator) else None
    try:
        while True:
            async with _step(lambda: next(pieces, None), pipeline) as step:
                while not (await asyncio.wait([step], timeout=READING_INTERVAL))[0]:
                    if models and models.read < 1:
                        yield schemas.ReadingEvent(share=models.read)
                if (piece := step.result()) is None:
                    return
            yield piece
    except (Unreachable, EngineFailure) as problem:
        if isinstance(pipeline.generator, EndpointGenerator):
            # Clients do not see where a model is served; only the log names the address.
            address = pipeline.generator.address.base
            fields = {"problem": type(problem).__name__, "at": address}
            log.warning("model", extra={"fields": fields})
            model = Translatable("the language model")
            problem.replace_fields(lambda value: model if address in str(value) else value)
        raise
    finally:
        pieces.close()


@asynccontextmanager
async def _step(work: Callable[[], T], pipeline: Pipeline) -> AsyncGenerator[asyncio.Future[T]]:
    """`work`, which runs in a thread. If the block ends earlier because the client leaves, stop the model
    repeatedly until `work` ends, because the model may start only after the first attempt."""
    task = asyncio.ensure_future(in_thread(work))
    try:
        yield task
    finally:
        with anyio.CancelScope(shield=True):
            while not task.done():
                if pipeline.generator:
                    pipeline.generator.stop()
                await asyncio.wait([task], timeout=STOP_INTERVAL)
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it
