"""The fields, BM25 functions and indexes of the three collections, and the text that they index."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from ingest.normalize import LONGEST, RUN, Field, bigrams, normalize, pairs, words

if TYPE_CHECKING:
    from pymilvus import CollectionSchema, MilvusClient


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
    """The text for a field of a chunk, or for a query of that field; "" if there is no word. A text
    of more than 65,535 bytes is cut."""
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
