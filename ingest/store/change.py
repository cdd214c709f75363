"""The write side: documents into the truth and, in the same breath, into the word index."""

import json
import secrets
import sqlite3
from collections.abc import Sequence

import numpy as np

from ingest.store.checks import check_place, check_tiling, check_vectors
from ingest.store.protocol import Vectors
from ingest.store.rows import receipt_text, set_meta
from ingest.store.word_index import WordWriter
from ingest.types import Chunk, Document, Passage


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
