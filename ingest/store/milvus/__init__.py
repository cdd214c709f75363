"""The store on a Milvus server: for knowledge bases that outgrow one machine."""

from ingest.store.milvus.client import SCHEMES, Address, parse_address
from ingest.store.milvus.store import drop_milvus, open_milvus

__all__ = ["SCHEMES", "Address", "drop_milvus", "open_milvus", "parse_address"]
