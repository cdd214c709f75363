"""The process that ingests documents, one job after the other and at low priority.

`python -m server.worker DATA CACHE [--ocr]` ends when its standard input is closed.
"""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from sqlite3 import Row
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from types import FrameType

from ingest.errors import Away, Busy, UserError
from ingest.pipeline import Ingestion
from ingest.sandbox import Sandbox, die_with_parent
from rag.config import read_config
from rag.load import Encoders, encoders, open_writer, score_norm_of
from server.database import server_database, trace_database
from server.errors import hide_locations
from server.jobs import Jobs
from server.knowledge_bases import folder_of
from server.options import ServerOptions
from server.replica import Replica
from server.telemetry import Traces, log_json
from server.uploads import Upload, Uploads

CLAIM_INTERVAL = 0.2  # seconds between two attempts to claim a job
CHECK_INTERVAL = 0.5  # seconds between two checks whether to continue
CLEANUP_INTERVAL = 10.0  # seconds between two cleanups after dead replicas
BUSY_PAUSE = 3.0  # seconds until a knowledge base that is locked or out of reach is tried again

log = logging.getLogger("rag.server")


class JobInterrupted(BaseException):
    """The present job must end: it was cancelled or taken away, or the worker stops."""


class Worker:
    """Runs jobs until `stop` is set. An interrupted job keeps what it has committed."""

    def __init__(self, options: ServerOptions, *, open_encoder: Encoders | None = None) -> None:
        self.options = options
        self._databases = server_database(options.home), trace_database(options.home)
        self.replica = Replica(options.home)
        self.name = self.replica.name
        self.jobs = Jobs(self._databases[0], self.replica.alive)
        self.traces = Traces(self._databases[1])
        self.stop = threading.Event()
        self._open_encoder = open_encoder or encoders(options.cache)

    def close(self) -> None:
        for database in self._databases:
            database.close()
        self.replica.close()

    def run(self) -> None:
        last_cleanup = -CLEANUP_INTERVAL
        while not self.stop.is_set():
            if monotonic() - last_cleanup > CLEANUP_INTERVAL:
                self.clean_up()
                last_cleanup = monotonic()
            job = self.jobs.claim(self.name)
            if job is None:
                sleep(CLAIM_INTERVAL)
            else:
                self.work(job)

    def clean_up(self) -> None:
        """End the uploads to dead servers and delete the files of dead replicas."""
        self.jobs.cancel_abandoned_uploads()
        with suppress(Busy):
            self.replica.remove_dead()

    def work(self, job: Row) -> None:
        """Run one job and record how it ended."""
        try:
            with self._interruptible(job["id"]):
                self._purge(job) if job["kind"] == "purge" else self._ingest(job)
                self._delete_unused(job)
            self.jobs.finish(job["id"], self.name, "done")
        except JobInterrupted:
            row = self.jobs.get(job["id"])
            if row and row["cancel"]:
                self.jobs.finish(job["id"], self.name, "cancelled")
            else:
                self.jobs.requeue(job["id"], self.name)
        except (Busy, Away):  # another process writes it, or its Milvus server does not answer
            self.jobs.requeue(job["id"], self.name, pause=BUSY_PAUSE)
        except UserError as problem:
            hide_locations(problem, self.options.data)
            self.jobs.finish(job["id"], self.name, "failed", problem)

    @contextmanager
    def _interruptible(self, job: str) -> Iterator[None]:
        """Raise `JobInterrupted` in the block, which the main thread runs, when the job must end."""

        def check(number: int, frame: FrameType | None) -> None:
            if self.stop.is_set() or not self.jobs.should_continue(job, self.name):
                raise JobInterrupted

        signal.signal(signal.SIGALRM, check)
        signal.setitimer(signal.ITIMER_REAL, CHECK_INTERVAL, CHECK_INTERVAL)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _ingest(self, job: Row) -> None:
        path = folder_of(self.options.data, job["base"])
        writer = open_writer(
            read_config(path), embedder=None, cache=self.options.cache, open_encoder=self._open_encoder
        )
        with (
            writer.store as store,
            Sandbox(ocr=self.options.ocr) as sandbox,
            TemporaryDirectory(prefix="rag-upload-") as links,
        ):
            rows = [row for row in self.jobs.files(job["id"]) if row["state"] == "waiting"]
            uploads = [Upload(row["name"], row["digest"], row["size"]) for row in rows]
            files = [Uploads(path).as_file(upload, Path(links)) for upload in uploads]
            add_chunks = partial(self.jobs.add_chunks, job["id"])
            again = job["kind"] == "reread"
            work = Ingestion(store, writer.embedder, writer.chunker, sandbox, add_chunks, again)
            for row, outcome in zip(rows, work.run(files), strict=True):
                if outcome.problem:
                    hide_locations(outcome.problem, self.options.data)
                self.jobs.record_outcome(job["id"], row["position"], outcome)
                score_norm_of(store, writer.embedder)  # here, so that no question waits for it

    def _purge(self, job: Row) -> None:
        with read_config(folder_of(self.options.data, job["base"])).open_store() as store:
            store.rebuild()

    def _delete_unused(self, job: Row) -> None:
        """Delete uploads that no document uses (refused, replaced or cancelled files), and traces
        that quote deleted documents. This belongs to the job, which excludes other writers."""
        base: str = job["base"]
        path = folder_of(self.options.data, base)
        with read_config(path).open_store() as store:
            documents = list(store.documents())
        digests, uploads = {document.digest for document in documents}, Uploads(path)
        self.traces.delete_except(base, {document.id for document in documents})
        for digest in uploads.unused(digests):
            self.jobs.delete_unless_needed(base, digest, uploads.delete, ignore=job["id"])


def lower_priority() -> None:
    """Run only when nobody else needs a core, because questions come first. Children inherit it."""
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.nice(19)


def main() -> None:
    """Entry point of the process."""
    die_with_parent()
    lower_priority()
    log_json(logging.WARNING)
    sys.excepthook = lambda kind, error, where: logging.critical("bug", exc_info=error)
    data, cache, *ocr = sys.argv[1:]
    worker = Worker(ServerOptions(data=Path(data), cache=Path(cache), ocr=bool(ocr)))
    signal.signal(signal.SIGTERM, lambda *_: worker.stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, which ends us
    threading.Thread(target=lambda: (sys.stdin.read(), worker.stop.set()), daemon=True).start()
    tempfile.tempdir = str(worker.replica.folder)  # deleted even if this process is killed
    with closing(worker):
        worker.run()


STOP_TIMEOUT = 10.0  # seconds that a worker may take to requeue its job
SHORT_LIFE = 5.0  # a worker that lives for fewer seconds is not restarted at once


class WorkerSupervisor:
    """Keeps one worker running during the block. The worker dies with this process."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="worker supervisor", daemon=True)

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def __enter__(self) -> "WorkerSupervisor":
        self.process = self._start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()  # its job is requeued later
        self._thread.join()

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-P", "-m", "server.worker", self.options.data, self.options.cache]
        return subprocess.Popen([*command, *["--ocr"] * self.options.ocr], stdin=subprocess.PIPE)

    def _supervise(self) -> None:
        while not self._stop.is_set():
            assert self.process
            start = monotonic()
            status = self.process.wait()
            if self.process.stdin:
                self.process.stdin.close()
            if self._stop.is_set():
                return
            log.error("worker ended", extra={"fields": {"status": status}})
            if monotonic() - start < SHORT_LIFE:
                self._stop.wait(SHORT_LIFE)
            if not self._stop.is_set():
                self.process = self._start()


if __name__ == "__main__":
    main()
