"""The store on a Milvus server: for knowledge bases that outgrow one machine."""

from ingest.store.milvus.client import SCHEMES, MilvusAddress, parse_address
from ingest.store.milvus.store import drop_milvus, open_milvus

__all__ = ["SCHEMES", "MilvusAddress", "drop_milvus", "open_milvus", "parse_address"]
