"""Opens the two indexes, catches them up and rebuilds them, always from the primary data.

The primary data names the file of vector codes and its digest: other bytes are never read. The word
index itself names the change that it covers.
"""

import json
import secrets
import shutil
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ingest.errors import UserError
from ingest.store import sqlite
from ingest.store.atomic import sync, write_whole
from ingest.store.protocol import Vectors, check_place, check_tiling, check_vectors
from ingest.store.sqlite import count, set_meta
from ingest.store.vector_index import EXACT_ROWS, Candidates
from ingest.store.word_index import Covered, Words, WordWriter, drop_others, newest
from ingest.types import Chunk, Document, Passage

KEEP_AFTER = 10_000  # rows that the stored codes may lack before they are written again
SAMPLE = 5_000  # vectors from which the codes' centre is computed


# Words


def open_words(path: Path) -> Words | None:
    """The newest word index, or None if there is none that can be read."""
    folder = newest(path / "words")
    try:
        return Words(folder) if folder else None
    except ValueError:
        return None


def reopen_words(path: Path, words: Words | None) -> Words | None:
    """`words` with the commits of others, or another index if a rebuild has replaced it."""
    try:
        if words is not None and newest(path / "words") == words.path:
            words.reload()
            return words
    except ValueError:
        pass
    return open_words(path)


def knows(sql: sqlite3.Connection, covered: Covered) -> bool:
    """Whether the primary data had this state at some time since the last rebuild."""
    rebuilt = sqlite.meta(sql, "rebuilt")
    if covered.seq < (rebuilt if isinstance(rebuilt, int) else 0):
        return False
    if covered.seq == 0:
        return covered == Covered()
    stamp = sql.execute("SELECT stamp FROM changes WHERE seq = ?", (covered.seq,)).fetchone()
    return stamp is not None and stamp[0] == covered.stamp


def repair_words(path: Path, sql: sqlite3.Connection, words: Words | None) -> Words:
    """A word index that covers the primary data: the rows that it lacks are added, or it is rebuilt."""
    words = reopen_words(path, words)
    if words is None or not knows(sql, words.covered):
        return rebuild_words(path, sql)
    now, before = sqlite.covered(sql), words.covered
    if before == now:
        return words
    try:
        with words.writer() as writer:
            for (key,) in sql.execute("SELECT key FROM removed WHERE seq > ?", (before.seq,)):
                writer.remove(key)
            for key, text in sqlite.texts_after(sql, before.last):
                writer.remove(key)
                writer.add(key, text)
            writer.commit(now)
    except UserError:  # the index can be read, but no longer written
        return rebuild_words(path, sql)
    return words


def rebuild_words(path: Path, sql: sqlite3.Connection) -> Words:
    """A new word index; the old one is removed."""
    parent = path / "words"
    parent.mkdir(exist_ok=True)
    old = newest(parent)
    target = parent / str(int(old.name) + 1 if old else 1)
    building = parent / f"{target.name}.new"
    shutil.rmtree(building, ignore_errors=True)
    fresh = Words(building, create=True)
    with fresh.writer() as writer:
        for key, text in sqlite.texts_after(sql, 0):
            writer.add(key, text)
        writer.commit(sqlite.covered(sql))
    building.rename(target)
    sync(parent)
    drop_others(target)
    sql.execute("BEGIN IMMEDIATE")
    sql.execute("DELETE FROM removed")
    set_meta(sql, "rebuilt", sqlite.covered(sql).seq)
    sql.execute("COMMIT")
    return Words(target)


# Vectors


def open_candidates(path: Path, sql: sqlite3.Connection, dim: int) -> Candidates | None:
    """The stored codes, or None if they are missing or their digest is not the expected one."""
    codes = sqlite.meta(sql, "codes")
    if not isinstance(codes, dict):
        return None if count(sql, "chunks") > EXACT_ROWS else Candidates(dim)
    try:
        data = (path / "vectors" / codes["file"]).read_bytes()
    except OSError:
        return None
    if digest(data) != codes["digest"]:
        return None
    return Candidates.load(dim, data, last=codes["last"], trained=codes["trained"])


def catch_up(candidates: Candidates, sql: sqlite3.Connection, dim: int) -> Candidates:
    """Add the missing rows; build new candidates if most of the old rows have been removed."""
    for keys, vectors in sqlite.vectors_after(sql, candidates.last, dim):
        candidates.add(keys, vectors)
    stale = candidates.rows > 2 * count(sql, "chunks") + KEEP_AFTER
    return build_candidates(sql, dim) if stale else candidates


def build_candidates(sql: sqlite3.Connection, dim: int) -> Candidates:
    candidates = Candidates(dim)
    last = sqlite.covered(sql).last
    rng = np.random.default_rng(0)
    keys = rng.integers(1, last + 1, 2 * SAMPLE).tolist() if last else []
    _, sample = sqlite.vectors_of(sql, keys, dim)
    rows = count(sql, "chunks")
    if rows > EXACT_ROWS and len(sample):
        candidates.train(sample, rows)
    return catch_up(candidates, sql, dim)


def codes_lag(sql: sqlite3.Connection) -> bool:
    """Whether the stored codes lack so many rows that opening would be slow."""
    codes = sqlite.meta(sql, "codes")
    if not isinstance(codes, dict):
        return count(sql, "chunks") > EXACT_ROWS
    query = "SELECT count(*) FROM chunks WHERE key > ?"
    return sql.execute(query, (codes["last"],)).fetchone()[0] > KEEP_AFTER


def update_codes(
    path: Path, sql: sqlite3.Connection, candidates: Candidates | None, dim: int
) -> Candidates:
    """Up-to-date candidates, whose codes are stored."""
    candidates = candidates or open_candidates(path, sql, dim)
    if candidates is not None:
        candidates = catch_up(candidates, sql, dim)
    if candidates is None or candidates.rows > 2 * candidates.trained:
        return rebuild_candidates(path, sql, dim)  # their centre was computed from too few rows
    write_codes(path, sql, candidates)
    return candidates


def rebuild_candidates(path: Path, sql: sqlite3.Connection, dim: int) -> Candidates:
    """New candidates; codes that were stored before are removed."""
    candidates = build_candidates(sql, dim)
    write_codes(path, sql, candidates)
    return candidates


def write_codes(path: Path, sql: sqlite3.Connection, candidates: Candidates) -> None:
    """Store the codes: a new file, flushed, then named in the primary data; the old one goes last."""
    parent = path / "vectors"
    parent.mkdir(exist_ok=True)
    name = None
    if candidates.trained:
        data = candidates.dump()
        name = f"{secrets.token_hex(8)}.codes"
        write_whole(parent / name, data)
        codes = {"file": name, "digest": digest(data), "last": candidates.last}
        set_meta(sql, "codes", codes | {"trained": candidates.trained})
    else:
        sql.execute("DELETE FROM meta WHERE name = 'codes'")
    for other in parent.iterdir():
        if other.name != name:
            other.unlink()


def digest(data: bytes) -> str:
    return blake2b(data, digest_size=32).hexdigest()


class LocalChange:
    """An open transaction; see `Change`. Its creator commits it or rolls it back."""

    def __init__(self, connection: sqlite3.Connection, words: WordWriter, dim: int) -> None:
        self._sql, self._words, self._dim = connection, words, dim
        self._document = 0, ""  # key and id of the document that `add` last wrote to
        self.erased = False
        self._sql.execute("INSERT INTO changes (stamp) VALUES (?)", (secrets.randbits(62),))

    def remove(self, source: str) -> bool:
        query = "SELECT c.key FROM chunks c JOIN documents d ON d.key = c.document WHERE source = ?"
        for (key,) in self._sql.execute(query, (source,)):
            self._words.remove(key)
        gone = self._sql.execute("DELETE FROM documents WHERE source = ?", (source,)).rowcount
        self.erased |= bool(gone)
        self._document = 0, ""
        return bool(gone)

    def put(self, document: Document) -> None:
        self.remove(document.source)
        head = document.id, document.source, document.title, document.digest
        self._sql.execute(
            "INSERT INTO documents (id, source, title, digest, receipt) VALUES (?, ?, ?, ?, ?)",
            (*head, json.dumps(asdict(document.report), ensure_ascii=False)),
        )

    def add(
        self,
        document: Document,
        passages: Sequence[Passage],
        chunks: Sequence[Chunk],
        vectors: Vectors,
    ) -> None:
        check_vectors(document, chunks, vectors, self._dim)
        key = self._document_key(document)
        places = self._add_passages(key, passages)
        stored = np.ascontiguousarray(vectors, "<f2")
        for chunk, vector in zip(chunks, stored, strict=True):
            self._add_chunk(key, self._passage_of(key, chunk, places), chunk, vector.tobytes())

    def set_meta(self, name: str, value: object) -> None:
        set_meta(self._sql, name, value)

    def _document_key(self, document: Document) -> int:
        if self._document[1] != document.id:
            query = "SELECT key FROM documents WHERE id = ?"
            row = self._sql.execute(query, (document.id,)).fetchone()
            if row is None:
                raise ValueError(f"{document.source} is added to before it is put")
            self._document = row[0], document.id
        return self._document[0]

    def _add_passages(
        self, document: int, passages: Sequence[Passage]
    ) -> dict[int, tuple[int, Passage]]:
        """{start: (key, passage)} of the passages, which must continue where the text ends."""
        query = "SELECT length FROM documents WHERE key = ?"
        length = check_tiling(passages, self._sql.execute(query, (document,)).fetchone()[0])
        places = {}
        for passage in passages:
            cursor = self._sql.execute(
                "INSERT INTO passages (document, start, end, label, text) VALUES (?, ?, ?, ?, ?)",
                (document, passage.start, passage.end, passage.label, passage.text),
            )
            places[passage.start] = cursor.lastrowid or 0, passage
        self._sql.execute("UPDATE documents SET length = ? WHERE key = ?", (length, document))
        return places

    def _passage_of(
        self, document: int, chunk: Chunk, places: dict[int, tuple[int, Passage]]
    ) -> int:
        start = chunk.passage[0]
        if start not in places:
            query = (
                "SELECT key, start, end, text, label FROM passages WHERE document = ? AND start = ?"
            )
            if row := self._sql.execute(query, (document, start)).fetchone():
                places[start] = row[0], Passage(chunk.document, *row[1:])
        key, passage = places.get(start, (0, None))
        check_place(chunk, passage)
        return key

    def _add_chunk(self, document: int, passage: int, chunk: Chunk, vector: bytes) -> None:
        places = json.dumps(chunk.places, ensure_ascii=False)
        cursor = self._sql.execute(
            "INSERT INTO chunks (document, passage, start, end, places, context, digest, vector)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                document,
                passage,
                chunk.start,
                chunk.end,
                places,
                chunk.context,
                chunk.digest,
                vector,
            ),
        )
        self._words.add(cursor.lastrowid or 0, chunk.indexed)
