"""Records of how answers were made, and the repetition of a retrieval for comparison."""

import json
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ingest.store import Ranking
from rag.pipeline import Pipeline
from rag.render import hit_record, record
from rag.types import Answer, Message, Retrieved
from server import schemas
from server.database import Database

PRUNE_INTERVAL = 100  # traces between two deletions of the oldest
Kind = Literal["ask", "search"]


def trace_record(
    found: Retrieved,
    seconds: Mapping[str, float],
    history: Sequence[Message] = (),
    answer: Answer | None = None,
) -> dict[str, Any]:
    """The candidates of one question (chunk keys and scores, best first), the hits, the prompt, the
    answer, and the seconds of each stage."""
    answer_record = record(answer) if answer else None
    if answer_record:
        del answer_record["hits"]
    prompt = answer.prompt if answer else None
    return {
        "question": found.query.text,
        "history": [asdict(message) for message in history],
        "confidence": found.confidence,
        "threshold": found.threshold,
        "candidates": _candidates(found.ranking),
        "hits": [hit_record(hit) for hit in found.hits],
        "prompt": [asdict(message) for message in prompt.messages] if prompt else None,
        "answer": answer_record,
        "seconds": seconds,
    }


def _candidates(ranking: Ranking) -> list[list[float]]:
    return [list(pair) for pair in zip(ranking.keys.tolist(), ranking.scores.tolist(), strict=True)]


@dataclass(frozen=True, slots=True)
class Replay:
    """The retrieval of the same question from the knowledge base as it is now.

    `same`: all candidates and their scores are equal. `chunks` are the ids of the candidates that
    still exist, by key; `new` and `gone` are keys.
    """

    sequence: int
    same: bool
    chunks: dict[int, str]
    new: tuple[int, ...]
    gone: tuple[int, ...]


def replay(trace: schemas.TraceResponse, pipeline: Pipeline) -> Replay:
    """Retrieve again and compare. Equal sequences give equal candidates, to the bit."""
    found = pipeline.retrieve(trace.record["question"])
    now, then = _candidates(found.ranking), trace.record["candidates"]
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
    """The newest `limit` traces. They hold text of documents and are deleted together with them."""

    def __init__(self, database: Database, limit: int = 1) -> None:
        self._database, self.limit = database, limit

    def add(self, kind: Kind, *, trace: str, base: str, sequence: int, record: dict[str, Any]) -> None:
        text = json.dumps(record, ensure_ascii=False)
        with self._database.change() as sql:
            (number,) = sql.execute("SELECT coalesce(max(number), 0) + 1 FROM traces").fetchone()
            row = (trace, number, time.time(), kind, base, sequence, text)
            sql.execute("INSERT INTO traces VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            documents = {(hit["document"], trace) for hit in record["hits"]}
            sql.executemany("INSERT INTO quoted VALUES (?, ?)", documents)
            if number % PRUNE_INTERVAL == 0:
                sql.execute("DELETE FROM traces WHERE number <= ?", (number - self.limit,))

    def get(self, trace: str) -> schemas.TraceResponse | None:
        row = self._database.row("SELECT * FROM traces WHERE id = ?", (trace,))
        if row is None:
            return None
        return schemas.TraceResponse(
            id=row["id"], created=row["created"], kind=row["kind"], knowledge_base=row["base"],
            sequence=row["sequence"], record=json.loads(row["record"]),
        )  # fmt: skip

    def delete_documents(self, base: str, documents: Iterable[str]) -> None:
        """Delete all traces that hold text of these documents of `base`."""
        query = "DELETE FROM traces WHERE base = ? AND id IN (SELECT trace FROM quoted WHERE document = ?)"
        with self._database.change() as sql:
            sql.executemany(query, ((base, document) for document in documents))
        self._database.shred()

    def delete_except(self, base: str, documents: Container[str]) -> None:
        """Delete all traces that hold text of other documents than these."""
        rows = self._database.rows(
            "SELECT DISTINCT document FROM quoted JOIN traces ON id = trace WHERE base = ?", (base,)
        )
        if missing := [row["document"] for row in rows if row["document"] not in documents]:
            self.delete_documents(base, missing)

    def delete_knowledge_base(self, base: str) -> None:
        self._database.execute("DELETE FROM traces WHERE base = ?", (base,))
        self._database.shred()
