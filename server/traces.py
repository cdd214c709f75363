"""How an answer came about, kept so that it can be looked into; and the same retrieval again."""

import json
import secrets
import time
from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict, dataclass
from sqlite3 import Connection
from typing import Any, Literal

from ingest.store import Ranking
from rag.pipeline import Pipeline
from rag.render import hit_record, record
from rag.types import Answer, Message, Retrieved
from server import schemas
from server.database import Database

TIDIED = 100  # traces between two looks at how many there are


def identity() -> str:
    """Of an answer: random, so that nobody finds another's by counting."""
    return secrets.token_hex(12)


class Timings:
    """The seconds of each stage of one question: the observer of a pipeline."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = seconds


def trace_record(
    found: Retrieved,
    timings: Timings,
    history: Sequence[Message] = (),
    answer: Answer | None = None,
) -> dict[str, Any]:
    """What was weighed for one question (chunk keys and scores, best first), found, asked of a
    model, and answered."""
    answered = record(answer) if answer else None
    if answered:
        del answered["hits"]
    prompt = answer.prompt if answer else None
    return {
        "question": found.query.text,
        "history": [asdict(message) for message in history],
        "confidence": found.confidence,
        "threshold": found.threshold,
        "candidates": weighed(found.ranking),
        "hits": [hit_record(hit) for hit in found.hits],
        "prompt": [asdict(message) for message in prompt.messages] if prompt else None,
        "answer": answered,
        "seconds": timings.seconds,
    }


def weighed(ranking: Ranking) -> list[list[float]]:
    return [list(pair) for pair in zip(ranking.keys.tolist(), ranking.scores.tolist(), strict=True)]


@dataclass(frozen=True, slots=True)
class Replay:
    """The same question asked of the knowledge base as it is now.

    `same`: every candidate has the very score that it had. `chunks` names the candidates that are
    still there; `new` and `gone` are keys.
    """

    sequence: int
    same: bool
    chunks: dict[int, str]
    new: tuple[int, ...]
    gone: tuple[int, ...]


def replay(trace: schemas.Trace, pipeline: Pipeline) -> Replay:
    """Retrieve once more and compare. Equal sequences give equal candidates, to the bit."""
    found = pipeline.retrieve(trace.record["question"])
    now, then = weighed(found.ranking), trace.record["candidates"]
    before, after = ([int(key) for key, _ in pairs] for pairs in (then, now))
    chunks = pipeline.store.chunks([*dict.fromkeys([*before, *after])])
    return Replay(
        found.sequence,
        now == then,
        {key: chunk.id for key, chunk in chunks.items()},
        tuple(key for key in after if key not in before),
        tuple(key for key in before if key not in after),
    )


class Traces:
    """The newest `most` of them. They hold text of documents, and go with these."""

    def __init__(self, database: Database, most: int = 1) -> None:
        self._database, self.most = database, most

    def keep(
        self,
        kind: Literal["ask", "search"],
        *,
        trace: str,
        base: str,
        sequence: int,
        record: dict[str, Any],
    ) -> None:
        documents = {hit["document"] for hit in record["hits"]}
        text = json.dumps(record, ensure_ascii=False)
        with self._database.change() as sql:
            (number,) = sql.execute("SELECT coalesce(max(number), 0) + 1 FROM traces").fetchone()
            row = (trace, number, time.time(), kind, base, sequence, text)
            sql.execute("INSERT INTO traces VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            sql.executemany(
                "INSERT INTO quoted VALUES (?, ?)", ((each, trace) for each in documents)
            )
            if number % TIDIED == 0:
                sql.execute("DELETE FROM traces WHERE number <= ?", (number - self.most,))

    def get(self, trace: str) -> schemas.Trace | None:
        row = self._database.row("SELECT * FROM traces WHERE id = ?", (trace,))
        if row is None:
            return None
        return schemas.Trace(
            id=row["id"],
            created=row["created"],
            kind=row["kind"],
            knowledge_base=row["base"],
            sequence=row["sequence"],
            record=json.loads(row["record"]),
        )

    def forget_document(self, base: str, document: str) -> None:
        """All traces that hold text of a document of `base`."""
        with self._database.change() as sql:
            _forget(sql, base, [document])
        self._database.shred()

    def forget_gone(self, base: str, documents: Container[str]) -> None:
        """All traces that hold text of others than these `documents`."""
        rows = self._database.rows(
            "SELECT DISTINCT document FROM quoted JOIN traces ON id = trace WHERE base = ?", (base,)
        )
        if gone := [row["document"] for row in rows if row["document"] not in documents]:
            with self._database.change() as sql:
                _forget(sql, base, gone)
            self._database.shred()

    def forget_base(self, base: str) -> None:
        with self._database.change() as sql:
            sql.execute("DELETE FROM traces WHERE base = ?", (base,))
        self._database.shred()


def _forget(sql: Connection, base: str, documents: Iterable[str]) -> None:
    sql.executemany(
        "DELETE FROM traces WHERE base = ? AND id IN (SELECT trace FROM quoted WHERE document = ?)",
        ((base, document) for document in documents),
    )
