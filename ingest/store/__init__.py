"""A knowledge base: in a folder, primary data (SQLite) and two indexes (vectors, words); or on Milvus."""

from pathlib import Path

from ingest.store.local import LocalStore, open_local
from ingest.store.milvus import SCHEMES, MilvusAddress, drop_milvus, open_milvus, parse_address
from ingest.store.protocol import Change, Field, Identity, Info, Ranking, Store
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
    "drop_milvus",
    "open_store",
    "parse_address",
    "restore",
    "snapshot",
]


def open_store(place: Path | MilvusAddress, *, create: Identity | None = None) -> Store:
    """The knowledge base at `place`, ready to be read and written.

    `create`, the embedder that will be used, makes a knowledge base if there is none. Raises
    `Mismatch` if another one made the vectors, and without `create` `Absent` if there is no
    knowledge base.
    """
    if isinstance(place, MilvusAddress):
        return open_milvus(place, create=create)
    return open_local(place, create=create)
