"""A place -> the store that is there: a folder's own, or one on a server."""

from pathlib import Path

from ingest.store.local import open_local
from ingest.store.milvus import Address, open_milvus
from ingest.store.protocol import Identity, Store


def open_store(
    place: Path | Address, *, create: Identity | None = None, expect: Identity | None = None
) -> Store:
    """The knowledge base at `place`, ready to be read and written.

    `create` makes one where there is none. `create` and `expect` name the embedder that is going
    to be used: `Mismatch` if another made the vectors. Raises `Absent` where there is none.
    """
    if isinstance(place, Address):
        return open_milvus(place, create=create, expect=expect)
    return open_local(place, create=create, expect=expect)
