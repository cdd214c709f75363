"""The truth: tables of `kb.sqlite`, and connections to it."""

import sqlite3
from contextlib import closing
from pathlib import Path

from ingest.errors import Mismatch, UserError

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
            f"{path} can't be read as a knowledge base ({error}); restore a snapshot of it",
            zh=f"{path} 无法作为知识库读取（{error}）；请从快照恢复",
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
            f"{path} has schema {version}, this program knows schema {VERSION}; "
            "upgrade chatglm-rag to open it",
            zh=f"{path} 的结构版本为 {version}，本程序只认识版本 {VERSION}；请升级 chatglm-rag",
        )
    if tables and (application != APPLICATION or version != VERSION):
        raise UserError(
            f"{path} is an SQLite file but no knowledge base; name another directory",
            zh=f"{path} 是 SQLite 文件，但不是知识库；请换一个目录",
        )
    return bool(tables)
