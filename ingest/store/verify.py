"""What can be wrong with a knowledge base, checked against the truth and against itself."""

import sqlite3
from collections.abc import Iterator

import numpy as np

from ingest.store import rows
from ingest.store.vector_index import Candidates
from ingest.store.word_index import Words

UNIT = 5e-3  # how far from 1 a unit vector's length may be after float16

QUESTIONS = {
    "passages don't tile the text of {}": """
        SELECT DISTINCT d.source FROM documents d JOIN (
            SELECT document, start, lag(end, 1, 0)
            OVER (PARTITION BY document ORDER BY start) AS due FROM passages
        ) p ON p.document = d.key WHERE p.start != p.due
        UNION SELECT source FROM documents d WHERE length !=
            (SELECT coalesce(max(end), 0) FROM passages WHERE document = d.key)""",
    "a passage of {} is not as long as its offsets say": """
        SELECT DISTINCT d.source FROM documents d JOIN passages p ON p.document = d.key
        WHERE length(CAST(p.text AS BLOB)) < p.end - p.start""",
    "a chunk of {} is not inside its passage": """
        SELECT DISTINCT d.source FROM chunks c JOIN passages p ON p.key = c.passage
        JOIN documents d ON d.key = c.document
        WHERE c.start < p.start OR c.end > p.end OR c.document != p.document""",
}


def findings(sql: sqlite3.Connection, candidates: Candidates, words: Words, dim: int) -> list[str]:
    """A line for each thing wrong; empty where all is well. Reads the whole truth."""
    return [*truth(sql, dim), *caches(sql, candidates, words)]


def truth(sql: sqlite3.Connection, dim: int) -> Iterator[str]:
    for (line,) in sql.execute("PRAGMA integrity_check"):
        if line != "ok":
            yield f"kb.sqlite: {line}"
    for table, row, *_ in sql.execute("PRAGMA foreign_key_check"):
        yield f"kb.sqlite: row {row} of {table} belongs to nothing"
    for finding, query in QUESTIONS.items():
        for (source,) in sql.execute(query):
            yield f"kb.sqlite: {finding.format(source)}"
    wrong = sql.execute("SELECT count(*) FROM chunks WHERE length(vector) != ?", (2 * dim,))
    if count := wrong.fetchone()[0]:
        yield f"kb.sqlite: {count} vectors are not {dim} wide"
        return
    for keys, vectors in rows.vectors_after(sql, 0, dim):
        lengths = np.linalg.norm(vectors, axis=1)
        off = ~(np.abs(lengths - 1) < UNIT)
        if off.any():
            yield f"kb.sqlite: {off.sum()} vectors from key {keys[off][0]} on aren't of length 1"


def caches(sql: sqlite3.Connection, candidates: Candidates, words: Words) -> Iterator[str]:
    live = {key for (key,) in sql.execute("SELECT key FROM chunks")}
    lacking = live - set(candidates.keys().tolist())
    if lacking:
        yield f"vectors: {len(lacking)} chunks are missing; run: rag kb rebuild"
    if words.covered != rows.covered(sql):
        yield f"words: the index covers {words.covered.seq}, not the newest change"
    indexed = words.keys()
    if indexed != live:
        lost, extra = len(live - indexed), len(indexed - live)
        yield f"words: {lost} chunks are missing, {extra} too many; run: rag kb rebuild"
