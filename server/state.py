"""All that a running server holds, put together once; routes get at it through `Annotated` types."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from threadpoolctl import threadpool_limits

from ingest.i18n import Translatable, Translator
from rag.load import Encoders
from server.answering import Answering
from server.auth import Keys, Principal
from server.database import Database, lasting, passing
from server.errors import no_base, speaker
from server.fair_queue import Turns
from server.jobs import Jobs
from server.knowledge_bases import Bases
from server.membership import Member, Members
from server.middleware import Denied
from server.models import Models
from server.options import ServerOptions
from server.schemas import Scope
from server.telemetry import Metrics, Spans
from server.traces import Traces
from server.uploads import Pages


def on_one_thread() -> None:
    """For this process, from now on. Questions share the cores out by themselves, where teams of
    threads for each product would only wait for one another; and whoever retrieves again gets the
    same scores to the bit, which another number of threads might sum up differently."""
    threadpool_limits(1, user_api="blas")


ELSEWHERE = 16  # answers that models served elsewhere write at one time: they batch


@dataclass(frozen=True)
class State:
    """The parts of one server. `worker_alive` says whether somebody works on jobs."""

    options: ServerOptions
    member: Member
    databases: tuple[Database, ...]
    keys: Keys
    jobs: Jobs
    bases: Bases
    traces: Traces
    metrics: Metrics
    pages: Pages
    drawing: Turns
    answering: Answering
    worker_alive: Callable[[], bool]

    @classmethod
    def made(
        cls,
        options: ServerOptions,
        models: Models,
        *,
        opened: Encoders | None = None,
        spans: Spans | None = None,
        worker_alive: Callable[[], bool] = lambda: True,
    ) -> "State":
        """A server's parts; `opened` brings encoders, where not in the usual way."""
        on_one_thread()
        last, passed = lasting(options.home), passing(options.home)
        doors = lasting(options.home)  # of its own, so that the door waits for no one who writes
        members = Members(options.home)
        member, metrics, jobs = members.join(), Metrics(), Jobs(last, members.alive)
        bases = Bases(options, models, members, member.folder, opened)
        traces = Traces(passed, options.traces)
        reading, writing, asking = (
            Turns(slots, options.queue) for slots in (options.slots, 1, ELSEWHERE)
        )
        metrics.gauge("rag_jobs_waiting", "Jobs that have not ended", lambda: jobs.waiting)
        for name, turns in (("reading", reading), ("writing", writing), ("asking", asking)):
            metrics.gauge(
                f"rag_{name}_waiting", "Questions that wait", lambda turns=turns: turns.waiting
            )
            metrics.gauge(
                f"rag_{name}_working", "Questions at work", lambda turns=turns: turns.working
            )
        answering = Answering(bases, traces, metrics, spans or Spans(), reading, writing, asking)
        return cls(
            options, member, (last, passed, doors), Keys(doors), jobs, bases, traces, metrics, Pages(),
            Turns(1, options.queue), answering, worker_alive,
        )  # fmt: skip

    def close(self) -> None:
        self.answering.spans.close()
        self.pages.close()
        self.bases.close()
        for database in self.databases:
            database.close()
        self.member.close()


@dataclass(frozen=True)
class Asking:
    """Who asks, in which language."""

    who: Principal
    say: Translator

    def must(self, scope: Scope, base: str | None = None) -> None:
        """Raises `Denied` unless the key has `scope`; what it may not even read, it is told is not
        there."""
        if base is not None and not self.who.may("read", base):
            raise no_base(base)
        if not self.who.may(scope, base):
            for_what = f"{scope}:{base}" if base else scope
            raise Denied(
                403, "insufficient_scope", Translatable("this needs a key with the scope {for_what}", for_what=for_what),
            )  # fmt: skip


def state_of(request: Request) -> State:
    return request.app.state.server


def asking(request: Request) -> Asking:
    return Asking(request.state.who, speaker(request.headers))


Server = Annotated[State, Depends(state_of)]
By = Annotated[Asking, Depends(asking)]
