"""Snapshots, and the check of a knowledge base.

A snapshot is a zip of the primary data and the user's settings. The checksums of the zip, and the check of
SQLite, show damage.
"""

import shutil
import sqlite3
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from ingest.errors import UserError
from ingest.i18n import Translatable
from ingest.store import sqlite
from ingest.store.atomic import new_folder, sync
from ingest.store.protocol import UNIT
from ingest.store.sqlite import check_schema, connect, failures_named, same_schema
from ingest.store.vector_index import Candidates
from ingest.store.word_index import Words

DATABASE, SETTINGS = "kb.sqlite", "rag.toml"
MANIFEST = "manifest.json"  # earlier versions added it; nothing reads it


def snapshot(directory: Path, archive: Path) -> None:
    """Write the state of the knowledge base at `directory` at one moment into `archive`; others may
    read and write it meanwhile. An existing `archive` is replaced at the end."""
    if not (directory / DATABASE).is_file():
        raise UserError(
            "no knowledge base at {directory}; name the directory that holds kb.sqlite", directory=directory
        )
    archive.parent.mkdir(parents=True, exist_ok=True)
    with failures_named(archive), tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        copy = Path(scratch, DATABASE)
        with closing(connect(directory / DATABASE)) as sql:
            check_schema(sql, directory / DATABASE)
            sql.execute("VACUUM INTO ?", (str(copy),))
        with closing(sqlite3.connect(copy)) as sql, sql:
            sql.execute("DELETE FROM meta WHERE name = 'codes'")
        new = Path(scratch, "archive")
        with zipfile.ZipFile(new, "w", zipfile.ZIP_STORED) as members:
            for path in filter(Path.is_file, (copy, directory / SETTINGS)):
                members.write(path, path.name)
        sync(new)
        new.replace(archive)
    sync(archive.parent)


def restore(archive: Path, directory: Path) -> None:
    """Create `directory`, which must be empty or not exist, from a snapshot; all of it or nothing."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError("{path} is not empty; restore into a new directory", path=directory)
    if not archive.is_file():
        raise UserError("no snapshot at {archive}; name a file that rag kb snapshot wrote", archive=archive)
    with new_folder(directory) as new, failures_named(directory):
        try:
            with zipfile.ZipFile(archive) as members:
                _extract(members, new)
            _check_database(new / DATABASE, archive)
        except sqlite3.OperationalError:  # of the disk, not of the archive
            raise
        except (zipfile.BadZipFile, NotImplementedError, EOFError, KeyError, sqlite3.DatabaseError) as error:
            raise _refusal(archive, Translatable("it is not whole ({why})", why=error)) from error


def _extract(archive: zipfile.ZipFile, target: Path) -> None:
    """Copy the members of a snapshot, and no others. Names are compared, never joined from the archive,
    so none can lead outside `target`. Raises `BadZipFile` if a checksum is wrong."""
    names = archive.namelist()
    unknown = set(names) - {DATABASE, SETTINGS, MANIFEST}
    if unknown or len(set(names)) != len(names) or DATABASE not in names:
        raise _refusal(archive.filename, Translatable("its members are {names}", names=names[:5]))
    for name in sorted(set(names) - {MANIFEST}):
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:  # a stored one can't be a bomb
            raise _refusal(archive.filename, Translatable("{name} is compressed", name=name))
        with archive.open(name) as source, (target / name).open("xb") as file:
            shutil.copyfileobj(source, file)


def _refusal(path: object, reason: Translatable) -> UserError:
    return UserError(
        "{path} is not a snapshot that can be restored: {reason}; use another one", path=path, reason=reason
    )


def _check_database(path: Path, archive: Path) -> None:
    """Raises `UserError` unless `path`, extracted from `archive`, is an intact knowledge base."""
    with closing(connect(path)) as sql:
        if not check_schema(sql, path):
            raise _refusal(archive, Translatable("it is empty"))
        if not same_schema(sql):
            raise _refusal(archive, Translatable("its tables are not those of a knowledge base"))
        result = sql.execute("PRAGMA quick_check").fetchone()[0]
        if result != "ok":
            raise _refusal(archive, Translatable("it is damaged ({why})", why=result))
        sql.execute("PRAGMA journal_mode=WAL")


def findings(sql: sqlite3.Connection, candidates: Candidates, words: Words, dim: int) -> list[str]:
    """A message for each fault; empty if there is none. Reads all of the primary data."""
    return [*_data_findings(sql, dim), *_index_findings(sql, candidates, words)]


def _data_findings(sql: sqlite3.Connection, dim: int) -> Iterator[Translatable]:
    for (line,) in sql.execute("PRAGMA integrity_check"):
        if line != "ok":
            yield Translatable("kb.sqlite: {line}", line=line)
    for name, row, *_ in sql.execute("PRAGMA foreign_key_check"):
        yield Translatable("kb.sqlite: row {row} of {table} belongs to nothing", row=row, table=name)
    wrong = sql.execute("SELECT count(*) FROM chunks WHERE length(vector) != ?", (2 * dim,))
    if count := wrong.fetchone()[0]:
        yield Translatable("kb.sqlite: {count} vectors are not {dim} wide", count=count, dim=dim)
        return
    for keys, vectors in sqlite.vectors_after(sql, 0, dim):
        off = ~(np.abs(np.linalg.norm(vectors, axis=1) - 1) < UNIT)
        if off.any():
            yield Translatable(
                "kb.sqlite: {count} vectors from key {key} on aren't of length 1",
                count=int(off.sum()),
                key=int(keys[off][0]),
            )


def _index_findings(sql: sqlite3.Connection, candidates: Candidates, words: Words) -> Iterator[Translatable]:
    live = {key for (key,) in sql.execute("SELECT key FROM chunks")}
    if count := len(live - set(candidates.keys().tolist())):
        yield Translatable("vectors: {count} chunks are missing; run: rag kb rebuild", count=count)
    if words.covered != sqlite.covered(sql):
        seq = words.covered.seq
        yield Translatable("words: the index covers change {seq}, not the newest one", seq=seq)
    indexed = words.keys()
    if indexed != live:
        yield Translatable(
            "words: {lost} chunks are missing, {extra} too many; run: rag kb rebuild",
            lost=len(live - indexed),
            extra=len(indexed - live),
        )
