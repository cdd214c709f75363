"""The store in a directory: `kb.sqlite` is the truth, `vectors/` and `words/` are caches of it."""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from ingest.errors import Absent, Busy, UserError
from ingest.normalize import Field, Terms
from ingest.store import index_sync, sqlite
from ingest.store.atomic import taken, writing
from ingest.store.index_sync import LocalChange
from ingest.store.milvus import Address, open_milvus
from ingest.store.protocol import Identity, Info, Ranking, Store, Vectors, check_identity
from ingest.store.snapshot import findings
from ingest.store.sqlite import check_schema, connect, create_schema, failures_named
from ingest.store.vector_index import Candidates, Keys, stack
from ingest.types import Chunk, Document, Passage

TRUTH = "kb.sqlite"


def open_local(
    path: Path, *, create: Identity | None = None, expect: Identity | None = None
) -> "LocalStore":
    """The knowledge base at `path`, its caches caught up.

    `create` makes one where there is none. `create` and `expect` name the embedder that is going
    to be used: `Mismatch` if another made the vectors. Raises `UserError` where there is none.
    """
    truth = path / TRUTH
    if create is None and not truth.is_file():
        raise Absent(
            "no knowledge base at {path}; make one: rag ingest PATH... --kb {path}", path=path
        )
    with failures_named(path):
        path.mkdir(parents=True, exist_ok=True)
        connection = connect(truth)
        try:
            if not check_schema(connection, truth):
                initialise(connection, path, create)
            store = LocalStore(path, connection)
            for embedder in filter(None, (create, expect)):
                check_identity(str(path), store.identity, embedder)
        except BaseException:
            connection.close()
            raise
    return store


def initialise(connection: sqlite3.Connection, path: Path, identity: Identity | None) -> None:
    if identity is None:
        raise UserError(
            "{path} is empty; remove it and run: rag ingest PATH... --kb {path_2}",
            path=path / TRUTH,
            path_2=path,
        )
    with writing(path / "lock", reason="making it", timeout=10):
        if check_schema(connection, path / TRUTH):  # another process was faster
            return
        create_schema(connection)
        made = {"name": identity.name, "dim": identity.dim, "options": dict(identity.options)}
        sqlite.set_meta(connection, "embedder", made)
        sqlite.set_meta(connection, "created", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        connection.execute("COMMIT")


class LocalStore:
    """A `Store` in a directory. Made by `open_local`; may be shared by threads that read."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path, self.location = path, str(path)
        self._sql = connection
        self._guard = threading.RLock()
        made = sqlite.meta(connection, "embedder")
        assert isinstance(made, dict)
        self.identity = Identity(**made)
        self._words = index_sync.open_words(path)
        self._candidates: Candidates | None = None
        self._seen = -1

    # Writing

    @contextmanager
    def change(self, *, reason: str = "", timeout: float = 10.0) -> Iterator[LocalChange]:
        with (
            failures_named(self.path),
            self._lock(reason, timeout),
            closing(connect(self.path / TRUTH)) as sql,
        ):
            words = self._own_words(sql)
            sql.execute("BEGIN IMMEDIATE")
            with words.writer() as writer:
                change = LocalChange(sql, writer, self.identity.dim)
                yield change
                # The truth first: a cache may lag behind it, never run ahead.
                sql.execute("COMMIT")
                writer.commit(sqlite.covered(sql))
            if change.erased:
                sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._keep_codes(sql)

    def rebuild(self) -> None:
        with (
            failures_named(self.path),
            self._lock("rebuilding its indexes", 10.0),
            closing(connect(self.path / TRUTH)) as sql,
            self._guard,
        ):
            self._words = index_sync.rebuild_words(self.path, sql)
            self._candidates = index_sync.rebuild_candidates(self.path, sql, self.identity.dim)
            sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _lock(self, reason: str, timeout: float):
        return writing(self.path / "lock", reason=reason, timeout=timeout)

    # Caches. The writer lock is held where a method is given a connection.

    def _own_words(self, sql: sqlite3.Connection):
        with self._guard:
            self._words = index_sync.repair_words(self.path, sql, self._words)
            return self._words

    def _keep_codes(self, sql: sqlite3.Connection) -> None:
        with self._guard:
            if index_sync.codes_lag(sql):
                self._candidates = index_sync.keep_candidates(
                    self.path, sql, self._candidates, self.identity.dim
                )

    def _refresh(self) -> tuple[Candidates, index_sync.Words]:
        """Both caches, with all that is committed as far as another writer lets us."""
        with self._guard:
            (version,) = self._sql.execute("PRAGMA data_version").fetchone()
            words, candidates = self._words, self._candidates
            if version == self._seen and words is not None and candidates is not None:
                return candidates, words
            self._candidates = self._current_candidates()
            self._words = self._current_words()
            if self._words.covered == sqlite.covered(self._sql):
                self._seen = version
            return self._candidates, self._words

    def _current_candidates(self) -> Candidates:
        sql, dim = self._sql, self.identity.dim
        candidates = self._candidates or index_sync.open_candidates(self.path, sql, dim)
        if candidates is not None:
            return index_sync.catch_up(candidates, sql, dim)
        try:
            with self._lock("catching up", 0.0), closing(connect(self.path / TRUTH)) as own:
                return index_sync.rebuild_candidates(self.path, own, dim)
        except Busy:
            return index_sync.build_candidates(sql, dim)

    def _current_words(self) -> index_sync.Words:
        words = index_sync.reopen_words(self.path, self._words)
        if words is not None and words.covered == sqlite.covered(self._sql):
            return words
        usable = words is not None and index_sync.knows(self._sql, words.covered)
        try:
            # A writer at work commits the words right after the truth: no reader waits for it.
            with (
                self._lock("catching up", 0.0 if usable else 10.0),
                closing(connect(self.path / TRUTH)) as sql,
            ):
                return index_sync.repair_words(self.path, sql, words)
        except Busy:
            if words is not None and usable:
                return words
            raise

    # Searching

    def search_dense(self, vector: Vectors, k: int) -> Ranking:
        with self._guard:
            candidates, _ = self._refresh()
            n = candidates.enough(k)
            while True:
                keys = candidates.search(vector, n)
                found, stored = sqlite.vectors_of(self._sql, keys.tolist(), self.identity.dim)
                if len(found) >= k or n >= candidates.rows:
                    break
                n *= 4  # many of the nearest are removed by now
        scores = stored @ vector
        best = np.argsort(-scores, kind="stable")[:k]
        best = best[scores[best] > 0]
        return Ranking(found[best], scores[best])

    def search_words(self, query: Terms, k: int, *, field: Field = "words") -> Ranking:
        _, words = self._refresh()
        ranking = words.search(query.of(field), k, field=field)
        there = np.isin(ranking.keys, self._existing(ranking.keys))
        return Ranking(ranking.keys[there], ranking.scores[there])

    def _existing(self, keys: Keys) -> Keys:
        found = self._sql.execute(
            f"SELECT key FROM chunks WHERE key {sqlite.AMONG}", (json.dumps(keys.tolist()),)
        ).fetchall()
        return np.array([key for (key,) in found], np.int64)

    def doc_freq(self, terms: Sequence[str], *, field: Field = "words") -> list[int]:
        _, words = self._refresh()
        return words.doc_freq(terms, field=field)

    # Reading the truth

    def known_vectors(self, digests: Sequence[bytes]) -> dict[bytes, Vectors]:
        found = {}
        for digest in set(digests):
            row = self._sql.execute(
                "SELECT vector FROM chunks WHERE digest = ? LIMIT 1", (digest,)
            ).fetchone()
            if row:
                found[digest] = stack(row, self.identity.dim)[0]
        return found

    def vectors(self, keys: Sequence[int] | Keys) -> Vectors:
        wanted = np.asarray(keys, np.int64)
        found, stored = sqlite.vectors_of(self._sql, wanted.tolist(), self.identity.dim)
        result = np.zeros((len(wanted), self.identity.dim), np.float32)
        there = np.isin(wanted, found)
        result[there] = stored[np.searchsorted(found, wanted[there])]
        return result

    def chunks(self, keys: Sequence[int] | Keys) -> dict[int, Chunk]:
        return sqlite.chunks_of(self._sql, np.asarray(keys, np.int64).tolist())

    def passages(self, chunks: Sequence[Chunk]) -> list[Passage]:
        return [sqlite.passage_of(self._sql, chunk) for chunk in chunks]

    def chunks_within(self, passage: Passage) -> list[Chunk]:
        return sqlite.chunks_within(self._sql, passage)

    def sample(self, count: int) -> Keys:
        return sqlite.sample_of(self._sql, count)

    def count(self) -> int:
        return self._refresh()[1].rows

    def text(self, document: str, start: int = 0, end: int | None = None) -> str:
        return sqlite.text_of(self._sql, document, start, end)

    def documents(self) -> Iterator[Document]:
        return sqlite.documents_of(self._sql)

    def document(self, source: str) -> Document | None:
        return next(sqlite.documents_of(self._sql, "WHERE source = ?", (source,)), None)

    def by_id(self, document: str) -> Document | None:
        return next(sqlite.documents_of(self._sql, "WHERE id = ?", (document,)), None)

    def length(self, document: str) -> int:
        return sqlite.length_of(self._sql, document)

    @property
    def sequence(self) -> int:
        return sqlite.covered(self._sql).seq

    def get_meta(self, name: str) -> object | None:
        return sqlite.meta(self._sql, name)

    def info(self) -> Info:
        counts = [
            self._sql.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("documents", "passages", "chunks", "removed")
        ]
        created = str(sqlite.meta(self._sql, "created"))
        return Info(
            self.location, self.identity, created, self.sequence, *counts, bytes=taken(self.path)
        )

    def verify(self) -> list[str]:
        candidates, words = self._refresh()
        return findings(self._sql, candidates, words, self.identity.dim)

    def close(self) -> None:
        self._sql.close()

    def __enter__(self) -> "LocalStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_store(
    place: Path | Address, *, create: Identity | None = None, expect: Identity | None = None
) -> Store:
    """The knowledge base at `place`, ready to be read and written.

    `create` makes one where there is none. `create` and `expect` name the embedder that is going
    to be used: `Mismatch` if another made the vectors. Raises `Absent` where there is none.
    """
    if isinstance(place, Address):
        return open_milvus(place, create=create, expect=expect)
    return open_local(place, create=create, expect=expect)
