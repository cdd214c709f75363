"""A knowledge base: in a folder, primary data (SQLite) and two indexes (vectors, words); or on Milvus."""

from ingest.store.local import LocalStore, open_store
from ingest.store.milvus import SCHEMES, MilvusAddress, drop_milvus, parse_address
from ingest.store.protocol import Change, Field, Identity, Info, Ranking, Store, Within
from ingest.store.snapshot import restore, snapshot

__all__ = [
    "SCHEMES",
    "Change",
    "Field",
    "Identity",
    "Info",
    "LocalStore",
    "MilvusAddress",
    "Ranking",
    "Store",
    "Within",
    "drop_milvus",
    "open_store",
    "parse_address",
    "restore",
    "snapshot",
]
