"""A knowledge base's three collections: chunks, passages, documents. All that is said to Milvus is
said here.

A row belongs to a tenant; where there are several, its name is the partition key. Text lies in pieces, for a
field holds 65,535 bytes. Only `documents` decides what can be seen: a chunk counts if the row of its
document names the version that it is of, so that one write makes a whole change visible.
"""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from ingest.errors import Away, UserError
from ingest.i18n import Translatable
from ingest.normalize import Field
from ingest.store.milvus.schema import KEY, TABLES, Table, indexes, schema
from ingest.store.protocol import Identity

if TYPE_CHECKING:
    from pymilvus import MilvusClient


SCHEMES = {"milvus": "http", "milvus+tls": "https"}
"""Of an address -> of the client's own URI."""

PORT = 19530
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")  # Milvus takes 255; ours add a suffix
_TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Address:
    """A knowledge base on a server. Those of several tenants share collections."""

    scheme: str
    host: str
    port: int
    name: str
    database: str = ""
    tenant: str = ""

    @property
    def uri(self) -> str:
        """As the client wants it."""
        return f"{SCHEMES[self.scheme]}://{self._door}"

    @property
    def _door(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        database = f"{self.database}/" if self.database else ""
        tenant = f"?tenant={self.tenant}" if self.tenant else ""
        return f"{self.scheme}://{self._door}/{database}{self.name}{tenant}"


def parse_address(text: str) -> Address:
    """`milvus[+tls]://host[:port]/[database/]name[?tenant=t]`. Raises `UserError` for anything else.

    A key is not part of it: MILVUS_TOKEN in the environment is.
    """
    try:
        parts = urlsplit(text)
        port = parts.port or PORT
    except ValueError:
        raise _refused(text, Translatable("its host or port can't be read")) from None
    names = parts.path.removeprefix("/").split("/")
    said = parse_qs(parts.query, keep_blank_values=True)
    tenants = said.pop("tenant", [""])
    if parts.scheme not in SCHEMES:
        raise _refused(text, Translatable("it does not begin with milvus:// or milvus+tls://"))
    if not parts.hostname:
        raise _refused(text, Translatable("it names no server"))
    if "@" in parts.netloc:
        # Not shown again: it holds a password.
        raise _refused(
            f"{parts.scheme}://…@{parts.hostname}",
            Translatable("a password does not belong in it; set MILVUS_TOKEN to user:password"),
        )
    if len(names) > 2 or not all(map(_NAME.fullmatch, names)):
        raise _refused(
            text,
            Translatable(
                "a name has letters of English, digits and _, and does not begin with a digit"
            ),
        )
    if said or parts.fragment or len(tenants) > 1:
        raise _refused(text, Translatable("only ?tenant= may follow the name"))
    if tenants[0] and not _TENANT.fullmatch(tenants[0]):
        raise _refused(text, Translatable("a tenant has up to 64 letters, digits, _ and -"))
    *database, name = names
    return Address(parts.scheme, parts.hostname, port, name, "".join(database), tenants[0])


def _refused(text: str, why: Translatable) -> UserError:
    return UserError(
        "{text} is no address of a knowledge base: {why}; write milvus://HOST:{port}/NAME",
        text=text,
        why=why,
        port=PORT,
    )


Row = dict[str, Any]

EMBEDDER, CREATED, SHARED = "rag.embedder", "rag.created", "rag.tenants"
"""Properties of the collection of chunks."""

TIMEOUT = 30.0  # s until a call is given up; the client tries again until then
LOADING = 600.0  # s that a large collection may take to be loaded
BATCH = 1_000  # rows of a request
MOST_ROWS = 16_384  # of an answer
PIECE = 16_000  # characters: at most 64,000 bytes
GONE = {100, 101, 800}  # codes: a collection or a database is not there, or not loaded
UNHEARD = {1, 2, 8}  # codes: the client's own, of a server that it did not reach or that is busy
NOBODY = "_"  # the tenant of a knowledge base that has collections of its own


class Tables:
    """The collections of one address, and the rows of its tenant alone."""

    def __init__(self, address: Address, client: "MilvusClient") -> None:
        self.address = address
        self.tenant = address.tenant or NOBODY
        self._client = client

    @classmethod
    def connect(cls, address: Address) -> "Tables":
        """Raises `Away` where no server answers, or it refuses."""
        from pymilvus import MilvusClient

        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it is told here what went wrong
        with failures_named(address):
            client = MilvusClient(
                address.uri,
                token=os.environ.get("MILVUS_TOKEN", ""),
                db_name=address.database,
                timeout=TIMEOUT,
            )
        return cls(address, client)

    # The collections

    def name(self, table: Table) -> str:
        return self.address.name if table == "chunks" else f"{self.address.name}_{table}"

    def exist(self) -> bool:
        """Whether all are there, with the indexes that a kill may have prevented.

        Raises `UserError` where a collection of others has the name of one.
        """
        with failures_named(self.address):
            there = [self._has(table) for table in TABLES]
            return all(there) and all(map(self._indexed, TABLES))

    def _has(self, table: Table) -> bool:
        name = self.name(table)
        if not self._client.has_collection(name, timeout=TIMEOUT):
            return False
        said: Any = self._client.describe_collection(name, timeout=TIMEOUT)
        ours = {field.name for field in schema(table, 2, shared=False).fields}
        if {field["name"] for field in said["fields"]} != ours:
            raise UserError(
                "{address} can't be a knowledge base, for the collection {name} is something else; "
                "choose another name",
                address=self.address,
                name=name,
            )
        return True

    def _indexed(self, table: Table) -> bool:
        made = self._client.list_indexes(self.name(table))
        return len(made) == len(indexes(self._client, table))

    def create(self, identity: Identity, created: str) -> None:
        """Make those that are not there. The chunks' come last, for they vouch for the rest."""
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
                        # Who reads a head waits for all that was written before. Its rows were
                        # there already when it was written: for them only writers wait.
                        consistency_level="Strong" if table == "documents" else "Session",
                        properties=properties if table == "chunks" else {},
                        timeout=TIMEOUT,
                    )
                if not self._indexed(table):
                    # Nothing is in it yet that one would have to wait for.
                    self._client.create_index(
                        self.name(table), indexes(self._client, table), TIMEOUT, sync=False
                    )

    def load(self) -> None:
        with failures_named(self.address):
            for table in TABLES:
                self._client.load_collection(self.name(table), timeout=LOADING)

    def properties(self) -> Mapping[str, str]:
        """Of the chunks' collection; empty where it is not there."""
        with failures_named(self.address):
            if not self._has("chunks"):
                return {}
            said: Any = self._client.describe_collection(self.address.name, timeout=TIMEOUT)
        return said.get("properties", {})

    def drop(self) -> None:
        """Remove the collections, as far as they are there; of a tenant, its rows.

        The chunks' go last, as they come: what a kill leaves can be removed by another try.
        """
        with failures_named(self.address):
            for table in filter(self._has, reversed(TABLES)):
                if self.address.tenant:
                    self._client.load_collection(self.name(table), timeout=LOADING)
                    self.delete(table, "")
                else:
                    self._client.drop_collection(self.name(table), timeout=TIMEOUT)

    def compact(self) -> None:
        """Let the server write its segments anew, without what was deleted."""
        with failures_named(self.address):
            for table in TABLES:
                self._client.flush(self.name(table), timeout=LOADING)
                self._client.compact(self.name(table), timeout=LOADING)

    def close(self) -> None:
        self._client.close()

    # Keys

    def chunk(self, chunk: str) -> int:
        return number(self.tenant, chunk)

    def place(self, document: str, start: int) -> int:
        """Of a passage."""
        return number(self.tenant, document, start)

    def head(self, source: str) -> str:
        """Of a document's row in `documents`."""
        return hashed(self.tenant, "document", source).hex()

    def mark(self, document: str) -> str:
        """Of the row that says that a document is at work."""
        return hashed(self.tenant, "mark", document).hex()

    def meta(self, name: str) -> str:
        """Of a value's row in `documents`."""
        return hashed(self.tenant, "meta", name).hex()

    # Rows

    def upsert(self, table: Table, rows: Sequence[Row]) -> None:
        """Write rows over those of the same key. Up to `BATCH` become visible at one time."""
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
        """Rows by their key; those that are not there are left out. `wait` as the collection does."""
        level: Any = {} if wait else {"consistency_level": "Session"}
        key, wanted = KEY[table], list(dict.fromkeys(keys))
        found: dict[Any, Row] = {}
        with failures_named(self.address):
            for start in range(0, len(wanted), BATCH):
                rows = self._client.get(
                    self.name(table),
                    wanted[start : start + BATCH],
                    output_fields=[key, "tenant", *fields],
                    timeout=TIMEOUT,
                    **level,
                )
                found.update((row[key], row) for row in rows if row["tenant"] == self.tenant)
        return found

    def query(
        self, table: Table, where: str, fields: Sequence[str], *, limit: int = MOST_ROWS
    ) -> list[Row]:
        """Rows that a condition holds for, in no order; at most `limit`, and `MOST_ROWS`."""
        most: Any = {} if "count(*)" in fields else {"limit": limit}
        with failures_named(self.address):
            return list(
                self._client.query(
                    self.name(table),
                    filter=self._mine(where),
                    output_fields=list(fields),
                    timeout=TIMEOUT,
                    **most,
                )
            )

    def each(self, table: Table, where: str, fields: Sequence[str]) -> Iterator[Row]:
        """The same, however many they are."""
        with failures_named(self.address):
            rows = self._client.query_iterator(
                self.name(table),
                batch_size=BATCH,
                filter=self._mine(where),
                output_fields=list(fields),
                timeout=TIMEOUT,
            )
            try:
                while part := rows.next():
                    yield from part
            finally:
                rows.close()

    def count(self, table: Table, where: str = "") -> int:
        return self.query(table, where, ["count(*)"])[0]["count(*)"]

    def nearest(self, vector: list[float], k: int, fields: Sequence[str]) -> list[Row]:
        """Chunks by the dot product with their vector; each with its `score`."""
        return self._search("vector", [vector], k, fields)[0]

    def matching(
        self, field: Field, texts: Sequence[str], k: int, fields: Sequence[str]
    ) -> list[list[Row]]:
        """For each text the chunks by Milvus's BM25."""
        return self._search(f"{field}_bm25", texts, k, fields)

    def _search(
        self, field: str, data: Sequence[Any], k: int, fields: Sequence[str]
    ) -> list[list[Row]]:
        with failures_named(self.address):
            found = self._client.search(
                self.address.name,
                data=list(data),
                anns_field=field,
                filter=self._mine(""),
                limit=k,
                output_fields=list(fields),
                timeout=TIMEOUT,
            )
        # Milvus gives BM25 as it is, milvus-lite negated: both best first.
        score = float if field == "vector" else abs
        return [
            [{"key": hit["key"], "score": score(hit["distance"]), **hit["entity"]} for hit in hits]
            for hits in found
        ]

    def _mine(self, where: str) -> str:
        """The condition for the rows of this tenant alone, where there are others'."""
        mine = f'tenant == "{self.tenant}"' if self.address.tenant else ""
        return " and ".join(filter(None, (mine, where)))


@contextmanager
def failures_named(address: Address) -> Iterator[None]:
    """A server that is away, full or refuses, as an error that a person can act on."""
    from grpc import RpcError
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, RpcError) as error:
        told = isinstance(error, MilvusException)
        gone = told and error.code in GONE
        wrong = told and (type(error) is not MilvusException or error.is_input_error)
        if wrong and not gone:
            raise  # what was asked is wrong: a bug
        why = " ".join((error.message if told else str(error)).split())[:300]
        problem = Translatable(
            "{address} does not do what it is asked ({why}); look whether the server runs, and at "
            "MILVUS_TOKEN",
            address=address,
            why=why,
        )
        if told and not gone and not error.retriable and error.code not in UNHEARD:
            raise UserError(problem) from error  # it will say so again
        raise Away(problem) from error


def pieces(text: str) -> list[str]:
    """`text` cut so that each piece fits into a field."""
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]


def hashed(*parts: object) -> bytes:
    """16 bytes from content: the same row has the same key, whoever writes it."""
    return blake2b("\0".join(map(str, parts)).encode(), digest_size=16).digest()


def number(*parts: object) -> int:
    """A key of 63 bits."""
    return int.from_bytes(hashed(*parts)[:8], "big") >> 1
