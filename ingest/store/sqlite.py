"""The primary data: the tables of `kb.sqlite`, connections to it, and the errors of failed writes."""

import errno
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from ingest.errors import Mismatch, UserError
from ingest.store.protocol import Vectors
from ingest.store.vector_index import Keys, stack
from ingest.store.word_index import Coverage

APPLICATION = 0x43475241  # "CGRA" distinguishes a knowledge base from any other SQLite file
VERSION = 1

SCHEMA = Path(__file__).with_name("schema.sql").read_text("utf-8")


def connect(path: Path) -> sqlite3.Connection:
    """A connection in autocommit mode, which threads that only read may share. It can only read if the
    folder can't be written: on a medium that is read only, or in the folder of another person."""
    address = path.absolute().as_uri()
    if path.is_file() and not all(
        os.access(each, os.W_OK, effective_ids=True) for each in (path.parent, path)
    ):
        # Without a log of changes nobody writes it, and there is nothing beside it to lock.
        address += "?mode=ro" if path.with_name(f"{path.name}-wal").exists() else "?mode=ro&immutable=1"
    connection = sqlite3.connect(address, timeout=10, isolation_level=None, check_same_thread=False, uri=True)
    # FULL: a committed change survives a power cut. secure_delete: removed text is overwritten.
    pragmas = "foreign_keys=ON", "synchronous=FULL", "secure_delete=ON", "cache_size=-65536"
    try:
        for pragma in (*pragmas, "user_version"):
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.DatabaseError as error:
        connection.close()
        if error.sqlite_errorcode not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise
        raise UserError(
            "{path} can't be read as a knowledge base ({error}); restore a snapshot of it",
            path=path,
            error=error,
        ) from error
    return connection


def create_schema(connection: sqlite3.Connection) -> None:
    """Create the tables in an empty file; the caller fills `meta` and commits."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("BEGIN IMMEDIATE")
    for statement in split_statements(SCHEMA):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id={APPLICATION}")
    connection.execute(f"PRAGMA user_version={VERSION}")


def same_schema(connection: sqlite3.Connection) -> bool:
    """Whether every table, index and trigger is ours; a foreign file could have harmful ones."""
    query = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name != 'sqlite_sequence'"
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        create_schema(fresh)
        expected = {text for (text,) in fresh.execute(query)}
    return {text for (text,) in connection.execute(query)} == expected


def split_statements(script: str) -> list[str]:
    """The statements of a script; `executescript` would first commit the open transaction."""
    statements, part = [], ""
    for line in script.splitlines(keepends=True):
        part += line
        if sqlite3.complete_statement(part):
            statements.append(part.strip())
            part = ""
    return statements


def check_schema(connection: sqlite3.Connection, path: Path) -> bool:
    """True for a knowledge base, False for an empty file. Raises for anything else."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if application == APPLICATION and version > VERSION:
        raise Mismatch(
            "{path} has schema {version}, this program knows schema {known}; upgrade chatglm-rag to open it",
            path=path, version=version, known=VERSION,
        )  # fmt: skip
    if tables and (application != APPLICATION or version != VERSION):
        raise UserError("{path} is an SQLite file but no knowledge base; name another directory", path=path)
    return bool(tables)


BATCH = 10_000  # rows in memory at a time while an index catches up
AMONG = "IN (SELECT value FROM json_each(?))"


def covered(connection: sqlite3.Connection) -> Coverage:
    """The newest change, and the highest chunk key that was ever used."""
    seq, stamp = connection.execute(
        "SELECT seq, stamp FROM changes ORDER BY seq DESC LIMIT 1"
    ).fetchone() or (0, 0)
    last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'chunks'").fetchone()
    return Coverage(seq, stamp, last[0] if last else 0)


def meta(connection: sqlite3.Connection, name: str) -> object | None:
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return json.loads(row[0]) if row else None


def set_meta(connection: sqlite3.Connection, name: str, value: object) -> None:
    text = json.dumps(value, ensure_ascii=False)
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, text))


def vectors_of(connection: sqlite3.Connection, keys: Sequence[int], dim: int) -> tuple[Keys, Vectors]:
    """The `keys` that exist, sorted, and their vectors (n, dim)."""
    query = f"SELECT key, vector FROM chunks WHERE key {AMONG} ORDER BY key"
    return _keys_and_vectors(connection.execute(query, (json.dumps(keys),)).fetchall(), dim)


def vectors_after(connection: sqlite3.Connection, last: int, dim: int) -> Iterator[tuple[Keys, Vectors]]:
    """All vectors of keys above `last`, in batches by growing key."""
    query = "SELECT key, vector FROM chunks WHERE key > ? ORDER BY key LIMIT ?"
    while rows := connection.execute(query, (last, BATCH)).fetchall():
        yield _keys_and_vectors(rows, dim)
        last = rows[-1][0]


def _keys_and_vectors(rows: list[tuple[int, bytes]], dim: int) -> tuple[Keys, Vectors]:
    keys = np.fromiter((key for key, _ in rows), np.int64, len(rows))
    return keys, stack((vector for _, vector in rows), dim)


def texts_after(connection: sqlite3.Connection, last: int) -> Iterator[tuple[int, int, str]]:
    """(key, document's key, indexed text) of chunks with keys above `last`, by growing key."""
    cursor = connection.execute(
        "SELECT c.key, c.document, c.context, c.start - p.start, c.end - p.start, p.text"
        " FROM chunks c JOIN passages p ON p.key = c.passage WHERE c.key > ? ORDER BY c.key",
        (last,),
    )
    for key, document, context, start, end, text in cursor:
        piece = text[start:end]
        yield key, document, f"{context}\n{piece}" if context else piece


def count(connection: sqlite3.Connection, table: str) -> int:
    # Without a WHERE it is answered from the smallest index: 10 ms for a million rows, not 500.
    return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # no room
    *(errno.EACCES, errno.EPERM, errno.EROFS),  # not allowed
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOENT),  # no such place
}
SQLITE_UNWRITABLE = "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN"


@contextmanager
def failures_named(path: Path) -> Iterator[None]:
    """Turn failed writes under `path` into `UserError`; what was committed before is kept."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if isinstance(error, OSError):
            expected, why = error.errno in UNWRITABLE, error.strerror
        else:
            expected, why = error.sqlite_errorname.startswith(SQLITE_UNWRITABLE), error
        if not expected:
            raise
        raise UserError(
            "{path} can't be written ({why}); nothing is lost: free space there, change its permissions or "
            "name another path",
            path=path,
            why=why,
        ) from error
