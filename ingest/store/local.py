"""The store in a directory: `kb.sqlite` is the primary data, `vectors/` and `words/` are its indexes."""

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ingest.errors import Absent, Busy, UserError
from ingest.normalize import Field, Terms
from ingest.store import index_sync, protocol, sqlite
from ingest.store.atomic import disk_usage, scratch, writing
from ingest.store.milvus import MilvusAddress, open_milvus
from ingest.store.protocol import Identity, Info, Ranking, Vectors, Within
from ingest.store.snapshot import DATABASE, findings
from ingest.store.sqlite import AMONG, check_schema, connect, create_schema, failures_named
from ingest.store.vector_index import Candidates, Keys, stack
from ingest.store.word_index import Words, WordWriter
from ingest.types import Chunk, Document, DocumentPart, ParseReport, Passage

CHUNKS = (
    "SELECT c.key, d.id, d.source, d.title, c.places, c.context, c.start, c.end, p.text,"
    " p.start, p.end FROM chunks c JOIN passages p ON p.key = c.passage"
    " JOIN documents d ON d.key = c.document"
)


def open_store(path: Path | MilvusAddress, *, create: Identity | None = None) -> protocol.Store:
    """The knowledge base at `path`; `create`, an embedder, makes one if there is none. Raises
    `Absent` if there is none, and `Mismatch` if another embedder made its vectors."""
    if isinstance(path, MilvusAddress):
        return open_milvus(path, create=create)
    database = path / DATABASE
    if create is None and not database.is_file():
        raise Absent("no knowledge base at {path}; make one: rag ingest PATH... --kb {path}", path=path)
    with failures_named(path):
        path.mkdir(parents=True, exist_ok=True)
        connection = connect(database)
        try:
            if not check_schema(connection, database):
                _initialise(connection, path, create)
            store = LocalStore(path, connection)
            if create:
                protocol.check_identity(str(path), store.identity, create)
        except BaseException:
            connection.close()
            raise
    return store


def _initialise(connection: sqlite3.Connection, path: Path, identity: Identity | None) -> None:
    file = path / DATABASE
    if identity is None:
        raise UserError(
            "{file} is empty; remove it and run: rag ingest PATH... --kb {path}", file=file, path=path
        )
    with writing(path / "lock", reason="making it", timeout=10):
        if check_schema(connection, file):  # another process was faster
            return
        create_schema(connection)
        embedder = {"name": identity.name, "dim": identity.dim, "options": dict(identity.options)}
        sqlite.set_meta(connection, "embedder", embedder)
        sqlite.set_meta(connection, "created", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        connection.execute("COMMIT")


class LocalChange:
    """An open transaction; see `Change`. Its creator commits it or rolls it back."""

    def __init__(self, connection: sqlite3.Connection, words: WordWriter, dim: int) -> None:
        self._sql, self._words, self._dim = connection, words, dim
        self.erased = False
        self._sql.execute("INSERT INTO changes (stamp) VALUES (?)", (secrets.randbits(62),))

    def remove(self, source: str) -> bool:
        query = "SELECT c.key FROM chunks c JOIN documents d ON d.key = c.document WHERE source = ?"
        for (key,) in self._sql.execute(query, (source,)):
            self._words.remove(key)
        gone = self._sql.execute("DELETE FROM documents WHERE source = ?", (source,)).rowcount
        self.erased |= bool(gone)
        return bool(gone)

    def put(self, document: Document) -> None:
        self.remove(document.source)
        head = document.id, document.source, document.title, document.digest
        self._sql.execute(
            "INSERT INTO documents (id, source, title, digest, receipt) VALUES (?, ?, ?, ?, ?)",
            (*head, json.dumps(document.report.to_json(), ensure_ascii=False)),
        )

    def add(self, part: DocumentPart) -> None:
        vectors, document = protocol.checked_vectors(part, self._dim), part.document
        query = "SELECT key, length FROM documents WHERE id = ?"
        row = self._sql.execute(query, (document.id,)).fetchone()
        if row is None:
            raise ValueError(f"{document.source} is added to before it is put")
        key, length = row
        length = protocol.check_tiling(part.passages, length)
        for passage in part.passages:
            place = key, passage.start, passage.end, passage.label, passage.text
            self._sql.execute(
                "INSERT INTO passages (document, start, end, label, text) VALUES (?, ?, ?, ?, ?)", place
            )
        self._sql.execute("UPDATE documents SET length = ? WHERE key = ?", (length, key))
        for chunk, vector in zip(part.chunks, np.ascontiguousarray(vectors, "<f2"), strict=True):
            self._add_chunk(key, chunk, vector.tobytes())

    def _add_chunk(self, document: int, chunk: Chunk, vector: bytes) -> None:
        query = "SELECT key, start, end, text, label FROM passages WHERE document = ? AND start = ?"
        row = self._sql.execute(query, (document, chunk.passage[0])).fetchone()
        protocol.check_place(chunk, row and Passage(chunk.document, *row[1:]))
        places = json.dumps(chunk.places, ensure_ascii=False)
        own = chunk.start, chunk.end, places, chunk.context, chunk.digest, vector
        cursor = self._sql.execute(
            "INSERT INTO chunks (document, passage, start, end, places, context, digest, vector)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (document, row[0], *own),
        )
        self._words.add(cursor.lastrowid or 0, document, chunk.indexed)

    def set_meta(self, name: str, value: object) -> None:
        sqlite.set_meta(self._sql, name, value)


FEW = 20_000  # chunks of a subset whose vectors are kept in memory, each of them compared


@dataclass(frozen=True, slots=True)
class Subset:
    """The chunks of some documents."""

    documents: list[int]  # keys
    keys: Keys  # of the chunks, sorted
    vectors: Vectors | None  # None if they are more than FEW

    @classmethod
    def of(cls, sql: sqlite3.Connection, within: tuple[str, ...], dim: int) -> "Subset":
        ids = json.dumps(within)
        documents = [key for (key,) in sql.execute(f"SELECT key FROM documents WHERE id {AMONG}", (ids,))]
        query = f"SELECT key FROM chunks WHERE document {AMONG} ORDER BY key"
        found = [key for (key,) in sql.execute(query, (json.dumps(documents),))]
        vectors = sqlite.vectors_of(sql, found, dim)[1] if len(found) <= FEW else None
        return cls(documents, np.array(found, np.int64), vectors)

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Whether each of the keys is one of the chunks."""
        return self.keys[np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)] == keys


class LocalStore(AbstractContextManager["LocalStore"]):
    """A `Store` in a directory, from `open_store`. Threads that read may share it."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path, self.location = path, str(path)
        self._sql = connection
        self._lock = threading.RLock()
        embedder = sqlite.meta(connection, "embedder")
        assert isinstance(embedder, dict)
        self.identity = Identity(**embedder)
        self._words = index_sync.open_words(path)
        self._candidates: Candidates | None = None
        self._version = -1  # SQLite's data version that both indexes cover
        self._last_subset: tuple[object, Subset] | None = None  # with the state that it is of

    @contextmanager
    def change(self, *, reason: str = "", timeout: float = 10.0) -> Iterator[LocalChange]:
        with failures_named(self.path), self._writer(reason, timeout) as sql:
            with self._lock:
                words = self._words = index_sync.repair_words(self.path, sql, self._words)
            sql.execute("BEGIN IMMEDIATE")
            with words.writer() as writer:
                change = LocalChange(sql, writer, self.identity.dim)
                yield change
                # The primary data first: an index may be behind it, but never ahead of it.
                sql.execute("COMMIT")
                writer.commit(sqlite.covered(sql))
            if change.erased:
                sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            with self._lock:
                candidates, dim = self._candidates, self.identity.dim
                self._candidates = index_sync.update_codes(self.path, sql, candidates, dim)

    def rebuild(self) -> None:
        reason = "rebuilding its indexes"
        with failures_named(self.path), self._writer(reason, 10.0) as sql, self._lock:
            self._words = index_sync.rebuild_words(self.path, sql)
            self._candidates = index_sync.rebuild_candidates(self.path, sql, self.identity.dim)
            sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def _writer(self, reason: str, timeout: float) -> Iterator[sqlite3.Connection]:
        """A connection of its own, while the writer lock is held."""
        with (
            writing(self.path / "lock", reason=reason, timeout=timeout),
            closing(connect(self.path / DATABASE)) as sql,
        ):
            yield sql

    def _refresh(self) -> tuple[Candidates, Words]:
        """Bring both indexes up to the last commit; skip the words if another writer holds the lock."""
        with self._lock:
            (version,) = self._sql.execute("PRAGMA data_version").fetchone()
            words, candidates = self._words, self._candidates
            if version == self._version and words is not None and candidates is not None:
                return candidates, words
            self._candidates = self._current_candidates()
            self._words = self._current_words()
            if self._words.covered == sqlite.covered(self._sql):
                self._version = version
            return self._candidates, self._words

    def _current_candidates(self) -> Candidates:
        sql, dim = self._sql, self.identity.dim
        candidates = self._candidates or index_sync.open_candidates(self.path, sql, dim)
        if candidates is not None:
            return index_sync.catch_up(candidates, sql, dim)
        try:
            with self._writer("catching up", 0.0) as own:
                return index_sync.rebuild_candidates(self.path, own, dim)
        except (Busy, OSError):  # OSError: it can only be read
            return index_sync.build_candidates(sql, dim)

    def _current_words(self) -> Words:
        words = index_sync.open_words(self.path, self._words)
        if words is not None and words.covered == sqlite.covered(self._sql):
            return words
        usable = words is not None and index_sync.knows(self._sql, words.covered)
        try:
            # An active writer commits the words right after the data, so readers don't wait for it.
            with self._writer("catching up", 0.0 if usable else 10.0) as sql:
                return index_sync.repair_words(self.path, sql, words)
        except (Busy, OSError) as problem:
            if words is not None and usable:
                return words
            if isinstance(problem, Busy):
                raise
            return index_sync.build_words(scratch(self) / "words", self._sql)  # it can only be read

    def search_dense(self, vector: Vectors, k: int, *, within: Within = None) -> Ranking:
        with self._lock:
            candidates, _ = self._refresh()
            found, stored = self._nearest(candidates, vector, k, self._subset(within))
        scores = stored @ vector
        best = np.argsort(-scores, kind="stable")[:k]
        best = best[scores[best] > 0]
        return Ranking(found[best], scores[best])

    def _nearest(
        self, candidates: Candidates, vector: Vectors, k: int, subset: "Subset | None"
    ) -> tuple[Keys, Vectors]:
        """The keys of chunks that may be the `k` nearest, and their vectors."""
        if subset and subset.vectors is not None:
            return subset.keys, subset.vectors
        n = candidates.enough(k)
        wanted = n if subset else k
        while True:
            keys = candidates.search(vector, n)
            if subset:
                keys = keys[subset.contains(keys)]
            found = sqlite.vectors_of(self._sql, keys.tolist(), self.identity.dim)
            if len(found[0]) >= wanted or n >= candidates.rows:
                return found
            n *= 4  # many of the nearest have been removed, or are in other documents

    def search_words(self, query: Terms, k: int, *, field: Field = "words", within: Within = None) -> Ranking:
        _, words = self._refresh()
        subset = self._subset(within)
        documents = subset.documents if subset else None
        keys, scores = words.search(query.of(field), k, field=field, documents=documents)
        query_keys = f"SELECT key FROM chunks WHERE key {AMONG}"
        found = self._sql.execute(query_keys, (json.dumps(keys.tolist()),)).fetchall()
        there = np.isin(keys, np.array([key for (key,) in found], np.int64))
        return Ranking(keys[there], scores[there])

    def _subset(self, within: Within) -> "Subset | None":
        """What a search within these documents needs; that of the last search is kept."""
        if within is None:
            return None
        with self._lock:
            state = self._one("PRAGMA data_version"), within
            if self._last_subset is None or self._last_subset[0] != state:
                self._last_subset = state, Subset.of(self._sql, within, self.identity.dim)
            return self._last_subset[1]

    def doc_freq(self, terms: Sequence[str], *, field: Field = "words") -> list[int]:
        return self._refresh()[1].doc_freq(terms, field=field)

    def _one(self, query: str, *arguments: object) -> tuple | None:
        return self._sql.execute(query, arguments).fetchone()

    def known_vectors(self, digests: Sequence[bytes]) -> dict[bytes, Vectors]:
        query = "SELECT vector FROM chunks WHERE digest = ? LIMIT 1"
        rows = ((digest, self._one(query, digest)) for digest in set(digests))
        return {digest: stack(row, self.identity.dim)[0] for digest, row in rows if row}

    def vectors(self, keys: Sequence[int] | Keys) -> Vectors:
        wanted = np.asarray(keys, np.int64)
        found, stored = sqlite.vectors_of(self._sql, wanted.tolist(), self.identity.dim)
        result = np.zeros((len(wanted), self.identity.dim), np.float32)
        there = np.isin(wanted, found)
        result[there] = stored[np.searchsorted(found, wanted[there])]
        return result

    def chunks(self, keys: Sequence[int] | Keys) -> dict[int, Chunk]:
        wanted = np.asarray(keys, np.int64).tolist()
        rows = self._sql.execute(f"{CHUNKS} WHERE c.key {AMONG}", (json.dumps(wanted),))
        found = dict(map(_chunk, rows))
        return {key: found[key] for key in wanted if key in found}

    def chunks_within(self, passage: Passage) -> list[Chunk]:
        where = "WHERE p.document = d.key AND d.id = ? AND p.start = ? ORDER BY c.start"
        rows = self._sql.execute(f"{CHUNKS} {where}", (passage.document, passage.start))
        return [chunk for _, chunk in map(_chunk, rows)]

    def passages(self, chunks: Sequence[Chunk]) -> list[Passage]:
        query = (
            "SELECT p.start, p.end, p.text, p.label FROM passages p"
            " JOIN documents d ON d.key = p.document WHERE d.id = ? AND p.start = ?"
        )
        passages = []
        for chunk in chunks:
            row = self._one(query, chunk.document, chunk.passage[0])
            if row is None:
                raise KeyError(chunk.document)
            passages.append(Passage(chunk.document, *row))
        return passages

    def sample(self, count: int) -> Keys:
        first, last = self._one("SELECT min(key), max(key) FROM chunks") or (None, None)
        if first is None or last is None:
            return np.empty(0, np.int64)
        spaced = np.unique(np.linspace(first, last, count).astype(np.int64)).tolist()
        query = "SELECT key FROM chunks WHERE key >= ? ORDER BY key LIMIT 1"
        return np.unique([row[0] for key in spaced if (row := self._one(query, key))])

    def count(self) -> int:
        return self._refresh()[1].rows

    def text(self, document: str, start: int = 0, end: int | None = None) -> str:
        key, length = self._key_and_length(document)
        end = length if end is None else min(end, length)
        # The first passage is the one around `start`: the last that begins at or before it.
        rows = self._sql.execute(
            "SELECT start, text FROM passages WHERE document = ? AND start < ? AND start >="
            " (SELECT coalesce(max(start), 0) FROM passages WHERE document = ? AND start <= ?)"
            " ORDER BY start",
            (key, end, key, start),
        )
        return "".join(text[max(start - at, 0) : end - at] for at, text in rows)

    def length(self, document: str) -> int:
        return self._key_and_length(document)[1]

    def _key_and_length(self, document: str) -> tuple[int, int]:
        row = self._one("SELECT key, length FROM documents WHERE id = ?", document)
        if row is None:
            raise KeyError(document)
        return row[0], row[1]

    def documents(self) -> Iterator[Document]:
        return self._documents("")

    def document(self, source: str) -> Document | None:
        return next(self._documents("WHERE source = ?", source), None)

    def by_id(self, document: str) -> Document | None:
        return next(self._documents("WHERE id = ?", document), None)

    def _documents(self, where: str, *arguments: str) -> Iterator[Document]:
        query = f"SELECT source, title, digest, receipt FROM documents {where} ORDER BY source"
        for source, title, digest, report in self._sql.execute(query, arguments):
            yield Document(source, title, digest, ParseReport.from_json(json.loads(report)))

    @property
    def sequence(self) -> int:
        return sqlite.covered(self._sql).seq

    def get_meta(self, name: str) -> object | None:
        return sqlite.meta(self._sql, name)

    def info(self) -> Info:
        tables = ("documents", "passages", "chunks", "removed")
        counts = [sqlite.count(self._sql, table) for table in tables]
        created, size = str(self.get_meta("created")), disk_usage(self.path)
        return Info(self.location, self.identity, created, self.sequence, *counts, bytes=size)

    def verify(self) -> list[str]:
        candidates, words = self._refresh()
        return findings(self._sql, candidates, words, self.identity.dim)

    def close(self) -> None:
        self._sql.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def _chunk(row: tuple) -> tuple[int, Chunk]:
    """The key and the chunk of a row of `CHUNKS`."""
    key, document, source, title, places, context, start, end, text, first, last = row
    names, piece = tuple(map(tuple, json.loads(places))), text[start - first : end - first]
    chunk = Chunk(document, source, title, names, context, start, end, piece, (first, last))
    return key, chunk
