"""Records of how answers were made."""

import json
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

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
        "candidates": [*zip(found.ranking.keys.tolist(), found.ranking.scores.tolist(), strict=True)],
        "hits": [hit_record(hit) for hit in found.hits],
        "prompt": [asdict(message) for message in prompt.messages] if prompt else None,
        "answer": answer_record,
        "seconds": seconds,
    }


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
