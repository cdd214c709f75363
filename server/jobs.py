"""Durable work: what is to be read into which knowledge base, and how far it has come.

A job is claimed by one worker at a time. When that dies, the job goes back into the queue; files
that the knowledge base holds by then are not read again.
"""

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict

from ingest.errors import UserError
from ingest.i18n import Translatable, translate
from ingest.pipeline import Outcome
from server import schemas
from server.database import Database
from server.uploads import Stored

ATTEMPTS = 3  # that may end with the worker's death
LISTED = 200
KEPT = 5_000  # ended jobs that are remembered


class Jobs:
    """The queue in the database. `alive` says of who receives or works on a job whether it lives."""

    def __init__(self, database: Database, alive: Callable[[str], bool]) -> None:
        self._database, self._alive = database, alive

    # What clients do

    def receive(self, base: str, server: str) -> str:
        """A new job whose files are being uploaded to a server; `queue` sets it going."""
        with self._database.change() as sql:
            return _add(sql, "ingest", base, "receiving", server)

    def file(self, job: str, stored: Stored, *, once: Mapping[str, str]) -> None:
        """One more file of an upload. To be told before its bytes are in their place, so that
        nobody takes them for left over.

        `once` are the names and digests of those before it: `UserError` where another of the same
        name was among them, for one would take the other's place.
        """
        if once.get(stored.name, stored.digest) != stored.digest:
            raise UserError(
                "another file of this upload is called {name}; rename one", name=stored.name
            )
        self._add_file(job, stored.name, stored.digest, stored.size)

    def refused(self, job: str, name: str, problem: UserError) -> None:
        """A file of an upload that is not taken."""
        self._add_file(job, name, "", 0, problem)

    def queue(self, job: str) -> None:
        """The upload is complete."""
        with self._database.change() as sql:
            sql.execute(
                "UPDATE jobs SET state = 'queued', worker = NULL"
                " WHERE id = ? AND state = 'receiving'",
                (job,),
            )

    def forget_uploads(self) -> None:
        """End the uploads to servers that died."""
        problem = Translatable("the upload was cut off; try again")
        for row in self._database.rows("SELECT id, worker FROM jobs WHERE state = 'receiving'"):
            if not self._alive(row["worker"] or ""):
                with self._database.change() as sql:
                    _end(sql, row["id"], "cancelled", problem, where="AND state = 'receiving'")

    def purge(self, base: str) -> None:
        """See to it that indexes are made anew once, after the work that is waiting."""
        with self._database.change() as sql:
            waiting = sql.execute(
                "SELECT 1 FROM jobs WHERE base = ? AND kind = 'purge' AND state = 'queued'", (base,)
            ).fetchone()
            if not waiting:
                _add(sql, "purge", base, "queued")

    def _add_file(
        self, job: str, name: str, digest: str, size: int, problem: UserError | None = None
    ) -> None:
        state = "refused" if problem else "waiting"
        with self._database.change() as sql:
            sql.execute(
                "INSERT INTO files (job, position, name, digest, size, state, problem, problem_zh)"
                " VALUES (?, (SELECT count(*) FROM files WHERE job = ?), ?, ?, ?, ?, ?, ?)",
                (job, job, name, digest, size, state, *_texts(problem)),
            )

    def get(self, job: str) -> sqlite3.Row | None:
        return self._database.row("SELECT * FROM jobs WHERE id = ?", (job,))

    def newest(self, bases: Iterable[str]) -> list[sqlite3.Row]:
        """At most `LISTED` of these knowledge bases, newest first."""
        return self._database.rows(
            "SELECT * FROM jobs WHERE base IN (SELECT value FROM json_each(?))"
            " ORDER BY created DESC LIMIT ?",
            (json.dumps([*bases]), LISTED),
        )

    def bases(self) -> list[str]:
        """Those that jobs are known of."""
        return [row["base"] for row in self._database.rows("SELECT DISTINCT base FROM jobs")]

    def files(self, job: str) -> list[sqlite3.Row]:
        return self._database.rows("SELECT * FROM files WHERE job = ? ORDER BY position", (job,))

    def cancel(self, job: str) -> None:
        """End a job: at once where it waits, soon where it runs. What is stored stays."""
        with self._database.change() as sql:
            sql.execute("UPDATE jobs SET cancel = 1 WHERE id = ?", (job,))
            _end(sql, job, "cancelled", where="AND state IN ('queued', 'receiving')")

    def cancel_all(self, base: str) -> None:
        for row in self._database.rows(
            "SELECT id FROM jobs WHERE base = ? AND finished IS NULL", (base,)
        ):
            self.cancel(row["id"])

    def drop_unwanted(
        self, base: str, digest: str, drop: Callable[[str], None], *, but: str = ""
    ) -> None:
        """Drop an original unless work that has not ended, `but` for that job, will read it.

        No upload can name it, and no job end, between the look and the drop.
        """
        with self._database.change() as sql:
            wanted = sql.execute(
                "SELECT 1 FROM files JOIN jobs ON jobs.id = files.job"
                " WHERE digest = ? AND base = ? AND finished IS NULL AND job != ?",
                (digest, base, but),
            ).fetchone()
            if not wanted:
                drop(digest)

    def at_work(self, base: str) -> bool:
        """Whether a worker that lives has a job of the knowledge base."""
        running = "SELECT worker FROM jobs WHERE base = ? AND state = 'running'"
        return any(self._alive(row["worker"]) for row in self._database.rows(running, (base,)))

    @property
    def waiting(self) -> int:
        row = self._database.row("SELECT count(*) FROM jobs WHERE finished IS NULL")
        return row[0] if row else 0

    # What workers do

    def claim(self, worker: str) -> sqlite3.Row | None:
        """The oldest job that waits, whose knowledge base no other worker is at."""
        now = time.time()
        with self._database.change() as sql:
            self._take_back(sql)
            return sql.execute(
                "UPDATE jobs SET state = 'running', worker = ?, attempts = attempts + 1,"
                " started = coalesce(started, ?) WHERE id = (SELECT id FROM jobs WHERE"
                " state = 'queued' AND after <= ? AND base NOT IN"
                " (SELECT base FROM jobs WHERE state = 'running') ORDER BY created LIMIT 1)"
                " RETURNING *",
                (worker, now, now),
            ).fetchone()

    def _take_back(self, sql: sqlite3.Connection) -> None:
        """Jobs of workers that died wait again, or fail where that has happened too often."""
        running = "SELECT id, worker, attempts, cancel FROM jobs WHERE state = 'running'"
        for job, worker, attempts, cancel in sql.execute(running).fetchall():
            if self._alive(worker):
                continue
            if cancel:
                _end(sql, job, "cancelled")
            elif attempts >= ATTEMPTS:
                problem = Translatable(
                    "its worker ended {attempts} times; upload the files in smaller lots",
                    attempts=attempts,
                )
                _end(sql, job, "failed", problem)
            else:
                sql.execute("UPDATE jobs SET state = 'queued', worker = NULL WHERE id = ?", (job,))

    def wanted(self, job: str, worker: str) -> bool:
        """Whether the worker is to go on with a job."""
        row = self._database.row(
            "SELECT 1 FROM jobs WHERE id = ? AND worker = ? AND state = 'running' AND NOT cancel",
            (job, worker),
        )
        return row is not None

    def embedded(self, job: str, chunks: int) -> None:
        with self._database.change() as sql:
            sql.execute("UPDATE jobs SET chunks = chunks + ? WHERE id = ?", (chunks, job))

    def outcome(self, job: str, position: int, outcome: Outcome) -> None:
        """What became of a file, once it is in the knowledge base or refused."""
        receipt = json.dumps(asdict(outcome.receipt)) if outcome.receipt else None
        with self._database.change() as sql:
            sql.execute(
                "UPDATE files SET state = ?, chunks = ?, receipt = ?, problem = ?, problem_zh = ?"
                " WHERE job = ? AND position = ?",
                (outcome.status, outcome.chunks, receipt, *_texts(outcome.problem), job, position),
            )
            # Deaths count against a job only as long as it does not get on.
            sql.execute("UPDATE jobs SET attempts = 1 WHERE id = ?", (job,))

    def end(
        self, job: str, worker: str, state: schemas.JobState, problem: UserError | None = None
    ) -> None:
        """End a job that is the worker's; another one has nothing to end."""
        with self._database.change() as sql:
            held = "SELECT 1 FROM jobs WHERE id = ? AND worker = ? AND state = 'running'"
            if sql.execute(held, (job, worker)).fetchone():
                _end(sql, job, state, problem and problem.message)

    def put_back(self, job: str, worker: str, *, pause: float = 0.0) -> None:
        """Let a job that is the worker's wait again, for `pause` seconds at least; the attempt does
        not count."""
        with self._database.change() as sql:
            sql.execute(
                "UPDATE jobs SET state = 'queued', worker = NULL, after = ?,"
                " attempts = attempts - 1 WHERE id = ? AND worker = ? AND state = 'running'",
                (time.time() + pause, job, worker),
            )


def _add(
    sql: sqlite3.Connection, kind: str, base: str, state: str, server: str | None = None
) -> str:
    job = secrets.token_hex(12)
    sql.execute(
        "INSERT INTO jobs (id, kind, base, state, created, worker) VALUES (?, ?, ?, ?, ?, ?)",
        (job, kind, base, state, time.time(), server),
    )
    sql.execute(
        "DELETE FROM jobs WHERE finished IS NOT NULL AND id NOT IN"
        " (SELECT id FROM jobs ORDER BY created DESC LIMIT ?)",
        (KEPT,),
    )
    return job


def _texts(problem: UserError | Translatable | None) -> tuple[str | None, str | None]:
    """A problem in English and in Chinese, for whoever will read it."""
    message = problem.message if isinstance(problem, UserError) else problem
    return (str(message), translate(message, "zh")) if message else (None, None)


def _end(
    sql: sqlite3.Connection,
    job: str,
    state: schemas.JobState,
    problem: Translatable | None = None,
    *,
    where: str = "AND finished IS NULL",
) -> None:
    ended = sql.execute(
        f"UPDATE jobs SET state = ?, finished = ?, error = ?, error_zh = ? WHERE id = ? {where}",
        (state, time.time(), *_texts(problem), job),
    )
    if ended.rowcount:
        sql.execute(
            "UPDATE files SET state = 'cancelled' WHERE job = ? AND state = 'waiting'", (job,)
        )
