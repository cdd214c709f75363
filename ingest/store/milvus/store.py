"""The store on a Milvus server: vectors, words and character pairs are searched by Milvus.

`rag.retrieve` fuses the three rankings as it does for the local store: Milvus's own fusions (ranks,
weighted sums) ignore how similar a chunk that only words found is (docs/decisions/016-milvus.md).
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from typing import Literal

import numpy as np

from ingest.errors import Absent, Away, UserError
from ingest.i18n import Translatable
from ingest.normalize import Field, Terms
from ingest.store.milvus import client
from ingest.store.milvus.client import (
    BM25,
    MOST_ROWS,
    MilvusAddress,
    Row,
    Tables,
    query_text,
    term_text,
    tokens,
)
from ingest.store.milvus.transaction import MARK, SEQUENCE, MilvusChange, clear, left_behind
from ingest.store.protocol import UNIT, Identity, Info, Ranking, Vectors, Within, check_identity
from ingest.store.vector_index import Keys
from ingest.types import Chunk, Document, ParseReport, Passage

HEAD = ("kind", "id", "source", "title", "digest", "value", "length")
CHUNK = (
    "document", "name", "start", "end", "passage_start", "passage_end", "places", "context", "text",
)  # fmt: skip
PASSAGE = ("document", "start", "end", "label", "text")
LENGTHS = 200  # chunks from which the mean length in words is estimated
KEYS = 2**63


class MilvusStore(AbstractContextManager["MilvusStore"]):
    """A `Store` at a `MilvusAddress`, from `open_milvus`. Threads that read may share it.

    Reading `sequence` waits for the writes of other processes; they are visible at once after it, and
    otherwise within the server's time tick.
    """

    def __init__(self, tables: Tables, identity: Identity, created: str) -> None:
        self.identity = identity
        self.location = str(tables.address)
        self._tables, self._created = tables, created
        self._statistics: dict[Field, tuple[int, float]] = {}
        self._statistics_sequence = -1

    @contextmanager
    def change(self, *, reason: str = "", timeout: float = 10.0) -> Iterator[MilvusChange]:
        """There is no lock: see `MilvusChange`."""
        change = MilvusChange(self._tables, self.identity.dim, self._passages)
        try:
            yield change
        except BaseException:
            with suppress(Away):  # the remaining rows are removed later
                change.undo()
            raise
        change.commit(self.sequence)
        self._statistics.clear()

    def rebuild(self) -> None:
        """Remove the rows that killed writers left, and let the server rewrite its segments."""
        clear(self._tables)
        self._tables.compact()
        self._statistics.clear()

    def search_dense(self, vector: Vectors, k: int, *, within: Within = None) -> Ranking:
        return self._ranking("vector", vector.tolist(), k, within)

    def search_words(self, query: Terms, k: int, *, field: Field = "words", within: Within = None) -> Ranking:
        text = query_text(query.text, field)
        if not text:
            return Ranking(np.empty(0, np.int64), np.empty(0, np.float32))
        return self._ranking(field, text, k, within)

    def _ranking(self, field: Literal["vector"] | Field, query: object, k: int, within: Within) -> Ranking:
        """The best `k` visible chunks; more are requested because invisible ones are searched too."""
        n, where = min(k, MOST_ROWS), _among(within)
        while True:
            (hits,) = self._tables.search(field, [query], n, ["document", "name"], where)
            current = self._current(hits, ("kind", "id"))
            best = [hit for hit in hits if hit["document"] in current and hit["score"] > 0][:k]
            complete = len(hits) < n or hits[-1]["score"] <= 0 or n == MOST_ROWS
            if len(best) >= k or complete:
                break
            n = min(4 * n, MOST_ROWS)
        keys = np.array([hit["key"] for hit in best], np.int64)
        return Ranking(keys, np.array([hit["score"] for hit in best], np.float32))

    def doc_freq(self, terms: Sequence[str], *, field: Field = "words") -> list[int]:
        """Estimated from BM25's weights: from the score of a term's best chunk and that chunk's length.

        Milvus does not report the counts behind its weights. They follow from its formula (that of
        `rag.retrieve.idf` with the usual saturation) within some per cent.
        """
        if not terms:
            return []
        count, mean = self._statistics_of(field)
        texts = [term_text(term, field) for term in terms]
        found = self._tables.search(field, texts, 1, [field])
        return [
            _doc_freq(hits[0], text, field, count, mean) if hits else 0
            for hits, text in zip(found, texts, strict=True)
        ]

    def _statistics_of(self, field: Field) -> tuple[int, float]:
        """The number of chunks, and their mean number of words, at the sequence that was last read."""
        if field not in self._statistics:
            count, keys = self.count(), self.sample(LENGTHS).tolist()
            rows = self._tables.get("chunks", keys, [field]).values()
            lengths = [len(tokens(row[field], field)) for row in rows]
            self._statistics[field] = count, float(np.mean(lengths)) if lengths else 1.0
        return self._statistics[field]

    def _current(self, rows: Iterable[Row], fields: Sequence[str] = HEAD) -> dict[str, Row]:
        """The visible documents of the rows, by id."""
        return self._heads({row["name"] for row in rows}, fields, wait=False)

    def _heads(
        self, names: Iterable[str], fields: Sequence[str] = HEAD, *, wait: bool = True
    ) -> dict[str, Row]:
        rows = self._tables.get("documents", names, fields, wait=wait).values()
        return {row["id"]: row for row in rows if row["kind"] == "document"}

    def known_vectors(self, digests: Sequence[bytes]) -> dict[bytes, Vectors]:
        found = {}
        wanted = sorted({digest.hex() for digest in digests})
        for start in range(0, len(wanted), 500):
            among = f"digest in {json.dumps(wanted[start : start + 500])}"
            # The same text can have many rows; texts beyond the limit are embedded again.
            for row in self._tables.query("chunks", among, ["digest", "vector"], limit=2_000):
                found[bytes.fromhex(row["digest"])] = np.array(row["vector"], np.float32)
        return found

    def vectors(self, keys: Sequence[int] | Keys) -> Vectors:
        wanted = np.asarray(keys, np.int64).tolist()
        rows = self._tables.get("chunks", wanted, ["vector"])
        result = np.zeros((len(wanted), self.identity.dim), np.float32)
        for at, key in enumerate(wanted):
            if key in rows:
                result[at] = rows[key]["vector"]
        return result

    def chunks(self, keys: Sequence[int] | Keys) -> dict[int, Chunk]:
        wanted = np.asarray(keys, np.int64).tolist()
        rows = self._tables.get("chunks", wanted, CHUNK)
        current = self._current(rows.values())
        return {
            key: _chunk(rows[key], current[rows[key]["document"]])
            for key in wanted
            if key in rows and rows[key]["document"] in current
        }

    def passages(self, chunks: Sequence[Chunk]) -> list[Passage]:
        heads = {self._tables.row_key("document", chunk.source) for chunk in chunks}
        current = self._heads(heads, ("kind", "id"), wait=False)
        for chunk in chunks:
            if chunk.document not in current:
                raise KeyError(chunk.document)
        found = self._passages(chunks)
        if len(found) < len(chunks):  # they were replaced between the two requests
            raise KeyError(chunks[0].document)
        return found

    def _passages(self, chunks: Sequence[Chunk]) -> list[Passage]:
        """The existing passages, visible or not."""
        keys = [self._tables.number_key(chunk.document, chunk.passage[0]) for chunk in chunks]
        rows = self._tables.get("passages", keys, PASSAGE)
        return [_passage(rows[key]) for key in keys if key in rows]

    def chunks_within(self, passage: Passage) -> list[Chunk]:
        where = f'document == "{passage.document}" and passage_start == {passage.start}'
        rows = self._tables.query("chunks", where, CHUNK)
        current = self._current(rows)
        rows = sorted((r for r in rows if r["document"] in current), key=lambda row: row["start"])
        return [_chunk(row, current[row["document"]]) for row in rows]

    def sample(self, count: int) -> Keys:
        """Keys are hashes, so the smallest of them are an even sample."""
        total = self.count()
        if not total:
            return np.empty(0, np.int64)
        # On average, twice as many as wanted are below the bound.
        bound = KEYS - 1 if total <= 2 * count else KEYS // total * 2 * count
        rows = self._tables.query("chunks", f"key <= {bound}", ["key"])
        return np.sort(np.array([row["key"] for row in rows], np.int64))[:count]

    def count(self) -> int:
        return self._tables.count("chunks")

    def text(self, document: str, start: int = 0, end: int | None = None) -> str:
        length = self.length(document)
        end = length if end is None else min(end, length)
        where = f'document == "{document}" and start < {end} and end > {start}'
        rows = self._tables.each("passages", where, ["start", "text"])
        parts = sorted((row["start"], "".join(row["text"])) for row in rows)
        text = "".join(text[max(start - at, 0) : end - at] for at, text in parts)
        if len(text) < end - start:  # it was replaced between the two requests
            raise KeyError(document)
        return text

    def documents(self) -> Iterator[Document]:
        rows = self._tables.each("documents", 'kind == "document"', HEAD)
        return iter(sorted(map(_document, rows), key=lambda document: document.source))

    def document(self, source: str) -> Document | None:
        heads = self._heads([self._tables.row_key("document", source)])
        return next(map(_document, heads.values()), None)

    def by_id(self, document: str) -> Document | None:
        row = self._by_id(document)
        return _document(row) if row else None

    def length(self, document: str) -> int:
        row = self._by_id(document)
        if row is None:
            raise KeyError(document)
        return row["length"]

    def _by_id(self, document: str) -> Row | None:
        if not document.isalnum():  # it goes into a condition
            return None
        where = f'id == "{document}" and kind == "document"'
        return next(iter(self._tables.query("documents", where, HEAD)), None)

    @property
    def sequence(self) -> int:
        """Microseconds since 1970, so that writers on several machines need not agree."""
        row = self._meta(SEQUENCE)
        sequence = row["length"] if row else 0
        if sequence != self._statistics_sequence:
            self._statistics.clear()
            self._statistics_sequence = sequence
        return sequence

    def get_meta(self, name: str) -> object | None:
        row = self._meta(name)
        return json.loads("".join(row["value"])) if row else None

    def _meta(self, name: str) -> Row | None:
        key = self._tables.row_key("meta", name)
        return self._tables.get("documents", [key], ["value", "length"]).get(key)

    def info(self) -> Info:
        documents = self._tables.count("documents", 'kind == "document"')
        counts = documents, self._tables.count("passages"), self.count()
        head = self.location, self.identity, self._created, self.sequence
        return Info(*head, *counts, unpurged=0, bytes=None)

    def verify(self) -> list[str]:
        return list(findings(self._tables))

    def close(self) -> None:
        self._tables.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def _among(within: Within) -> str:
    """The condition that a row belongs to one of these documents; "" for all."""
    return "" if within is None else f"document in {json.dumps(within)}"


def _doc_freq(hit: Row, text: str, field: Field, count: int, mean: float) -> int:
    words = tokens(hit[field], field)
    frequency = max(1, words.count(text))
    k1, b = BM25["bm25_k1"], BM25["bm25_b"]
    saturated = frequency * (k1 + 1) / (frequency + k1 * (1 - b + b * len(words) / mean))
    weight = hit["score"] / saturated
    return min(count, max(1, round((count + 1) / np.exp(weight) - 0.5)))


def _chunk(row: Row, head: Row) -> Chunk:
    places = tuple(map(tuple, json.loads("".join(row["places"]))))
    names = row["document"], head["source"], "".join(head["title"])
    context, text = "".join(row["context"]), "".join(row["text"])
    passage = row["passage_start"], row["passage_end"]
    return Chunk(*names, places, context, row["start"], row["end"], text, passage)


def _passage(row: Row) -> Passage:
    text = "".join(row["text"])
    return Passage(row["document"], row["start"], row["end"], text, "".join(row["label"]))


def _document(row: Row) -> Document:
    report = ParseReport.from_json(json.loads("".join(row["value"])))
    return Document(row["source"], "".join(row["title"]), row["digest"], report)


def findings(tables: Tables) -> Iterator[Translatable]:
    """A message for each fault. Reads every row."""
    fields = ("id", "source", "length", "passages", "chunks")
    heads = {row["id"]: row for row in tables.each("documents", 'kind == "document"', fields)}
    counts: Counter[tuple[str, str]] = Counter()
    off = 0
    for row in tables.each("chunks", "", ["document", "vector"]):
        counts[row["document"], "chunks"] += 1
        off += not abs(np.linalg.norm(row["vector"]) - 1) < UNIT
    for row in tables.each("passages", "", ["document", "start", "end"]):
        counts[row["document"], "passages"] += 1
        counts[row["document"], "length"] += row["end"] - row["start"]
    if off:
        yield Translatable("chunks: {count} vectors aren't of length 1", count=off)
    names = {
        "chunks": Translatable("chunks"),
        "passages": Translatable("passages"),
        "length": Translatable("characters"),
    }
    for document, head in sorted(heads.items(), key=lambda item: item[1]["source"]):
        for field, what in names.items():
            if counts[document, field] != head[field]:
                yield Translatable(
                    "{source}: {count} {what}, not {due}; remove it and ingest it again",
                    source=head["source"],
                    count=counts[document, field],
                    what=what,
                    due=head[field],
                )
    at_work = {row["id"] for row in tables.each("documents", f'kind == "{MARK}"', ["id"])}
    orphans = {document for document, _ in counts} - heads.keys()
    if count := len(orphans - (at_work - left_behind(tables))):
        yield Translatable("chunks: rows of {count} removed documents; run: rag kb rebuild", count=count)


def open_milvus(address: MilvusAddress, *, create: Identity | None = None) -> MilvusStore:
    """The knowledge base at `address`, as `open_store` opens it. All tenants share its embedder."""
    tables = Tables(address)
    try:
        if not tables.exist():
            if create is None:
                raise _absent(address)
            tables.create(create, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        tables.load()
        properties = tables.properties()
        if client.EMBEDDER not in properties:  # a copy by a tool that omits properties
            raise UserError(
                "{address} does not say which encoder made it; copy its properties too, or choose "
                "another name",
                address=address,
            )
        check_tenant(address, properties)
        identity = Identity(**json.loads(properties[client.EMBEDDER]))
        if create:
            check_identity(str(address), identity, create)
        store = MilvusStore(tables, identity, properties[client.CREATED])
        if not store.sequence:  # it has only rows of other tenants, or is not complete
            if create is None:
                raise _absent(address)
            with store.change(reason="making it"):
                pass
    except BaseException:
        tables.close()
        raise
    return store


def check_tenant(address: MilvusAddress, properties: Mapping[str, str]) -> None:
    """Raises `UserError` if tenants share the collections and none is named, or the reverse."""
    shared = properties.get(client.SHARED) == "yes"
    if shared and not address.tenant:
        raise UserError("{address} is shared by tenants; name yours: {address}?tenant=NAME", address=address)
    if address.tenant and not shared:
        raise UserError(
            "{address} names a tenant, but that knowledge base is not shared; leave ?tenant= out",
            address=address,
        )


def drop_milvus(address: MilvusAddress) -> None:
    """Remove a knowledge base for good; if tenants share it, only this tenant's rows."""
    with closing(Tables(address)) as tables:
        if properties := tables.properties():
            check_tenant(address, properties)
        tables.drop()


def _absent(address: MilvusAddress) -> Absent:
    return Absent(
        "no knowledge base at {address}; make one: rag ingest PATH... --kb {address}", address=address
    )
