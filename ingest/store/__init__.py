"""A knowledge base: one truth (SQLite) and two caches (vectors, words) in a directory."""

from ingest.store.local import LocalStore, open_store
from ingest.store.protocol import Change, Field, Identity, Info, Ranking, Store
from ingest.store.snapshot import restore, snapshot

__all__ = [
    "Change",
    "Field",
    "Identity",
    "Info",
    "LocalStore",
    "Ranking",
    "Store",
    "open_store",
    "restore",
    "snapshot",
]
