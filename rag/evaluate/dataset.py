"""Questions with known answers over a known corpus, read from a folder of one of two layouts.

BEIR's: `corpus.jsonl`, `queries.jsonl`, and `qrels.tsv` or `qrels/test.tsv`; queries may carry
`answers` and `answerable`. Ours: `questions.jsonl` beside a folder `docs/` of files.
"""

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ingest.errors import UserError


@dataclass(frozen=True, slots=True)
class Entry:
    """A corpus entry of a BEIR-like set. Its `id` becomes the source of the ingested document."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Gold:
    """A place that answers a question: `quote` stands in the file `document` below `docs/`."""

    document: str
    quote: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answers (any one suffices) and what is relevant to it.

    BEIR-like sets fill `grades` (corpus id -> grade, relevant above 0), ours fill `gold`; both are
    empty when the corpus does not hold the answer.
    """

    id: str
    text: str
    answerable: bool
    answers: tuple[str, ...] = ()
    grades: Mapping[str, int] = field(default_factory=dict)
    gold: tuple[Gold, ...] = ()
    language: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A named set of questions, and what they are asked of: `entries`, or the files in `docs`."""

    name: str
    questions: tuple[Question, ...]
    entries: tuple[Entry, ...] = ()
    docs: Path | None = None

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        """Read and check `folder`; a `UserError` names the file and the line that is wrong."""
        if (folder / "corpus.jsonl").is_file():
            dataset = _load_beir(folder)
        elif (folder / "questions.jsonl").is_file():
            dataset = _load_ours(folder)
        else:
            raise UserError(
                f"{folder} is no evaluation set: it needs corpus.jsonl, queries.jsonl and"
                " qrels.tsv, or questions.jsonl and docs/"
            )
        if not dataset.questions:
            raise UserError(f"{folder} has no question with a judgement; nothing to evaluate")
        return dataset

    def sample(self, count: int, *, seed: int = 0) -> "Dataset":
        """This set with `count` of its questions, drawn at random and kept in order."""
        if count >= len(self.questions):
            return self
        places = sorted(random.Random(seed).sample(range(len(self.questions)), count))
        return replace(self, questions=tuple(self.questions[place] for place in places))


def _load_beir(folder: Path) -> Dataset:
    entries: dict[str, Entry] = {}
    for where, record in _records(folder / "corpus.jsonl"):
        id = _take(record, "_id", str, where)
        _once(id, entries, where)
        title = _take(record, "title", str, where, default="")
        entries[id] = Entry(id, title, _take(record, "text", str, where))
    queries = folder / "queries.jsonl"
    records = {
        _take(record, "_id", str, where): (where, record) for where, record in _unique(queries)
    }
    grades = _qrels(folder, entries, records)
    questions = []
    for id, (where, record) in records.items():
        judged = any(grade > 0 for grade in grades.get(id, {}).values())
        if "answerable" not in record and not judged:
            continue  # BEIR's queries.jsonl also holds the queries of other splits
        answerable = _take(record, "answerable", bool, where, default=judged)
        if answerable != judged:
            says = "relevant entries" if judged else "no relevant entry"
            raise UserError(
                f"{where}: query {id} is answerable: {str(answerable).lower()},"
                f" but qrels give it {says}; make them agree"
            )
        questions.append(
            Question(
                id,
                _take(record, "text", str, where),
                answerable,
                _strings(record, "answers", where),
                grades.get(id, {}),
            )
        )
    return Dataset(folder.name, tuple(questions), tuple(entries.values()))


def _qrels(
    folder: Path, entries: Mapping[str, Entry], queries: Mapping[str, object]
) -> dict[str, dict[str, int]]:
    """Query id -> corpus id -> grade."""
    path = folder / "qrels.tsv"
    if not path.exists() and (folder / "qrels" / "test.tsv").exists():
        path = folder / "qrels" / "test.tsv"
    grades: dict[str, dict[str, int]] = {}
    for where, line in _lines(path):
        columns = line.split("\t")
        if where.endswith(":1") and columns[0] == "query-id":
            continue
        if len(columns) != 3:
            raise UserError(
                f"{where}: {len(columns)} columns; a line is query id, corpus id and score,"
                " separated by tabs"
            )
        query, entry, score = columns
        if query not in queries:
            raise UserError(f"{where}: query {query!r} is not in {folder / 'queries.jsonl'}")
        if entry not in entries:
            raise UserError(f"{where}: entry {entry!r} is not in {folder / 'corpus.jsonl'}")
        try:
            grades.setdefault(query, {})[entry] = int(score)
        except ValueError:
            raise UserError(f"{where}: score {score!r} is no whole number") from None
    return grades


def _load_ours(folder: Path) -> Dataset:
    if not (folder / "docs").is_dir():
        raise UserError(f"{folder} has questions.jsonl but no folder docs/ to ask them of")
    questions = []
    for where, record in _unique(folder / "questions.jsonl", key="id"):
        answerable = _take(record, "answerable", bool, where, default=True)
        gold = _gold(record, folder / "docs", where)
        if answerable != bool(gold):
            raise UserError(
                f"{where}: answerable is {str(answerable).lower()} but gold holds {len(gold)}"
                " places; answerable questions have one or more, the others none"
            )
        questions.append(
            Question(
                id=_take(record, "id", str, where),
                text=_take(record, "question", str, where),
                answerable=answerable,
                answers=_strings(record, "answers", where),
                gold=gold,
                language=_take(record, "language", str, where, default=""),
                kind=_take(record, "kind", str, where, default=""),
            )
        )
    return Dataset(folder.name, tuple(questions), docs=folder / "docs")


def _gold(record: Mapping[str, Any], docs: Path, where: str) -> tuple[Gold, ...]:
    gold = []
    for place in _take(record, "gold", list, where, default=[]):
        if not isinstance(place, dict):
            raise UserError(f"{where}: gold holds {place!r}; it needs a document and a quote")
        document, quote = _take(place, "document", str, where), _take(place, "quote", str, where)
        if not (docs / document).is_file():
            raise UserError(f"{where}: gold names {document!r}, which is not a file in {docs}")
        gold.append(Gold(document, quote))
    return tuple(gold)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of `path` that are not blank, each with its place, `file:line`."""
    if not path.is_file():
        raise UserError(f"{path} is missing; it belongs to an evaluation set")
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{where}: not UTF-8 ({error.reason} at byte {error.start})"
                ) from None
            if line.strip():
                yield where, line


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in _lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: no JSON ({error.msg} at column {error.colno})") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: a {type(record).__name__}; each line is one JSON object")
        yield where, record


def _unique(path: Path, *, key: str = "_id") -> Iterator[tuple[str, dict[str, Any]]]:
    seen: set[str] = set()
    for where, record in _records(path):
        id = _take(record, key, str, where)
        _once(id, seen, where)
        seen.add(id)
        yield where, record


def _once(id: str, seen: Mapping[str, object] | set[str], where: str) -> None:
    if id in seen:
        raise UserError(f"{where}: id {id!r} was used before; ids are unique")


_REQUIRED: Any = object()


def _take(
    record: Mapping[str, Any], name: str, kind: type, where: str, *, default: Any = _REQUIRED
) -> Any:
    """`record[name]`, which is of `kind`; `default` where it is absent."""
    value = record.get(name, default)
    if value is _REQUIRED:
        raise UserError(f"{where}: no field {name!r}; the fields are {', '.join(record) or 'none'}")
    if not isinstance(value, kind):
        raise UserError(f"{where}: {name} is {value!r}; it must be a {kind.__name__}")
    return value


def _strings(record: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    values = _take(record, name, list, where, default=[])
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where}: {name} holds {value!r}; it must be a list of texts")
    return tuple(values)
