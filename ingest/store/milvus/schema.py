"""What the three collections are made of: fields, Milvus's own BM25 functions, indexes."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from ingest.normalize import LONGEST, RUN, Field, normalize, pairs, words
from ingest.normalize import bigrams as pairs_of

if TYPE_CHECKING:
    from pymilvus import CollectionSchema, MilvusClient


Table = Literal["chunks", "passages", "documents"]

TABLES: tuple[Table, ...] = ("chunks", "passages", "documents")
KEY: dict[Table, str] = {"chunks": "key", "passages": "place", "documents": "name"}
"""The primary key of each."""

MOST_BYTES = 65_535  # of a VARCHAR
MOST_PIECES = 4_096  # of an ARRAY
BM25 = {"bm25_k1": 1.2, "bm25_b": 0.75}  # as the local store's
ANALYZERS: dict[Field, Any] = {
    "words": {"tokenizer": "jieba", "filter": [{"type": "stop", "stop_words": [" "]}]},
    "bigrams": {"tokenizer": "standard"},
}


def schema(table: Table, dim: int, *, shared: bool) -> "CollectionSchema":
    """`shared` by tenants: Milvus keeps their rows in partitions."""
    from pymilvus import DataType, Function, FunctionType, MilvusClient

    made = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)

    def add(name: str, kind: str, **options: Any) -> None:
        made.add_field(name, DataType[kind], **options)

    def text(name: str) -> None:
        pieces = {"element_type": DataType.VARCHAR, "max_capacity": MOST_PIECES}
        add(name, "ARRAY", max_length=MOST_BYTES, **pieces)

    def short(*names: str) -> None:
        for name in names:
            add(name, "VARCHAR", max_length=MOST_BYTES)

    if table == "documents":
        add("name", "VARCHAR", max_length=64, is_primary=True)
    else:
        add(KEY[table], "INT64", is_primary=True)
    add("tenant", "VARCHAR", max_length=64, is_partition_key=shared)
    if table == "documents":
        short("kind", "id", "source", "digest")
        text("title")
        text("value")
        for number in ("length", "passages", "chunks"):
            add(number, "INT64")
    else:
        short("document")
        for number in ("start", "end"):
            add(number, "INT64")
        text("text")
    if table == "passages":
        text("label")
    if table == "chunks":
        short("name", "digest")
        text("context")
        text("places")
        add("passage_start", "INT64")
        add("passage_end", "INT64")
        add("vector", "FLOAT_VECTOR", dim=dim)
        for field, analyzer in ANALYZERS.items():
            add(
                field,
                "VARCHAR",
                max_length=MOST_BYTES,
                enable_analyzer=True,
                analyzer_params=analyzer,
            )
            add(f"{field}_bm25", "SPARSE_FLOAT_VECTOR")
            made.add_function(
                Function(f"{field}_bm25", FunctionType.BM25, [field], [f"{field}_bm25"])
            )
    else:
        add("nothing", "FLOAT_VECTOR", dim=2)  # a collection must have a vector
    return made


def indexes(client: "MilvusClient", table: Table) -> Any:
    made = client.prepare_index_params()
    if table == "chunks":
        made.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
        for field in ANALYZERS:
            sparse = {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "BM25"}
            made.add_index(f"{field}_bm25", **sparse, params=BM25)
    else:
        made.add_index("nothing", index_type="FLAT", metric_type="L2")
    for field in {
        "chunks": ("document", "digest"),
        "passages": ("document",),
        "documents": ("id", "kind"),
    }[table]:
        made.add_index(field, index_type="INVERTED")
    return made


def analysed(text: str, field: Field) -> str:
    """What the field of a chunk, or a question to it, holds; "" where there is no word.

    Of a text of more than 65,535 bytes the beginning.
    """
    if field == "words":
        said = " ".join(_runs(normalize(text)))
    else:
        said = " ".join(map(spelled, pairs_of(text)))
    return said.encode()[:MOST_BYTES].decode(errors="ignore")


def asked(text: str, field: Field) -> str:
    """The same for a question, in which a word said twice counts once."""
    return " ".join(dict.fromkeys(analysed(text, field).split()))


def term(folded: str, field: Field) -> str:
    """One folded term as a question."""
    run = RUN.fullmatch(folded)
    return folded if field == "words" and run and run["han"] else spelled(folded)


def _runs(folded: str) -> Iterator[str]:
    for run in RUN.finditer(folded):
        if run["han"]:
            yield run[0]
        else:
            yield from map(spelled, pairs(run[0]) if run["other"] else (run[0][:LONGEST],))


def tokens(said: str, field: Field) -> list[str]:
    """What an analyzer makes of `analysed` text, near enough to count."""
    return words(said) if field == "words" else said.split()


def spelled(folded: str) -> str:
    """A pair of characters, or a word, as one word of ASCII: `试用` -> `u8bd5u7528`."""
    if folded.isascii() and folded.isalnum():
        return folded
    return "".join(f"u{ord(character):x}" for character in folded)
