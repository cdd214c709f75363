"""What can be wrong with a knowledge base on Milvus: rows that nobody sees, rows that are missing."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from ingest.store.milvus.client import Tables
from ingest.store.milvus.transaction import MARK, left_behind

UNIT = 5e-3  # how far from 1 a unit vector's length may be after float16


def findings(tables: Tables) -> Iterator[str]:
    """A line for each thing wrong. Reads every row."""
    heads = {row["id"]: row for row in tables.each("documents", 'kind == "document"', _HEAD)}
    chunks: Counter[str] = Counter()
    off = 0
    for row in tables.each("chunks", "", ["document", "vector"]):
        chunks[row["document"]] += 1
        off += not abs(np.linalg.norm(row["vector"]) - 1) < UNIT
    passages: Counter[str] = Counter()
    lengths: Counter[str] = Counter()
    for row in tables.each("passages", "", ["document", "start", "end"]):
        passages[row["document"]] += 1
        lengths[row["document"]] += row["end"] - row["start"]
    if off:
        yield f"chunks: {off} vectors aren't of length 1"
    for document, head in sorted(heads.items(), key=lambda item: item[1]["source"]):
        for what, found, due in (
            ("chunks", chunks[document], head["chunks"]),
            ("passages", passages[document], head["passages"]),
            ("characters", lengths[document], head["length"]),
        ):
            if found != due:
                yield f"{head['source']}: {found} {what}, not {due}; remove it and ingest it again"
    at_work = {row["id"] for row in tables.each("documents", f'kind == "{MARK}"', ["id"])}
    gone = (chunks.keys() | passages.keys()) - heads.keys() - (at_work - left_behind(tables))
    if gone:
        yield f"chunks: rows of {len(gone)} documents that are gone; run: rag kb rebuild"


_HEAD = ("id", "source", "length", "passages", "chunks")
