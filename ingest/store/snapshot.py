"""A knowledge base as one file, and back.

A snapshot is a zip of the truth and the user's settings with their SHA-256; caches are made anew.
"""

import json
import os
import shutil
import sqlite3
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from hashlib import file_digest, sha256
from pathlib import Path

import numpy as np

from ingest.errors import UserError
from ingest.store import sqlite
from ingest.store.atomic import sync
from ingest.store.sqlite import VERSION, check_schema, connect, failures_named, same_schema
from ingest.store.vector_index import Candidates
from ingest.store.word_index import Words

TRUTH, SETTINGS, MANIFEST = "kb.sqlite", "rag.toml", "manifest.json"
MANIFEST_LIMIT = 64 * 1024  # bytes
PIECE = 1024 * 1024


def snapshot(directory: Path, archive: Path) -> None:
    """Write the knowledge base at `directory` into `archive`, as it was at one moment.

    Others may read and write it meanwhile. An existing `archive` is replaced at the end.
    """
    if not (directory / TRUTH).is_file():
        raise UserError(
            "no knowledge base at {directory}; name the directory that holds {truth}",
            directory=directory,
            truth=TRUTH,
        )
    archive.parent.mkdir(parents=True, exist_ok=True)
    with failures_named(archive), tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        copy = Path(scratch, TRUTH)
        with closing(connect(directory / TRUTH)) as sql:
            check_schema(sql, directory / TRUTH)
            sql.execute("VACUUM INTO ?", (str(copy),))
        with closing(sqlite3.connect(copy)) as sql, sql:
            sql.execute("DELETE FROM meta WHERE name = 'codes'")
        members = {TRUTH: copy}
        if (directory / SETTINGS).is_file():
            members[SETTINGS] = directory / SETTINGS
        built = Path(scratch, "archive")
        write_archive(built, members)
        built.replace(archive)
    sync(archive.parent)


def write_archive(target: Path, members: Mapping[str, Path]) -> None:
    manifest = {"schema": VERSION, "sha256": {}}
    with target.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, path in members.items():
                with path.open("rb") as source:
                    manifest["sha256"][name] = file_digest(source, "sha256").hexdigest()
                archive.write(path, name)
            archive.writestr(MANIFEST, json.dumps(manifest))
        file.flush()
        os.fsync(file.fileno())


def restore(archive: Path, directory: Path) -> None:
    """Make `directory`, which must not exist or be empty, from a snapshot. All or nothing."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(
            "{directory} is not empty; restore into a new directory", directory=directory
        )
    if not archive.is_file():
        raise UserError(
            "no snapshot at {archive}; name a file that rag kb snapshot wrote", archive=archive
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    with failures_named(directory), tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        built = Path(scratch, "kb")
        built.mkdir()
        try:
            with zipfile.ZipFile(archive) as opened:
                extract(opened, built)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, KeyError) as error:
            raise refused(archive, f"it is not whole ({error})") from error
        check_truth(built / TRUTH, archive)
        sync(built)
        if directory.exists():
            directory.rmdir()
        built.rename(directory)
    sync(directory.parent)


def extract(archive: zipfile.ZipFile, target: Path) -> None:
    """Copy the members that a snapshot has, and no others, checking their digests.

    Names are compared, never joined from the archive, so none can lead outside `target`.
    """
    names = [member.filename for member in archive.infolist()]
    if len(set(names)) != len(names) or not {TRUTH, MANIFEST} <= set(names) <= {
        TRUTH, SETTINGS, MANIFEST
    }:  # fmt: skip
        raise refused(archive.filename, f"it holds {names[:5]}")
    digests = read_manifest(archive)
    free = shutil.disk_usage(target).free
    for name in sorted(set(names) - {MANIFEST}):
        member = archive.getinfo(name)
        if member.compress_type != zipfile.ZIP_STORED or member.file_size > free:
            size = f"{member.file_size} bytes, {free} free"
            raise refused(archive.filename, f"{name} is packed or too large ({size})")
        digest = sha256()
        with archive.open(member) as source, (target / name).open("xb") as file:
            while piece := source.read(PIECE):
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if digests.get(name) != digest.hexdigest():
            raise refused(archive.filename, f"{name} has another digest than noted in it")


def read_manifest(archive: zipfile.ZipFile) -> Mapping[str, str]:
    member = archive.getinfo(MANIFEST)
    broken = refused(archive.filename, f"its {MANIFEST} can't be read")
    if member.file_size > MANIFEST_LIMIT or member.compress_type != zipfile.ZIP_STORED:
        raise broken
    try:
        digests = json.loads(archive.read(member))["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise broken from error
    if not isinstance(digests, dict):
        raise broken
    return digests


def refused(what: object, reason: str) -> UserError:
    return UserError(
        "{what} is no snapshot to restore: {reason}; use another one", what=what, reason=reason
    )


def check_truth(path: Path, archive: Path) -> None:
    """Raises `UserError` unless `path`, out of `archive`, is an intact knowledge base of a schema known here."""
    with closing(connect(path)) as sql:
        if not check_schema(sql, path):
            raise refused(archive, "it is empty")
        if not same_schema(sql):
            raise refused(archive, "its tables are not those of a knowledge base")
        found = sql.execute("PRAGMA quick_check").fetchone()[0]
        if found != "ok":
            raise refused(archive, f"it is damaged ({found})")
        sql.execute("PRAGMA journal_mode=WAL")


UNIT = 5e-3  # how far from 1 a unit vector's length may be after float16

QUESTIONS = {
    "passages don't tile the text of {}": """
        SELECT DISTINCT d.source FROM documents d JOIN (
            SELECT document, start, lag(end, 1, 0)
            OVER (PARTITION BY document ORDER BY start) AS due FROM passages
        ) p ON p.document = d.key WHERE p.start != p.due
        UNION SELECT source FROM documents d WHERE length !=
            (SELECT coalesce(max(end), 0) FROM passages WHERE document = d.key)""",
    "a passage of {} is not as long as its offsets say": """
        SELECT DISTINCT d.source FROM documents d JOIN passages p ON p.document = d.key
        WHERE length(CAST(p.text AS BLOB)) < p.end - p.start""",
    "a chunk of {} is not inside its passage": """
        SELECT DISTINCT d.source FROM chunks c JOIN passages p ON p.key = c.passage
        JOIN documents d ON d.key = c.document
        WHERE c.start < p.start OR c.end > p.end OR c.document != p.document""",
}


def findings(sql: sqlite3.Connection, candidates: Candidates, words: Words, dim: int) -> list[str]:
    """A line for each thing wrong; empty where all is well. Reads the whole truth."""
    return [*truth(sql, dim), *caches(sql, candidates, words)]


def truth(sql: sqlite3.Connection, dim: int) -> Iterator[str]:
    for (line,) in sql.execute("PRAGMA integrity_check"):
        if line != "ok":
            yield f"kb.sqlite: {line}"
    for table, row, *_ in sql.execute("PRAGMA foreign_key_check"):
        yield f"kb.sqlite: row {row} of {table} belongs to nothing"
    for finding, query in QUESTIONS.items():
        for (source,) in sql.execute(query):
            yield f"kb.sqlite: {finding.format(source)}"
    wrong = sql.execute("SELECT count(*) FROM chunks WHERE length(vector) != ?", (2 * dim,))
    if count := wrong.fetchone()[0]:
        yield f"kb.sqlite: {count} vectors are not {dim} wide"
        return
    for keys, vectors in sqlite.vectors_after(sql, 0, dim):
        lengths = np.linalg.norm(vectors, axis=1)
        off = ~(np.abs(lengths - 1) < UNIT)
        if off.any():
            yield f"kb.sqlite: {off.sum()} vectors from key {keys[off][0]} on aren't of length 1"


def caches(sql: sqlite3.Connection, candidates: Candidates, words: Words) -> Iterator[str]:
    live = {key for (key,) in sql.execute("SELECT key FROM chunks")}
    lacking = live - set(candidates.keys().tolist())
    if lacking:
        yield f"vectors: {len(lacking)} chunks are missing; run: rag kb rebuild"
    if words.covered != sqlite.covered(sql):
        yield f"words: the index covers {words.covered.seq}, not the newest change"
    indexed = words.keys()
    if indexed != live:
        lost, extra = len(live - indexed), len(indexed - live)
        yield f"words: {lost} chunks are missing, {extra} too many; run: rag kb rebuild"
