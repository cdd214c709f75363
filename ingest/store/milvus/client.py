"""A knowledge base's three collections: chunks, passages, documents. All calls of Milvus are here, and
the fields, BM25 functions and indexes of the collections, and the text that they index.

A row belongs to a tenant, whose name is the partition key. Text is stored in pieces, because a field
holds 65,535 bytes. A chunk is visible if the row of its document has the chunk's version, so that one
write makes a whole change visible.
"""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, urlsplit

from ingest.errors import Away, UserError
from ingest.i18n import Translatable
from ingest.normalize import LONGEST, RUN, Field, bigrams, normalize, pairs, words
from ingest.store.protocol import Identity

if TYPE_CHECKING:
    from pymilvus import CollectionSchema, MilvusClient

SCHEMES = {"milvus": "http", "milvus+tls": "https"}
"""Scheme of an address -> scheme of the client's URI."""

PORT = 19530
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")  # Milvus allows 255; we add a suffix
_TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class MilvusAddress:
    """The address of a knowledge base on a server. Those of several tenants share collections."""

    scheme: str
    host: str
    port: int
    name: str
    database: str = ""
    tenant: str = ""

    @property
    def uri(self) -> str:
        """The URI for the client."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{SCHEMES[self.scheme]}://{host}:{self.port}"

    def __str__(self) -> str:
        server = self.uri.partition("://")[2]
        database = f"{self.database}/" if self.database else ""
        tenant = f"?tenant={self.tenant}" if self.tenant else ""
        return f"{self.scheme}://{server}/{database}{self.name}{tenant}"


def parse_address(text: str) -> MilvusAddress:
    """`milvus[+tls]://host[:port]/[database/]name[?tenant=t]`. Raises `UserError` for anything else.
    A key is not part of it; that is MILVUS_TOKEN in the environment."""
    try:
        parts = urlsplit(text)
        port = parts.port or PORT
    except ValueError:
        raise _refusal(text, Translatable("its host or port can't be read")) from None
    names = parts.path.removeprefix("/").split("/")
    options = parse_qs(parts.query, keep_blank_values=True)
    tenants = options.pop("tenant", [""])
    why = None
    if parts.scheme not in SCHEMES:
        why = Translatable("it does not begin with milvus:// or milvus+tls://")
    elif not parts.hostname:
        why = Translatable("it names no server")
    elif "@" in parts.netloc:
        text = f"{parts.scheme}://…@{parts.hostname}"  # without the password
        why = Translatable("a password does not belong in it; set MILVUS_TOKEN to user:password")
    elif len(names) > 2 or not all(map(_NAME.fullmatch, names)):
        why = Translatable("a name has letters of English, digits and _, and does not begin with a digit")
    elif options or parts.fragment or len(tenants) > 1:
        why = Translatable("only ?tenant= may follow the name")
    elif tenants[0] and not _TENANT.fullmatch(tenants[0]):
        why = Translatable("a tenant has up to 64 letters, digits, _ and -")
    if why:
        raise _refusal(text, why)
    *database, name = names
    return MilvusAddress(parts.scheme, parts.hostname or "", port, name, "".join(database), tenants[0])


def _refusal(text: str, why: Translatable) -> UserError:
    return UserError(
        "{text} is not an address of a knowledge base: {why}; write milvus://HOST:19530/NAME",
        text=text,
        why=why,
    )


Table = Literal["chunks", "passages", "documents"]

TABLES: tuple[Table, ...] = ("chunks", "passages", "documents")
KEY: dict[Table, str] = {"chunks": "key", "passages": "place", "documents": "name"}
"""The primary key of each."""

SHORT: dict[Table, tuple[str, ...]] = {
    "chunks": ("document", "name", "digest"),
    "passages": ("document",),
    "documents": ("kind", "id", "source", "digest"),
}
NUMBERS: dict[Table, tuple[str, ...]] = {
    "chunks": ("start", "end", "passage_start", "passage_end"),
    "passages": ("start", "end"),
    "documents": ("length", "passages", "chunks"),
}
TEXTS: dict[Table, tuple[str, ...]] = {
    "chunks": ("text", "context", "places"),
    "passages": ("text", "label"),
    "documents": ("title", "value"),
}
"""Texts of any length, in pieces."""

MOST_BYTES = 65_535  # of a VARCHAR
MOST_PIECES = 4_096  # of an ARRAY
INVERTED: dict[Table, tuple[str, ...]] = {
    "chunks": ("document", "digest"),
    "passages": ("document",),
    "documents": ("id", "kind"),
}
BM25 = {"bm25_k1": 1.2, "bm25_b": 0.75}  # as in the local store
ANALYZERS: dict[Field, Any] = {
    "words": {"tokenizer": "jieba", "filter": [{"type": "stop", "stop_words": [" "]}]},
    "bigrams": {"tokenizer": "standard"},
}


def schema(table: Table, dim: int, *, shared: bool) -> "CollectionSchema":
    """The fields of a collection. If tenants share it, Milvus keeps their rows in partitions."""
    from pymilvus import DataType, Function, FunctionType, MilvusClient

    result = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    string, number = DataType.VARCHAR, DataType.INT64
    if table == "documents":
        result.add_field(KEY[table], string, max_length=64, is_primary=True)
    else:
        result.add_field(KEY[table], number, is_primary=True)
    result.add_field("tenant", string, max_length=64, is_partition_key=shared)
    for name in SHORT[table]:
        result.add_field(name, string, max_length=MOST_BYTES)
    for name in NUMBERS[table]:
        result.add_field(name, number)
    pieces = {"element_type": string, "max_capacity": MOST_PIECES, "max_length": MOST_BYTES}
    for name in TEXTS[table]:
        result.add_field(name, DataType.ARRAY, **pieces)
    if table != "chunks":
        result.add_field("nothing", DataType.FLOAT_VECTOR, dim=2)  # it must have a vector
        return result
    result.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    for field, analyzer in ANALYZERS.items():
        options = {"enable_analyzer": True, "analyzer_params": analyzer}
        result.add_field(field, string, max_length=MOST_BYTES, **options)
        sparse = f"{field}_bm25"
        result.add_field(sparse, DataType.SPARSE_FLOAT_VECTOR)
        result.add_function(Function(sparse, FunctionType.BM25, [field], [sparse]))
    return result


def indexes(client: "MilvusClient", table: Table) -> Any:
    result = client.prepare_index_params()
    if table == "chunks":
        result.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
        for field in ANALYZERS:
            sparse = {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "BM25"}
            result.add_index(f"{field}_bm25", **sparse, params=BM25)
    else:
        result.add_index("nothing", index_type="FLAT", metric_type="L2")
    for field in INVERTED[table]:
        result.add_index(field, index_type="INVERTED")
    return result


def field_text(text: str, field: Field) -> str:
    """The text for a field of a chunk, at most 65,535 bytes; "" if there is no word."""
    terms = _runs(normalize(text)) if field == "words" else map(ascii_term, bigrams(text))
    return " ".join(terms).encode()[:MOST_BYTES].decode(errors="ignore")


def query_text(text: str, field: Field) -> str:
    """The same for a question, in which a repeated word counts once."""
    return " ".join(dict.fromkeys(field_text(text, field).split()))


def term_text(term: str, field: Field) -> str:
    """The text for a query of one normalized term."""
    run = RUN.fullmatch(term)
    return term if field == "words" and run and run["han"] else ascii_term(term)


def _runs(text: str) -> Iterator[str]:
    for run in RUN.finditer(text):
        if run["han"]:
            yield run[0]
        else:
            yield from map(ascii_term, pairs(run[0]) if run["other"] else (run[0][:LONGEST],))


def tokens(text: str, field: Field) -> list[str]:
    """The tokens that an analyzer finds in a field's text, almost exactly."""
    return words(text) if field == "words" else text.split()


def ascii_term(term: str) -> str:
    """A pair of characters, or a word, as one word of ASCII: `试用` -> `u8bd5u7528`."""
    if term.isascii() and term.isalnum():
        return term
    return "".join(f"u{ord(character):x}" for character in term)


Row = dict[str, Any]

EMBEDDER, CREATED, SHARED = "rag.embedder", "rag.created", "rag.tenants"
"""Properties of the collection of chunks."""

TIMEOUT = 30.0  # s until a call fails; the client tries again until then
LOADING = 600.0  # s that loading a large collection may take
BATCH = 1_000  # rows of a request
MOST_ROWS = 16_384  # of an answer
PIECE = 16_000  # characters: at most 64,000 bytes
GONE = {100, 101, 800}  # error codes: a collection or a database is not there, or not loaded
UNREACHED = {1, 2, 8}  # error codes of the client: it did not reach the server, or that is busy
NO_TENANT = "_"  # the tenant of a knowledge base that has collections of its own


class Tables:
    """The collections of one address, with only the rows of its tenant."""

    def __init__(self, address: MilvusAddress) -> None:
        """Raises `Away` if no server answers or it refuses."""
        from pymilvus import MilvusClient

        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # errors are reported here
        self.address, self.tenant = address, address.tenant or NO_TENANT
        login = {"token": os.environ.get("MILVUS_TOKEN", ""), "db_name": address.database}
        with failures_named(address):
            self._client = MilvusClient(address.uri, **login, timeout=TIMEOUT)

    def name(self, table: Table) -> str:
        return self.address.name if table == "chunks" else f"{self.address.name}_{table}"

    def exist(self) -> bool:
        """Whether all collections and their indexes exist; a kill may have prevented that. Raises
        `UserError` if a foreign collection has the name of one."""
        with failures_named(self.address):
            there = [self._has(table) for table in TABLES]
            return all(there) and all(map(self._indexed, TABLES))

    def _has(self, table: Table) -> bool:
        name = self.name(table)
        if not self._client.has_collection(name, timeout=TIMEOUT):
            return False
        description: Any = self._client.describe_collection(name, timeout=TIMEOUT)
        ours = {field.name for field in schema(table, 2, shared=False).fields}
        if {field["name"] for field in description["fields"]} != ours:
            raise UserError(
                "{address} can't be a knowledge base: the collection {name} is something else; choose "
                "another name",
                address=self.address,
                name=name,
            )
        return True

    def _indexed(self, table: Table) -> bool:
        existing = self._client.list_indexes(self.name(table))
        return len(existing) == len(indexes(self._client, table))

    def create(self, identity: Identity, created: str) -> None:
        """Create the missing collections. That of the chunks is last: it shows that all are there."""
        embedder = {"name": identity.name, "dim": identity.dim, "options": dict(identity.options)}
        shared = bool(self.address.tenant)
        properties = {EMBEDDER: json.dumps(embedder, ensure_ascii=False), CREATED: created}
        properties[SHARED] = "yes" if shared else "no"
        with failures_named(self.address):
            for table in reversed(TABLES):
                if not self._has(table):
                    self._client.create_collection(
                        self.name(table),
                        schema=schema(table, identity.dim, shared=shared),
                        # A read of `documents` waits for all earlier writes. The other rows were
                        # written before their document, so only writers wait for them.
                        consistency_level="Strong" if table == "documents" else "Session",
                        properties=properties if table == "chunks" else {},
                        timeout=TIMEOUT,
                    )
                if not self._indexed(table):
                    # The collection is empty, so there is nothing to wait for.
                    self._client.create_index(
                        self.name(table), indexes(self._client, table), TIMEOUT, sync=False
                    )

    def load(self) -> None:
        with failures_named(self.address):
            for table in TABLES:
                self._client.load_collection(self.name(table), timeout=LOADING)

    def properties(self) -> Mapping[str, str]:
        """Properties of the chunks' collection; empty if it does not exist."""
        with failures_named(self.address):
            if not self._has("chunks"):
                return {}
            description: Any = self._client.describe_collection(self.address.name, timeout=TIMEOUT)
        return description.get("properties", {})

    def drop(self) -> None:
        """Remove the collections, or only the rows of a tenant; that of the chunks last, so that
        another try after a kill removes the rest."""
        with failures_named(self.address):
            for table in filter(self._has, reversed(TABLES)):
                if self.address.tenant:
                    self._client.load_collection(self.name(table), timeout=LOADING)
                    self.delete(table, "")
                else:
                    self._client.drop_collection(self.name(table), timeout=TIMEOUT)

    def compact(self) -> None:
        """Let the server rewrite its segments without deleted rows."""
        with failures_named(self.address):
            for table in TABLES:
                self._client.flush(self.name(table), timeout=LOADING)
                self._client.compact(self.name(table), timeout=LOADING)

    def close(self) -> None:
        self._client.close()

    def number_key(self, *parts: object) -> int:
        """63 bits for a chunk (by its id) or a passage (by its document and start)."""
        return int.from_bytes(_hash(self.tenant, *parts)[:8], "big") >> 1

    def row_key(self, kind: Literal["document", "mark", "meta"], name: str) -> str:
        """The key of a row in `documents`: of a document by its source, a mark, or a stored value."""
        return _hash(self.tenant, kind, name).hex()

    def upsert(self, table: Table, rows: Sequence[Row]) -> None:
        """Insert or replace rows. Up to `BATCH` rows become visible at the same time."""
        own = {"tenant": self.tenant} | ({} if table == "chunks" else {"nothing": [0.0, 0.0]})
        with failures_named(self.address):
            for start in range(0, len(rows), BATCH):
                part = [row | own for row in rows[start : start + BATCH]]
                self._client.upsert(self.name(table), part, timeout=TIMEOUT)

    def delete(self, table: Table, where: str) -> None:
        with failures_named(self.address):
            self._client.delete(self.name(table), filter=self._mine(where), timeout=TIMEOUT)

    def get(
        self, table: Table, keys: Iterable[Any], fields: Sequence[str], *, wait: bool = True
    ) -> dict[Any, Row]:
        """The existing rows by their key. `wait` applies the collection's consistency level."""
        key, wanted = KEY[table], list(dict.fromkeys(keys))
        options: Any = {"output_fields": [key, "tenant", *fields], "timeout": TIMEOUT}
        options |= {} if wait else {"consistency_level": "Session"}
        found: dict[Any, Row] = {}
        with failures_named(self.address):
            for start in range(0, len(wanted), BATCH):
                rows = self._client.get(self.name(table), wanted[start : start + BATCH], **options)
                found.update((row[key], row) for row in rows if row["tenant"] == self.tenant)
        return found

    def query(self, table: Table, where: str, fields: Sequence[str], *, limit: int = MOST_ROWS) -> list[Row]:
        """Rows that meet a condition, in no order; at most `limit`, and `MOST_ROWS`."""
        options: Any = {"output_fields": list(fields), "timeout": TIMEOUT}
        options |= {} if "count(*)" in fields else {"limit": limit}
        with failures_named(self.address):
            return list(self._client.query(self.name(table), filter=self._mine(where), **options))

    def each(self, table: Table, where: str, fields: Sequence[str]) -> Iterator[Row]:
        """All rows that meet a condition, in no order."""
        options: Any = {"output_fields": list(fields), "timeout": TIMEOUT, "batch_size": BATCH}
        with failures_named(self.address):
            rows = self._client.query_iterator(self.name(table), filter=self._mine(where), **options)
            try:
                while part := rows.next():
                    yield from part
            finally:
                rows.close()

    def count(self, table: Table, where: str = "") -> int:
        return self.query(table, where, ["count(*)"])[0]["count(*)"]

    def search(
        self, field: Literal["vector"] | Field, data: list[Any], k: int, fields: list[str], where: str = ""
    ) -> list[list[Row]]:
        """For each vector, the chunks by the dot product with theirs; for each text, those by Milvus's BM25 of
        the words or the bigrams. Each has its `score`."""
        place, score = ("vector", float) if field == "vector" else (f"{field}_bm25", abs)
        options: Any = {"output_fields": fields, "timeout": TIMEOUT, "limit": k, "anns_field": place}
        with failures_named(self.address):
            found = self._client.search(self.address.name, data, filter=self._mine(where), **options)
        # Milvus returns BM25 scores, milvus-lite negates them; both put the best first.
        return [
            [{"key": hit["key"], "score": score(hit["distance"]), **hit["entity"]} for hit in hits]
            for hits in found
        ]

    def _mine(self, where: str) -> str:
        """The condition, restricted to the rows of this tenant if there are several."""
        mine = f'tenant == "{self.tenant}"' if self.address.tenant else ""
        return " and ".join(filter(None, (mine, where)))


@contextmanager
def failures_named(address: MilvusAddress) -> Iterator[None]:
    """Turn the errors of a server that is away, full or refuses into `Away` or `UserError`."""
    from grpc import RpcError
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, RpcError) as error:
        answered = isinstance(error, MilvusException)
        gone = answered and error.code in GONE
        if answered and not gone and (type(error) is not MilvusException or error.is_input_error):
            raise  # the request is wrong: a bug
        why = " ".join((error.message if answered else str(error)).split())[:300]
        problem = Translatable(
            "{address} refused the request ({why}); check that the server runs, and MILVUS_TOKEN",
            address=address,
            why=why,
        )
        if answered and not gone and not error.retriable and error.code not in UNREACHED:
            raise UserError(problem) from error  # another try would fail too
        raise Away(problem) from error


def pieces(text: str) -> list[str]:
    """`text` in pieces that fit into a field."""
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]


def _hash(*parts: object) -> bytes:
    return blake2b("\0".join(map(str, parts)).encode(), digest_size=16).digest()
