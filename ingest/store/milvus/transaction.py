"""The write side: text and chunks are written first, invisibly; then the documents, in one write.

Milvus has neither transactions nor locks. A document has a mark in `documents` while its rows are
written or deleted, so that the (invisible) rows of a killed writer can be found by their mark.
Writing the same document twice, or from two machines, ends in the same rows.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from time import time, time_ns

import numpy as np

from ingest.errors import Busy
from ingest.store.milvus.client import BATCH, Row, Table, Tables, field_text, pieces
from ingest.store.protocol import Vectors, check_place, check_tiling, checked_vectors
from ingest.types import Chunk, Document, DocumentPart, Passage

SEQUENCE, MARK = "sequence", "mark"
REQUEST_IDS = 500  # documents in one condition
WORK = 86_400  # s that a change may take


class MilvusChange:
    """An open change; see `Change`. `commit` makes it visible."""

    def __init__(self, tables: Tables, dim: int, find: Callable[[Sequence[Chunk]], list[Passage]]) -> None:
        self._tables, self._dim, self._find = tables, dim, find
        self._rows: dict[str, Row] = {}  # of `documents`, by key
        self._put: dict[str, Row] = {}  # rows of documents that are being added, by document id
        self._open: dict[int, Passage] = {}  # passages of the last batch, by their start
        self._dropped: set[str] = set()  # documents that this change has put and removed again
        self._marked: set[str] = set()
        self._waiting: dict[Table, list[Row]] = {"passages": [], "chunks": []}

    def remove(self, source: str) -> bool:
        key = self._tables.row_key("document", source)
        row = self._rows.get(key) or self._tables.get("documents", [key], ["kind", "id"]).get(key)
        if row is None or row["kind"] != "document":
            return False
        if self._put.pop(row["id"], None):
            self._dropped.add(row["id"])
        self._rows[key] = empty(key) | {"kind": "gone"}
        return True

    def put(self, document: Document) -> None:
        key = self._tables.row_key("document", document.source)
        self.remove(document.source)
        head = {
            "kind": "document",
            "id": document.id,
            "source": document.source,
            "title": pieces(document.title),
            "digest": document.digest,
            "value": pieces(json.dumps(document.report.to_json(), ensure_ascii=False)),
        }
        self._rows[key] = self._put[document.id] = empty(key) | head
        self._dropped.discard(document.id)
        self._open.clear()

    def add(self, part: DocumentPart) -> None:
        vectors, passages, chunks = checked_vectors(part, self._dim), part.passages, part.chunks
        head = self._put.get(part.document.id)
        if head is None:
            raise ValueError(f"{part.document.source} is added to before it is put")
        length = check_tiling(passages, head["length"])
        if passages:
            self._open = {passage.start: passage for passage in passages}
        for chunk in chunks:
            check_place(chunk, self._passage_of(chunk))
        self._waiting["passages"] += map(self._passage, passages)
        # The same precision as in the local store, so that both find the same chunks.
        halves = np.ascontiguousarray(vectors, np.float16).astype(np.float32)
        self._waiting["chunks"] += map(self._chunk, chunks, halves)
        if sum(map(len, self._waiting.values())) >= BATCH:
            self._flush()
        head["length"] = length
        head["passages"] += len(passages)
        head["chunks"] += len(chunks)

    def _passage_of(self, chunk: Chunk) -> Passage | None:
        start = chunk.passage[0]
        if start not in self._open:
            self._flush()
            self._open.update((passage.start, passage) for passage in self._find([chunk]))
        return self._open.get(start)

    def _flush(self) -> None:
        documents = {row["document"] for rows in self._waiting.values() for row in rows}
        self._mark(documents - self._marked, int(time()))
        for table, rows in self._waiting.items():
            self._tables.upsert(table, rows)
            rows.clear()

    def _mark(self, documents: set[str], since: int) -> None:
        keys = {document: self._tables.row_key("mark", document) for document in sorted(documents)}
        mark = {"kind": MARK, "length": since}
        rows = [empty(key) | mark | {"id": document} for document, key in keys.items()]
        self._tables.upsert("documents", rows)
        self._marked |= documents

    def set_meta(self, name: str, value: object) -> None:
        key = self._tables.row_key("meta", name)
        text = pieces(json.dumps(value, ensure_ascii=False))
        self._rows[key] = empty(key) | {"kind": "meta", "source": name, "value": text}

    def commit(self, sequence: int) -> None:
        """Make the change visible, then delete the rows that it replaced. Raises `Busy` if another
        writer of the same documents failed and removed rows of them."""
        self._flush()
        self._check_whole()
        old = (self._visible() | self._dropped) - set(self._put)
        self._mark(old, 0)
        key = self._tables.row_key("meta", SEQUENCE)
        row = empty(key) | {"kind": SEQUENCE, "length": max(sequence + 1, time_ns() // 1000)}
        self._tables.upsert("documents", [*self._rows.values(), row])
        sweep(self._tables, old, marked=self._marked)

    def _check_whole(self) -> None:
        for among in _conditions(set(self._put)):
            for table in self._waiting:
                due = sum(head[table] for id, head in self._put.items() if f'"{id}"' in among)
                if self._tables.count(table, among) < due:
                    raise Busy(
                        "another process writes the same documents to {address}; run it again when it is done",
                        address=self._tables.address,
                    )

    def undo(self) -> None:
        """Delete the rows that were written and are not visible."""
        sweep(self._tables, self._marked - self._visible(), marked=self._marked)

    def _visible(self) -> set[str]:
        """The documents of this change that are visible now."""
        rows = self._tables.get("documents", self._rows, ["kind", "id"]).values()
        return {row["id"] for row in rows if row["kind"] == "document"}

    def _passage(self, passage: Passage) -> Row:
        return {
            "place": self._tables.number_key(passage.document, passage.start),
            "document": passage.document,
            "start": passage.start,
            "end": passage.end,
            "label": pieces(passage.label),
            "text": pieces(passage.text),
        }

    def _chunk(self, chunk: Chunk, vector: Vectors) -> Row:
        return {
            "key": self._tables.number_key(chunk.id),
            "document": chunk.document,
            "name": self._tables.row_key("document", chunk.source),
            "start": chunk.start,
            "end": chunk.end,
            "passage_start": chunk.passage[0],
            "passage_end": chunk.passage[1],
            "places": pieces(json.dumps(chunk.places, ensure_ascii=False)),
            "context": pieces(chunk.context),
            "text": pieces(chunk.text),
            "digest": chunk.digest.hex(),
            "vector": vector.tolist(),
            "words": field_text(chunk.indexed, "words"),
            "bigrams": field_text(chunk.indexed, "bigrams"),
        }


def empty(key: str) -> Row:
    """A row of `documents` with empty fields."""
    texts = dict.fromkeys(("kind", "id", "source", "digest"), "")
    counts = dict.fromkeys(("length", "passages", "chunks"), 0)
    return {"name": key, **texts, **counts, "title": [], "value": []}


def sweep(tables: Tables, documents: set[str], *, marked: set[str]) -> None:
    """Delete text and chunks of removed documents, then the marks."""
    for among in _conditions(documents):
        tables.delete("chunks", among)
        tables.delete("passages", among)
    for among in _conditions({tables.row_key("mark", document) for document in marked}, "name"):
        tables.delete("documents", among)


def left_behind(tables: Tables) -> set[str]:
    """Documents whose writer died while it was deleting them or, a day ago, writing them."""
    stale = f'kind == "{MARK}" and length <= {int(time()) - WORK}'
    return {row["id"] for row in tables.each("documents", stale, ["id"])}


def clear(tables: Tables) -> None:
    """Delete the rows that dead writers have left behind."""
    marked = left_behind(tables)
    visible: set[str] = set()
    for among in _conditions(marked, "id"):
        rows = tables.query("documents", f'{among} and kind == "document"', ["id"])
        visible |= {row["id"] for row in rows}
    sweep(tables, marked - visible, marked=marked)


def _conditions(documents: set[str], field: str = "document") -> Iterator[str]:
    """Conditions that together select the rows of the documents."""
    ids = sorted(documents)
    for start in range(0, len(ids), REQUEST_IDS):
        yield f"{field} in {json.dumps(ids[start : start + REQUEST_IDS])}"
