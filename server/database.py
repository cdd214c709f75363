"""The server's SQLite databases: keys and jobs, which are durable, and traces."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ingest.errors import Mismatch
from ingest.store.sqlite import failures_named, split_statements

VERSION = 1


class Database:
    """One SQLite file, used by one thread at a time. `schema`.sql beside this module has its tables.

    If `durable`, a commit survives a power cut; otherwise it survives only the end of the process.
    """

    def __init__(self, path: Path, schema: str, *, durable: bool) -> None:
        with failures_named(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            self._sql = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        self._sql.row_factory = sqlite3.Row
        self._lock = threading.RLock()
        synchronous = f"synchronous={'FULL' if durable else 'NORMAL'}"
        for pragma in ("journal_mode=WAL", "foreign_keys=ON", "secure_delete=ON", synchronous):
            self._sql.execute(f"PRAGMA {pragma}")
        with self.change() as sql:
            (version,) = sql.execute("PRAGMA user_version").fetchone()
            if version == 0:
                tables = Path(__file__).with_name(f"{schema}.sql").read_text("utf-8")
                for statement in split_statements(tables):
                    sql.execute(statement)
                sql.execute(f"PRAGMA user_version={VERSION}")
            elif version != VERSION:
                raise Mismatch(
                    "{path} has version {version}, this program reads version {own}; upgrade "
                    "chatglm-rag",
                    path=path, version=version, own=VERSION,
                )  # fmt: skip

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction; an exception rolls it back."""
        with self._lock:
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield self._sql
                self._sql.execute("COMMIT")
            except BaseException:
                if self._sql.in_transaction:
                    self._sql.execute("ROLLBACK")
                raise

    def rows(self, query: str, arguments: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._sql.execute(query, arguments).fetchall()

    def row(self, query: str, arguments: Sequence[Any] = ()) -> sqlite3.Row | None:
        with self._lock:
            return self._sql.execute(query, arguments).fetchone()

    def execute(self, query: str, arguments: Sequence[Any]) -> None:
        """One statement, which is a transaction of its own."""
        with self._lock:
            self._sql.execute(query, arguments)

    def shred(self) -> None:
        """Remove deleted rows from the write-ahead log too, unless they are being read."""
        with self._lock:
            self._sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        with self._lock:
            self._sql.close()


def server_database(home: Path) -> Database:
    """Keys and jobs."""
    return Database(home / "server.sqlite", "server", durable=True)


def trace_database(home: Path) -> Database:
    return Database(home / "traces.sqlite", "traces", durable=False)
