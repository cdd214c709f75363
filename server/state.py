"""The parts of a running server; routes get them through `Annotated` types."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from threadpoolctl import threadpool_limits

from ingest.i18n import Translator
from rag.load import Encoders
from server.answering import Answerer
from server.auth import Keys, Principal
from server.database import Database, server_database, trace_database
from server.errors import missing_scope, unknown_base
from server.fair_queue import FairQueue
from server.jobs import Jobs
from server.knowledge_bases import KnowledgeBases
from server.membership import Membership, Replica
from server.models import Models
from server.options import ServerOptions
from server.schemas import Scope
from server.telemetry import Metrics, SpanRecorder
from server.traces import Traces
from server.uploads import PageRenderer

REMOTE_SLOTS = 16  # answers that remote models write at one time, since they batch


def limit_blas_threads() -> None:
    """Use one BLAS thread in this process, because questions already run in parallel. It also makes
    scores reproducible to the bit: another number of threads may add up in another order."""
    threadpool_limits(1, user_api="blas")


@dataclass(frozen=True)
class ServerState:
    """`worker_alive` returns whether jobs are being worked on."""

    options: ServerOptions
    replica: Replica
    databases: tuple[Database, ...]
    keys: Keys
    jobs: Jobs
    knowledge_bases: KnowledgeBases
    traces: Traces
    metrics: Metrics
    pages: PageRenderer
    page_queue: FairQueue
    answerer: Answerer
    worker_alive: Callable[[], bool]

    @classmethod
    def create(
        cls,
        options: ServerOptions,
        models: Models,
        *,
        open_encoder: Encoders | None = None,
        spans: SpanRecorder | None = None,
        worker_alive: Callable[[], bool] = lambda: True,
    ) -> "ServerState":
        """Join the data folder as a replica. `open_encoder` replaces the loader of encoders."""
        limit_blas_threads()
        jobs_database, traces_database = server_database(options.home), trace_database(options.home)
        keys_database = server_database(options.home)  # so that no writer delays authentication
        membership = Membership(options.home)
        replica, metrics = membership.join(), Metrics()
        jobs = Jobs(jobs_database, membership.alive)
        knowledge_bases = KnowledgeBases(options, models, membership, replica.folder, open_encoder)
        traces = Traces(traces_database, options.traces)
        slots = {"reading": options.slots, "writing": 1, "asking": REMOTE_SLOTS}
        queues = {name: FairQueue(count, options.queue) for name, count in slots.items()}
        metrics.gauge("rag_jobs_waiting", "Jobs that have not ended", lambda: jobs.waiting)
        for name, queue in queues.items():
            metrics.gauge(
                f"rag_{name}_waiting", "Questions that wait", lambda queue=queue: queue.waiting
            )
            metrics.gauge(
                f"rag_{name}_working", "Questions at work", lambda queue=queue: queue.running
            )
        answerer = Answerer(
            knowledge_bases, traces, metrics, spans or SpanRecorder(), *queues.values()
        )
        return cls(
            options, replica, (jobs_database, traces_database, keys_database), Keys(keys_database),
            jobs, knowledge_bases, traces, metrics, PageRenderer(), FairQueue(1, options.queue),
            answerer, worker_alive,
        )  # fmt: skip

    def close(self) -> None:
        self.answerer.spans.close()
        self.pages.close()
        self.knowledge_bases.close()
        for database in self.databases:
            database.close()
        self.replica.close()


@dataclass(frozen=True)
class RequestContext:
    """The server, the caller, and the caller's language."""

    state: ServerState
    who: Principal
    say: Translator

    def require(self, scope: Scope, base: str | None = None) -> None:
        """Raises `AccessDenied` unless the key has `scope`, and `NotFound` if the key may not even
        read `base`, so that it can't learn of it."""
        if base is not None and not self.who.may("read", base):
            raise unknown_base(base)
        if not self.who.may(scope, base):
            raise missing_scope(f"{scope}:{base}" if base else scope)


def context_of(request: Request) -> RequestContext:
    return RequestContext(request.app.state.server, request.state.who, request.state.say)


Context = Annotated[RequestContext, Depends(context_of)]
