"""The truth: tables of `kb.sqlite`, connections to it, and what a failed write means."""

import errno
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ingest.errors import Mismatch, UserError
from ingest.store.protocol import Vectors
from ingest.store.vector_index import Keys, stack
from ingest.store.word_index import Covered
from ingest.types import Chunk, Document, Passage, Receipt

APPLICATION = 0x43475241  # "CGRA": tells a knowledge base from any other SQLite file
VERSION = 1

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
-- One row a committed change. A cache that names a (seq, stamp) not found here is foreign.
CREATE TABLE changes (seq INTEGER PRIMARY KEY AUTOINCREMENT, stamp INTEGER NOT NULL);
CREATE TABLE documents (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    source TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL,
    digest TEXT NOT NULL,
    receipt TEXT NOT NULL,
    length INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE passages (
    key INTEGER PRIMARY KEY,
    document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE,
    start INTEGER NOT NULL,
    end INTEGER NOT NULL,
    label TEXT NOT NULL,
    text TEXT NOT NULL
);
CREATE UNIQUE INDEX passages_place ON passages (document, start);
-- AUTOINCREMENT: keys only grow, so a cache knows by the last key what it lacks.
CREATE TABLE chunks (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    document INTEGER NOT NULL REFERENCES documents ON DELETE CASCADE,
    passage INTEGER NOT NULL REFERENCES passages ON DELETE CASCADE,
    start INTEGER NOT NULL,
    end INTEGER NOT NULL,
    places TEXT NOT NULL,
    context TEXT NOT NULL,
    digest BLOB NOT NULL,
    vector BLOB NOT NULL
);
CREATE INDEX chunks_document ON chunks (document);
CREATE INDEX chunks_passage ON chunks (passage);
CREATE INDEX chunks_digest ON chunks (digest);
-- Keys of chunks removed since the caches were last made anew.
CREATE TABLE removed (key INTEGER PRIMARY KEY, seq INTEGER NOT NULL);
CREATE INDEX removed_seq ON removed (seq);
CREATE TRIGGER chunk_removed AFTER DELETE ON chunks BEGIN
    INSERT INTO removed VALUES (old.key, (SELECT max(seq) FROM changes));
END;
"""


def connect(path: Path) -> sqlite3.Connection:
    """A connection in autocommit, safe to share between threads that only read."""
    connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    # FULL: a committed change survives a power cut. secure_delete: removed text is overwritten.
    try:
        for pragma in (
            "foreign_keys=ON",
            "synchronous=FULL",
            "secure_delete=ON",
            "cache_size=-65536",
        ):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("PRAGMA user_version")
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
    """Lay out an empty file; the caller fills `meta` and commits."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("BEGIN IMMEDIATE")
    for statement in split_statements(SCHEMA):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id={APPLICATION}")
    connection.execute(f"PRAGMA user_version={VERSION}")


def same_schema(connection: sqlite3.Connection) -> bool:
    """Is every table, index and trigger ours? A foreign file could hold others that do harm."""
    query = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name != 'sqlite_sequence'"
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        create_schema(fresh)
        expected = {text for (text,) in fresh.execute(query)}
    return {text for (text,) in connection.execute(query)} == expected


def split_statements(script: str) -> list[str]:
    """Statements one by one: `executescript` would commit the open transaction first."""
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
            "{path} has schema {version}, this program knows schema {version_2}; upgrade "
            "chatglm-rag to open it",
            path=path,
            version=version,
            version_2=VERSION,
        )
    if tables and (application != APPLICATION or version != VERSION):
        raise UserError(
            "{path} is an SQLite file but no knowledge base; name another directory", path=path
        )
    return bool(tables)


BATCH = 10_000  # rows held at a time while a cache catches up
AMONG = "IN (SELECT value FROM json_each(?))"


def covered(connection: sqlite3.Connection) -> Covered:
    """The newest change, and the highest chunk key ever given."""
    seq, stamp = connection.execute(
        "SELECT seq, stamp FROM changes ORDER BY seq DESC LIMIT 1"
    ).fetchone() or (0, 0)
    last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'chunks'").fetchone()
    return Covered(seq, stamp, last[0] if last else 0)


def meta(connection: sqlite3.Connection, name: str) -> object | None:
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return json.loads(row[0]) if row else None


def set_meta(connection: sqlite3.Connection, name: str, value: object) -> None:
    text = json.dumps(value, ensure_ascii=False)
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, text))


def vectors_of(
    connection: sqlite3.Connection, keys: Sequence[int], dim: int
) -> tuple[Keys, Vectors]:
    """Those of `keys` that exist, sorted, and their vectors (n, dim)."""
    rows = connection.execute(
        f"SELECT key, vector FROM chunks WHERE key {AMONG} ORDER BY key", (json.dumps(keys),)
    ).fetchall()
    found = np.fromiter((key for key, _ in rows), np.int64, len(rows))
    return found, stack((vector for _, vector in rows), dim)


def vectors_after(
    connection: sqlite3.Connection, last: int, dim: int
) -> Iterator[tuple[Keys, Vectors]]:
    """All vectors of keys above `last`, in batches by growing key."""
    query = "SELECT key, vector FROM chunks WHERE key > ? ORDER BY key LIMIT ?"
    while rows := connection.execute(query, (last, BATCH)).fetchall():
        keys = np.fromiter((key for key, _ in rows), np.int64, len(rows))
        yield keys, stack((vector for _, vector in rows), dim)
        last = int(keys[-1])


def texts_after(connection: sqlite3.Connection, last: int) -> Iterator[tuple[int, str]]:
    """(key, indexed text) of chunks with keys above `last`, by growing key."""
    cursor = connection.execute(
        "SELECT c.key, c.context, c.start - p.start, c.end - p.start, p.text"
        " FROM chunks c JOIN passages p ON p.key = c.passage WHERE c.key > ? ORDER BY c.key",
        (last,),
    )
    for key, context, start, end, text in cursor:
        piece = text[start:end]
        yield key, f"{context}\n{piece}" if context else piece


def chunks_of(connection: sqlite3.Connection, keys: Sequence[int]) -> dict[int, Chunk]:
    rows = connection.execute(
        "SELECT c.key, d.id, d.source, d.title, c.places, c.context, c.start, c.end,"
        " p.start, p.end, p.text FROM chunks c JOIN passages p ON p.key = c.passage"
        f" JOIN documents d ON d.key = c.document WHERE c.key {AMONG}",
        (json.dumps(keys),),
    )
    found = {}
    for key, id_, source, title, places, context, start, end, from_, to, text in rows:
        found[key] = Chunk(
            id_,
            source,
            title,
            tuple(map(tuple, json.loads(places))),
            context,
            start,
            end,
            text=text[start - from_ : end - from_],
            passage=(from_, to),
        )
    return {key: found[key] for key in keys if key in found}


def passage_of(connection: sqlite3.Connection, chunk: Chunk) -> Passage:
    row = connection.execute(
        "SELECT p.start, p.end, p.text, p.label FROM passages p"
        " JOIN documents d ON d.key = p.document WHERE d.id = ? AND p.start = ?",
        (chunk.document, chunk.passage[0]),
    ).fetchone()
    if row is None:
        raise KeyError(chunk.document)
    return Passage(chunk.document, *row)


def chunks_within(connection: sqlite3.Connection, passage: Passage) -> list[Chunk]:
    keys = connection.execute(
        "SELECT c.key FROM chunks c JOIN passages p ON p.key = c.passage"
        " JOIN documents d ON d.key = p.document WHERE d.id = ? AND p.start = ? ORDER BY c.start",
        (passage.document, passage.start),
    )
    return list(chunks_of(connection, [key for (key,) in keys]).values())


def sample_of(connection: sqlite3.Connection, count: int) -> Keys:
    """Keys spread evenly over all, at most `count`, sorted."""
    first, last = connection.execute("SELECT min(key), max(key) FROM chunks").fetchone()
    if first is None:
        return np.empty(0, np.int64)
    spaced = np.unique(np.linspace(first, last, count).astype(np.int64)).tolist()
    query = "SELECT key FROM chunks WHERE key >= ? ORDER BY key LIMIT 1"
    return np.unique([connection.execute(query, (key,)).fetchone()[0] for key in spaced])


def length_of(connection: sqlite3.Connection, document: str) -> int:
    row = connection.execute("SELECT length FROM documents WHERE id = ?", (document,)).fetchone()
    if row is None:
        raise KeyError(document)
    return row[0]


def text_of(connection: sqlite3.Connection, document: str, start: int, end: int | None) -> str:
    row = connection.execute(
        "SELECT key, length FROM documents WHERE id = ?", (document,)
    ).fetchone()
    if row is None:
        raise KeyError(document)
    key, length = row
    end = length if end is None else min(end, length)
    # The first passage is the one around `start`: the last that begins at or before it.
    rows = connection.execute(
        "SELECT start, text FROM passages WHERE document = ? AND start < ? AND start >="
        " (SELECT coalesce(max(start), 0) FROM passages WHERE document = ? AND start <= ?)"
        " ORDER BY start",
        (key, end, key, start),
    )
    return "".join(text[max(start - at, 0) : end - at] for at, text in rows)


def documents_of(
    connection: sqlite3.Connection, where: str = "", arguments: Sequence[str] = ()
) -> Iterator[Document]:
    rows = connection.execute(
        f"SELECT source, title, digest, receipt FROM documents {where} ORDER BY source", arguments
    )
    for source, title, digest, receipt in rows:
        values = json.loads(receipt)
        values["warnings"] = tuple(values["warnings"])
        yield Document(source, title, digest, Receipt(**values))


def receipt_text(receipt: Receipt) -> str:
    return json.dumps(asdict(receipt), ensure_ascii=False)


NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
NO_PLACE = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOENT}


@contextmanager
def failures_named(path: Path) -> Iterator[None]:
    """Turn failed writes under `path` into `UserError`; what was committed before is kept."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise full(path, error) from error
        if error.errno in NOT_ALLOWED:
            raise forbidden(path, error) from error
        if error.errno in NO_PLACE:
            raise UserError(
                "{path} can't be written there ({strerror}); name another path",
                path=path,
                strerror=error.strerror,
            ) from error
        raise
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL or primary(error) == sqlite3.SQLITE_IOERR:
            raise full(path, error) from error
        if primary(error) in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise forbidden(path, error) from error
        raise


def primary(error: sqlite3.Error) -> int:
    """The result code without the details in its higher bytes."""
    return error.sqlite_errorcode & 0xFF


def full(path: Path, error: Exception) -> UserError:
    return UserError(
        "no room to write {path} ({error}); nothing is lost, free space and go on",
        path=path,
        error=error,
    )


def forbidden(path: Path, error: Exception) -> UserError:
    return UserError(
        "{path} can't be written ({error}); change its permissions", path=path, error=error
    )
