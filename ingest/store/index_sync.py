"""Opening, catching up and making anew the two caches, always from the truth.

The file of vector codes is named, with its digest, in the truth: bytes that it doesn't vouch for
are never read. The word index vouches for itself by naming the change that it covers.
"""

import json
import secrets
import shutil
import sqlite3
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ingest.errors import UserError
from ingest.store import sqlite
from ingest.store.atomic import sync, write_whole
from ingest.store.protocol import Vectors, check_place, check_tiling, check_vectors
from ingest.store.sqlite import receipt_text, set_meta
from ingest.store.vector_index import EXACT_ROWS, Candidates
from ingest.store.word_index import Covered, Words, WordWriter, drop_others, newest
from ingest.types import Chunk, Document, Passage

KEEP_AFTER = 10_000  # rows behind the kept codes before they are written anew
SAMPLE = 5_000  # vectors that the codes' centre is computed from


# Words


def open_words(path: Path) -> Words | None:
    """The newest word index, or None where there is none that can be read."""
    found = newest(path / "words")
    try:
        return Words(found) if found else None
    except ValueError:
        return None


def reopen_words(path: Path, words: Words | None) -> Words | None:
    """`words` with what others committed; another index where a rebuild has replaced it."""
    if words is None or newest(path / "words") != words.path:
        return open_words(path)
    try:
        words.reload()
    except ValueError:
        return open_words(path)
    return words


def knows(sql: sqlite3.Connection, covered: Covered) -> bool:
    """Is this state one that the truth went through since the last rebuild?"""
    rebuilt = sqlite.meta(sql, "rebuilt")
    if covered.seq < (rebuilt if isinstance(rebuilt, int) else 0):
        return False
    if covered.seq == 0:
        return covered == Covered()
    stamp = sql.execute("SELECT stamp FROM changes WHERE seq = ?", (covered.seq,)).fetchone()
    return stamp is not None and stamp[0] == covered.stamp


def repair_words(path: Path, sql: sqlite3.Connection, words: Words | None) -> Words:
    """A word index that covers the truth, by the rows behind or from scratch."""
    words = reopen_words(path, words)
    if words is None or not knows(sql, words.covered):
        return rebuild_words(path, sql)
    now, had = sqlite.covered(sql), words.covered
    if had == now:
        return words
    try:
        with words.writer() as writer:
            for (key,) in sql.execute("SELECT key FROM removed WHERE seq > ?", (had.seq,)):
                writer.remove(key)
            for key, text in sqlite.texts_after(sql, had.last):
                writer.remove(key)
                writer.add(key, text)
            writer.commit(now)
    except UserError:  # an index that can be read, but not written any more
        return rebuild_words(path, sql)
    return words


def rebuild_words(path: Path, sql: sqlite3.Connection) -> Words:
    """A word index made from the truth alone; the old one is gone after it."""
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
    sqlite.set_meta(sql, "rebuilt", sqlite.covered(sql).seq)
    sql.execute("COMMIT")
    return Words(target)


# Vectors


def open_candidates(path: Path, sql: sqlite3.Connection, dim: int) -> Candidates | None:
    """The kept codes, if the truth vouches for them; none where they are damaged or missing."""
    kept = sqlite.meta(sql, "codes")
    if not isinstance(kept, dict):
        return None if live(sql) > EXACT_ROWS else Candidates(dim)
    try:
        data = (path / "vectors" / kept["file"]).read_bytes()
    except OSError:
        return None
    if digest(data) != kept["digest"]:
        return None
    return Candidates.load(dim, data, last=kept["last"], trained=kept["trained"])


def catch_up(candidates: Candidates, sql: sqlite3.Connection, dim: int) -> Candidates:
    """Add the rows behind; anew where most of the rows are gone from the truth by now."""
    for keys, vectors in sqlite.vectors_after(sql, candidates.last, dim):
        candidates.add(keys, vectors)
    if candidates.rows > 2 * live(sql) + KEEP_AFTER:
        return build_candidates(sql, dim)
    return candidates


def build_candidates(sql: sqlite3.Connection, dim: int) -> Candidates:
    candidates = Candidates(dim)
    last = sqlite.covered(sql).last
    rng = np.random.default_rng(0)
    picked = rng.integers(1, last + 1, 2 * SAMPLE).tolist() if last else []
    _, sample = sqlite.vectors_of(sql, picked, dim)
    count = live(sql)
    if count > EXACT_ROWS and len(sample):
        candidates.train(sample, count)
    return catch_up(candidates, sql, dim)


def live(sql: sqlite3.Connection) -> int:
    # Without a WHERE it is answered from the smallest index: 10 ms at a million rows, not 500.
    return sql.execute("SELECT count(*) FROM chunks").fetchone()[0]


def lag(sql: sqlite3.Connection, last: int) -> int:
    return sql.execute("SELECT count(*) FROM chunks WHERE key > ?", (last,)).fetchone()[0]


def codes_lag(sql: sqlite3.Connection) -> bool:
    """Are there so many rows that the kept codes lack that opening would be slow?"""
    kept = sqlite.meta(sql, "codes")
    if not isinstance(kept, dict):
        return live(sql) > EXACT_ROWS
    return lag(sql, kept["last"]) > KEEP_AFTER


def keep_candidates(
    path: Path, sql: sqlite3.Connection, candidates: Candidates | None, dim: int
) -> Candidates:
    """Up-to-date candidates, whose codes are on disk and vouched for by the truth."""
    candidates = candidates or open_candidates(path, sql, dim)
    if candidates is not None:
        candidates = catch_up(candidates, sql, dim)
    if candidates is None or candidates.rows > 2 * candidates.trained:
        candidates = build_candidates(sql, dim)  # the centre of so few rows is no longer theirs
    write_codes(path, sql, candidates)
    return candidates


def rebuild_candidates(path: Path, sql: sqlite3.Connection, dim: int) -> Candidates:
    """Candidates made from the truth alone; codes written before are gone after it."""
    candidates = build_candidates(sql, dim)
    write_codes(path, sql, candidates)
    return candidates


def write_codes(path: Path, sql: sqlite3.Connection, candidates: Candidates) -> None:
    """Keep the codes: a new file, flushed, then named in the truth; the old one goes last."""
    parent = path / "vectors"
    parent.mkdir(exist_ok=True)
    name = None
    if candidates.trained:
        data = candidates.dump()
        name = f"{secrets.token_hex(8)}.codes"
        write_whole(parent / name, data)
        kept = {"file": name, "digest": digest(data), "last": candidates.last}
        sqlite.set_meta(sql, "codes", kept | {"trained": candidates.trained})
    else:
        sql.execute("DELETE FROM meta WHERE name = 'codes'")
    for other in parent.iterdir():
        if other.name != name:
            other.unlink()


def digest(data: bytes) -> str:
    return blake2b(data, digest_size=32).hexdigest()


class LocalChange:
    """An open transaction; see `Change`. Whoever made it commits or rolls back."""

    def __init__(self, connection: sqlite3.Connection, words: WordWriter, dim: int) -> None:
        self._sql = connection
        self._words = words
        self._dim = dim
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
            (*head, receipt_text(document.receipt)),
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
            row = self._sql.execute(
                "SELECT key FROM documents WHERE id = ?", (document.id,)
            ).fetchone()
            if row is None:
                raise ValueError(f"{document.source} is added to before it is put")
            self._document = row[0], document.id
        return self._document[0]

    def _add_passages(
        self, document: int, passages: Sequence[Passage]
    ) -> dict[int, tuple[int, Passage]]:
        """{start: (key, passage)} of the passages, which must go on where the text ends."""
        (length,) = self._sql.execute(
            "SELECT length FROM documents WHERE key = ?", (document,)
        ).fetchone()
        length = check_tiling(passages, length)
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
            row = self._sql.execute(
                "SELECT key, start, end, text, label FROM passages"
                " WHERE document = ? AND start = ?",
                (document, start),
            ).fetchone()
            if row:
                places[start] = row[0], Passage(chunk.document, *row[1:])
        key, passage = places.get(start, (0, None))
        check_place(chunk, passage)
        return key

    def _add_chunk(self, document: int, passage: int, chunk: Chunk, vector: bytes) -> None:
        places = json.dumps(chunk.places, ensure_ascii=False)
        place = chunk.start, chunk.end, places, chunk.context
        cursor = self._sql.execute(
            "INSERT INTO chunks (document, passage, start, end, places, context, digest, vector)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (document, passage, *place, chunk.digest, vector),
        )
        self._words.add(cursor.lastrowid or 0, chunk.indexed)
