"""The parts of a running server."""

from collections.abc import Callable

from threadpoolctl import threadpool_limits

from rag.load import Encoders
from server.answering import Answerer
from server.auth import Keys
from server.database import server_database, trace_database
from server.fair_queue import FairQueue
from server.jobs import Jobs
from server.knowledge_bases import KnowledgeBases
from server.models import Models
from server.options import ServerOptions
from server.replica import Replica
from server.telemetry import Metrics, Traces
from server.uploads import PageRenderer

REMOTE_SLOTS = 16  # answers that remote models write at one time, since they batch


class ServerState:
    """One server, as one of the replicas that share a data folder.

    `ready` returns whether questions are answered and jobs are worked on."""

    def __init__(
        self, options: ServerOptions, models: Models, *, open_encoder: Encoders | None = None,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:  # fmt: skip
        """Join the data folder as a replica. `open_encoder` replaces the loader of encoders."""
        # Questions already run in parallel. One BLAS thread also makes scores reproducible to the bit:
        # another number of threads may add up in another order.
        threadpool_limits(1, user_api="blas")
        self.options, self.ready, home = options, ready, options.home
        jobs, traces = server_database(home), trace_database(home)
        keys = server_database(home)  # a second connection, so that no writer delays authentication
        self.databases = jobs, traces, keys
        self.replica = Replica(home)
        self.keys, self.jobs = Keys(keys), Jobs(jobs, self.replica.alive)
        self.traces, self.metrics = Traces(traces, options.traces), Metrics()
        self.knowledge_bases = KnowledgeBases(options, models, self.replica, open_encoder)
        self.pages, self.page_queue = PageRenderer(), FairQueue(1, options.queue)
        slots = {"reading": options.slots, "writing": 1, "asking": REMOTE_SLOTS}
        queues = {name: FairQueue(count, options.queue) for name, count in slots.items()}
        gauge = self.metrics.gauge
        gauge("rag_jobs_waiting", "Jobs that have not ended", lambda: self.jobs.waiting)
        for name, queue in queues.items():
            gauge(f"rag_{name}_waiting", "Questions that wait", lambda queue=queue: queue.waiting)
            gauge(f"rag_{name}_working", "Questions at work", lambda queue=queue: queue.running)
        self.answerer = Answerer(self.knowledge_bases, self.traces, self.metrics, *queues.values())

    def close(self) -> None:
        """End what runs in the background, and leave the data folder. The databases are closed before the
        replica, because its lock tells the others that they are still written to."""
        self.pages.close()
        self.knowledge_bases.close()
        for database in self.databases:
            database.close()
        self.replica.close()
