"""The process that reads documents: it claims jobs one after the other, and gives way to questions.

`python -m server.worker` is told what it needs on its standard input, which is also what its parent
holds it by: when that closes, it ends.
"""

import json
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
from rag.config import Config, read_config
from rag.load import Encoders, Writer, encoders, open_writer, score_norm_of
from server.database import lasting, passing
from server.errors import below, no_base
from server.jobs import Jobs
from server.knowledge_bases import whole
from server.membership import Members
from server.options import ServerOptions
from server.telemetry import log_json
from server.traces import Traces
from server.uploads import Originals, Stored

PAUSE = 0.2  # seconds between two looks for work
LOOK = 0.5  # seconds between two looks whether to go on
TIDY = 10.0  # seconds between two looks for what the dead have left
AGAIN = 3.0  # seconds until a knowledge base that another writes is tried again


class Interrupted(BaseException):
    """The job under way is to end now: cancelled, taken away, or the worker is to stop."""


class Worker:
    """Works on jobs until `stop` is set. What is interrupted is undone as far as it was not stored."""

    def __init__(
        self,
        data: Path,
        cache: Path,
        home: Path,
        *,
        ocr: bool = True,
        opened: Encoders | None = None,
    ) -> None:
        self.data, self.cache, self.ocr = data, cache, ocr
        self._databases = lasting(home), passing(home)
        self.members = Members(home)
        self.member = self.members.join()
        self.jobs = Jobs(self._databases[0], self.members.alive)
        self.traces = Traces(self._databases[1])
        self.stop = threading.Event()
        self._opened = opened or encoders(cache)

    @property
    def name(self) -> str:
        return self.member.name

    def close(self) -> None:
        for database in self._databases:
            database.close()
        self.member.close()

    def run(self) -> None:
        tidied = -TIDY
        while not self.stop.is_set():
            if monotonic() - tidied > TIDY:
                self.tidy()
                tidied = monotonic()
            job = self.jobs.claim(self.name)
            if job is None:
                sleep(PAUSE)
            else:
                self.work(job)

    def tidy(self) -> None:
        """End and remove what servers and workers that died had under way."""
        self.jobs.forget_uploads()
        with suppress(Busy):
            self.members.tidy()

    def work(self, job: Row) -> None:
        """One job, to whatever end."""
        try:
            with self._interruptible(job["id"]):
                self._purge(job) if job["kind"] == "purge" else self._ingest(job)
                self._sweep(job)
            self.jobs.end(job["id"], self.name, "done")
        except Interrupted:
            row = self.jobs.get(job["id"])
            if row and row["cancel"]:
                self.jobs.end(job["id"], self.name, "cancelled")
            else:
                self.jobs.put_back(job["id"], self.name)
        except (Busy, Away):  # the command line writes it, or a delete; its server is not there now
            self.jobs.put_back(job["id"], self.name, pause=AGAIN)
        except UserError as problem:
            below(self.data, problem)
            self.jobs.end(job["id"], self.name, "failed", problem)

    @contextmanager
    def _interruptible(self, job: str) -> Iterator[None]:
        """Interrupt the main thread when the job is to end."""
        done = threading.Event()

        def look() -> None:
            while not done.wait(LOOK):
                if self.stop.is_set() or not self.jobs.wanted(job, self.name):
                    if not done.is_set():
                        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                    return

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _ingest(self, job: Row) -> None:
        base: str = job["base"]
        with (
            self._writer(base) as writer,
            writer.store as store,
            Sandbox(ocr=self.ocr) as sandbox,
            TemporaryDirectory(prefix="rag-upload-") as links,
        ):
            rows = [row for row in self.jobs.files(job["id"]) if row["state"] == "waiting"]
            originals = Originals(self._path(base))
            files = [originals.as_file(_stored(row), Path(links)) for row in rows]
            embedded = partial(self.jobs.embedded, job["id"])
            work = Ingestion(store, writer.embedder, writer.chunker, sandbox, embedded)
            for row, outcome in zip(rows, work.run(files), strict=True):
                if outcome.problem:
                    below(self.data, outcome.problem)
                self.jobs.outcome(job["id"], row["position"], outcome)
                score_norm_of(store, writer.embedder)  # so that no question has to wait for it

    def _purge(self, job: Row) -> None:
        with self._config(job["base"]).open_store() as store:
            store.rebuild()

    def _sweep(self, job: Row) -> None:
        """Drop originals that no document has (refused, replaced or cancelled ones), and traces that
        hold text of documents which are gone. Before the job ends, for then others may work here."""
        base: str = job["base"]
        path = self._path(base)
        with read_config(path).open_store() as store:
            documents = list(store.documents())
        used, originals = {document.digest for document in documents}, Originals(path)
        self.traces.forget_gone(base, {document.id for document in documents})
        for digest in originals.left_over(used):
            self.jobs.drop_unwanted(base, digest, originals.drop, but=job["id"])

    def _path(self, base: str) -> Path:
        path = self.data / base
        if not whole(path):
            raise no_base(base)
        return path

    def _config(self, base: str) -> Config:
        return read_config(self._path(base))

    @contextmanager
    def _writer(self, base: str) -> Iterator[Writer]:
        config = self._config(base)
        yield open_writer(config, embedder=None, cache=self.cache, open_encoder=self._opened)


def _stored(row: Row) -> Stored:
    return Stored(row["name"], row["digest"], row["size"])


def give_way() -> None:
    """Run when nobody else wants a core: questions come first. So do the children's children."""
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.nice(19)


def main() -> None:
    """Entry of the process."""
    die_with_parent()
    give_way()
    log_json(logging.WARNING)
    sys.excepthook = lambda kind, error, where: logging.critical("bug", exc_info=error)
    said = json.loads(sys.stdin.readline())
    worker = Worker(Path(said["data"]), Path(said["cache"]), Path(said["home"]), ocr=said["ocr"])

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    def end(number: int, frame: FrameType | None) -> None:
        worker.stop.set()

    signal.signal(signal.SIGUSR1, interrupt)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's, which tells us
    threading.Thread(target=lambda: (sys.stdin.read(), worker.stop.set()), daemon=True).start()
    tempfile.tempdir = str(worker.member.folder)  # a kill leaves nothing elsewhere
    with closing(worker):
        worker.run()


if __name__ == "__main__":
    main()

PATIENCE = 10.0  # seconds that a worker may take to put its job back
SHORT = 5.0  # a worker that lives less long than this is not started again at once

log = logging.getLogger("rag.server")


class Crew:
    """One worker, as long as the block lasts. It dies with this process, however that ends."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self._process: subprocess.Popen[str] | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="crew", daemon=True)

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def __enter__(self) -> "Crew":
        self._process = self._start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        process = self._process
        if process and process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()  # and the job waits again
        self._thread.join()

    def _start(self) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "server.worker"], stdin=subprocess.PIPE, text=True
        )
        options = self.options
        said = {
            "data": str(options.data),
            "cache": str(options.cache),
            "home": str(options.home),
            "ocr": options.ocr,
        }
        assert process.stdin
        process.stdin.write(json.dumps(said) + "\n")
        process.stdin.flush()
        return process

    def _look_after(self) -> None:
        while not self._ending.is_set():
            assert self._process
            begun = monotonic()
            status = self._process.wait()
            if self._process.stdin:
                self._process.stdin.close()
            if self._ending.is_set():
                return
            log.error("worker ended", extra={"fields": {"status": status}})
            if monotonic() - begun < SHORT:
                self._ending.wait(SHORT)
            if not self._ending.is_set():
                self._process = self._start()
