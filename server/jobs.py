"""The durable queue of ingestion jobs.

One worker at a time claims a job. If it dies, the job returns to the queue; files that are already
in the knowledge base are not read again.
"""

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable

from ingest.errors import UserError
from ingest.i18n import Translatable, translate
from ingest.pipeline import FileOutcome
from server import schemas
from server.database import Database
from server.uploads import Upload

MAX_ATTEMPTS = 3  # of a job whose worker dies each time
LIST_LIMIT = 200
HISTORY_LIMIT = 5_000  # jobs in the database


class Jobs:
    """The queue in the database. `alive(name)` returns whether a server or worker is running."""

    def __init__(self, database: Database, alive: Callable[[str], bool]) -> None:
        self._database, self._alive = database, alive

    # Called by servers

    def create_upload(self, base: str, server: str, kind: str = "ingest") -> str:
        """A new job whose files a server is receiving."""
        with self._database.change() as sql:
            return _add(sql, kind, base, "receiving", server)

    def add_file(self, job: str, upload: Upload, problem: UserError | None = None) -> None:
        """Add a file of an upload, or one that is refused because of `problem`. It is called before
        the bytes get their final name, so that they are never taken for unused ones.

        Raises `UserError` if another file has the same name, because one would replace the other.
        """
        query = "SELECT 1 FROM files WHERE job = ? AND name = ? AND digest != ? AND state = 'waiting'"
        if not problem and self._database.row(query, (job, upload.name, upload.digest)):
            raise UserError("another file of this upload is called {name}; rename one", name=upload.name)
        state = "refused" if problem else "waiting"
        self._database.execute(
            "INSERT INTO files (job, position, name, digest, size, state, problem, problem_zh)"
            " VALUES (?, (SELECT count(*) FROM files WHERE job = ?), ?, ?, ?, ?, ?, ?)",
            (job, job, upload.name, upload.digest, upload.size, state, *_texts(problem)),
        )

    def queue(self, job: str) -> None:
        """Release a complete upload to the workers."""
        self._database.execute(
            "UPDATE jobs SET state = 'queued', worker = NULL WHERE id = ? AND state = 'receiving'", (job,)
        )

    def cancel_abandoned_uploads(self) -> None:
        """End the uploads to servers that died."""
        problem = Translatable("the upload was interrupted; try again")
        for row in self._database.rows("SELECT id, worker FROM jobs WHERE state = 'receiving'"):
            if not self._alive(row["worker"] or ""):
                with self._database.change() as sql:
                    _end(sql, row["id"], "cancelled", problem, where="AND state = 'receiving'")

    def queue_purge(self, base: str) -> None:
        """Rebuild the indexes once, after the jobs that are waiting."""
        with self._database.change() as sql:
            query = "SELECT 1 FROM jobs WHERE base = ? AND kind = 'purge' AND state = 'queued'"
            if not sql.execute(query, (base,)).fetchone():
                _add(sql, "purge", base, "queued")

    def get(self, job: str) -> sqlite3.Row | None:
        return self._database.row("SELECT * FROM jobs WHERE id = ?", (job,))

    def newest(self, bases: Iterable[str]) -> list[sqlite3.Row]:
        """The newest `LIST_LIMIT` jobs of these knowledge bases, newest first."""
        return self._database.rows(
            "SELECT * FROM jobs WHERE base IN (SELECT value FROM json_each(?)) ORDER BY created DESC LIMIT ?",
            (json.dumps([*bases]), LIST_LIMIT),
        )

    def files(self, job: str) -> list[sqlite3.Row]:
        return self._database.rows("SELECT * FROM files WHERE job = ? ORDER BY position", (job,))

    def cancel(self, job: str) -> None:
        """End a job: at once if it is waiting, soon if it is running. Stored documents stay."""
        with self._database.change() as sql:
            sql.execute("UPDATE jobs SET cancel = 1 WHERE id = ?", (job,))
            _end(sql, job, "cancelled", where="AND state IN ('queued', 'receiving')")

    def cancel_all(self, base: str) -> None:
        query = "SELECT id FROM jobs WHERE base = ? AND finished IS NULL"
        for row in self._database.rows(query, (base,)):
            self.cancel(row["id"])

    def delete_unless_needed(
        self, base: str, digest: str, delete: Callable[[str], None], *, ignore: str = ""
    ) -> None:
        """Call `delete(digest)` unless an unfinished job other than `ignore` needs the file.

        The transaction keeps uploads from adding it, and jobs from ending, in between.
        """
        with self._database.change() as sql:
            other_job = sql.execute(
                "SELECT 1 FROM files JOIN jobs ON jobs.id = files.job"
                " WHERE digest = ? AND base = ? AND finished IS NULL AND job != ?",
                (digest, base, ignore),
            ).fetchone()
            if not other_job:
                delete(digest)

    def is_running(self, base: str) -> bool:
        """Whether a live worker runs a job of the knowledge base."""
        query = "SELECT worker FROM jobs WHERE base = ? AND state = 'running'"
        return any(self._alive(row["worker"]) for row in self._database.rows(query, (base,)))

    @property
    def waiting(self) -> int:
        row = self._database.row("SELECT count(*) FROM jobs WHERE finished IS NULL")
        return row[0] if row else 0

    # Called by workers

    def claim(self, worker: str) -> sqlite3.Row | None:
        """The oldest waiting job whose knowledge base no other worker is changing."""
        now = time.time()
        with self._database.change() as sql:
            self._requeue_orphans(sql)
            return sql.execute(
                "UPDATE jobs SET state = 'running', worker = ?, attempts = attempts + 1,"
                " started = coalesce(started, ?) WHERE id = (SELECT id FROM jobs WHERE"
                " state = 'queued' AND after <= ? AND base NOT IN"
                " (SELECT base FROM jobs WHERE state = 'running') ORDER BY created LIMIT 1)"
                " RETURNING *",
                (worker, now, now),
            ).fetchone()

    def _requeue_orphans(self, sql: sqlite3.Connection) -> None:
        """Requeue the jobs of workers that died; fail those that have had `MAX_ATTEMPTS`."""
        query = "SELECT id, worker, attempts, cancel FROM jobs WHERE state = 'running'"
        for job, worker, attempts, cancel in sql.execute(query).fetchall():
            if self._alive(worker):
                continue
            if cancel:
                _end(sql, job, "cancelled")
            elif attempts >= MAX_ATTEMPTS:
                problem = Translatable(
                    "its worker died {attempts} times; upload the files in smaller batches", attempts=attempts
                )
                _end(sql, job, "failed", problem)
            else:
                sql.execute("UPDATE jobs SET state = 'queued', worker = NULL WHERE id = ?", (job,))

    def should_continue(self, job: str, worker: str) -> bool:
        """Whether the job still belongs to the worker and is not cancelled."""
        row = self._database.row(
            "SELECT 1 FROM jobs WHERE id = ? AND worker = ? AND state = 'running' AND NOT cancel",
            (job, worker),
        )
        return row is not None

    def add_chunks(self, job: str, chunks: int) -> None:
        self._database.execute("UPDATE jobs SET chunks = chunks + ? WHERE id = ?", (chunks, job))

    def record_outcome(self, job: str, position: int, outcome: FileOutcome) -> None:
        """Store the result of a file, after it was committed to the knowledge base or refused."""
        report = json.dumps(outcome.report.to_json()) if outcome.report else None
        with self._database.change() as sql:
            sql.execute(
                "UPDATE files SET state = ?, chunks = ?, receipt = ?, problem = ?, problem_zh = ?"
                " WHERE job = ? AND position = ?",
                (outcome.status, outcome.chunks, report, *_texts(outcome.problem), job, position),
            )
            # Only attempts without progress count.
            sql.execute("UPDATE jobs SET attempts = 1 WHERE id = ?", (job,))

    def finish(
        self, job: str, worker: str, state: schemas.JobState, problem: UserError | None = None
    ) -> None:
        """End a job, unless it no longer belongs to the worker."""
        with self._database.change() as sql:
            query = "SELECT 1 FROM jobs WHERE id = ? AND worker = ? AND state = 'running'"
            if sql.execute(query, (job, worker)).fetchone():
                _end(sql, job, state, problem and problem.message)

    def requeue(self, job: str, worker: str, *, pause: float = 0.0) -> None:
        """Return the worker's job to the queue for `pause` seconds or more, without an attempt."""
        self._database.execute(
            "UPDATE jobs SET state = 'queued', worker = NULL, after = ?, attempts = attempts - 1"
            " WHERE id = ? AND worker = ? AND state = 'running'",
            (time.time() + pause, job, worker),
        )


def _add(sql: sqlite3.Connection, kind: str, base: str, state: str, server: str = "") -> str:
    job = secrets.token_hex(12)
    sql.execute(
        "INSERT INTO jobs (id, kind, base, state, created, worker) VALUES (?, ?, ?, ?, ?, ?)",
        (job, kind, base, state, time.time(), server or None),
    )
    sql.execute(
        "DELETE FROM jobs WHERE finished IS NOT NULL AND id NOT IN"
        " (SELECT id FROM jobs ORDER BY created DESC LIMIT ?)",
        (HISTORY_LIMIT,),
    )
    return job


def _texts(problem: UserError | Translatable | None) -> tuple[str | None, str | None]:
    """A problem in English and in Chinese, since its readers are not known yet."""
    message = problem.message if isinstance(problem, UserError) else problem
    return (str(message), translate(message, "zh")) if message else (None, None)


def _end(
    sql: sqlite3.Connection, job: str, state: schemas.JobState, problem: Translatable | None = None,
    *, where: str = "AND finished IS NULL",
) -> None:  # fmt: skip
    change = sql.execute(
        f"UPDATE jobs SET state = ?, finished = ?, error = ?, error_zh = ? WHERE id = ? {where}",
        (state, time.time(), *_texts(problem), job),
    )
    if change.rowcount:
        waiting = "UPDATE files SET state = 'cancelled' WHERE job = ? AND state = 'waiting'"
        sql.execute(waiting, (job,))
