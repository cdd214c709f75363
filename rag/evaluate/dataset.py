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
from ingest.i18n import Translatable


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of `path` that are not blank, each with its place, `file:line`."""
    if not path.is_file():
        raise UserError("{path} is missing; it belongs to an evaluation set", path=path)
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise wrong(
                    where,
                    Translatable(
                        "not UTF-8 ({reason} at byte {start})",
                        reason=error.reason,
                        start=error.start,
                    ),
                ) from None
            if line.strip():
                yield where, line


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise wrong(
                where,
                Translatable("no JSON ({msg} at column {colno})", msg=error.msg, colno=error.colno),
            ) from None
        if not isinstance(record, dict):
            raise wrong(
                where,
                Translatable(
                    "a {name__}; each line is one JSON object", name__=type(record).__name__
                ),
            )
        yield where, record


def unique(path: Path, *, key: str = "_id") -> Iterator[tuple[str, dict[str, Any]]]:
    seen: set[str] = set()
    for where, record in records(path):
        id = take(record, key, str, where)
        once(id, seen, where)
        seen.add(id)
        yield where, record


def once(id: str, seen: Mapping[str, object] | set[str], where: str) -> None:
    if id in seen:
        raise wrong(where, Translatable("id {id!r} was used before; ids are unique", id=id))


KINDS = {
    str: Translatable("a text"),
    int: Translatable("an integer"),
    bool: Translatable("true or false"),
    list: Translatable("a list"),
}
_REQUIRED: Any = object()


def take(
    record: Mapping[str, Any], name: str, kind: type, where: str, *, default: Any = _REQUIRED
) -> Any:
    """`record[name]`, which is of `kind`, one of `KINDS`; `default` where it is absent."""
    value = record.get(name, default)
    if value is _REQUIRED:
        names = ", ".join(record) or "none"
        raise wrong(
            where, Translatable("no field {name!r}; the fields are {names}", name=name, names=names)
        )
    if not isinstance(value, kind):
        raise wrong(
            where,
            Translatable(
                "{name} is {value!r}; it must be {kind}", name=name, value=value, kind=KINDS[kind]
            ),
        )
    return value


def strings(record: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    values = take(record, name, list, where, default=[])
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise wrong(
                where,
                Translatable(
                    "{name} holds {value!r}; it must be a list of texts", name=name, value=value
                ),
            )
    return tuple(values)


def wrong(where: str, problem: Translatable) -> UserError:
    """The error that says what is wrong at `where`."""
    return UserError("{where}: {problem}", where=where, problem=problem)


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
                "{folder} is no evaluation set: it needs corpus.jsonl, queries.jsonl and qrels.tsv, "
                "or questions.jsonl and docs/",
                folder=folder,
            )
        if not dataset.questions:
            raise UserError(
                "{folder} has no question with a judgement; nothing to evaluate", folder=folder
            )
        return dataset

    def sample(self, count: int, *, seed: int = 0) -> "Dataset":
        """This set with `count` of its questions, drawn at random and kept in order."""
        if count >= len(self.questions):
            return self
        places = sorted(random.Random(seed).sample(range(len(self.questions)), count))
        return replace(self, questions=tuple(self.questions[place] for place in places))


def _load_beir(folder: Path) -> Dataset:
    entries: dict[str, Entry] = {}
    for where, record in records(folder / "corpus.jsonl"):
        id = take(record, "_id", str, where)
        once(id, entries, where)
        title = take(record, "title", str, where, default="")
        entries[id] = Entry(id, title, take(record, "text", str, where))
    queries = folder / "queries.jsonl"
    asked = {take(record, "_id", str, where): (where, record) for where, record in unique(queries)}
    grades = _qrels(folder, entries, asked)
    questions = []
    for id, (where, record) in asked.items():
        judged = any(grade > 0 for grade in grades.get(id, {}).values())
        if "answerable" not in record and not judged:
            continue  # BEIR's queries.jsonl also holds the queries of other splits
        answerable = take(record, "answerable", bool, where, default=judged)
        if answerable != judged:
            relevant = (
                Translatable("relevant entries") if judged else Translatable("no relevant entry")
            )
            raise wrong(
                where,
                Translatable(
                    "query {id} is answerable: {answerable}, but qrels give it {relevant}; make them agree",
                    id=id,
                    answerable=str(answerable).lower(),
                    relevant=relevant,
                ),
            )
        questions.append(
            Question(
                id,
                take(record, "text", str, where),
                answerable,
                strings(record, "answers", where),
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
    for where, line in lines(path):
        columns = line.split("\t")
        if where.endswith(":1") and columns[0] == "query-id":
            continue
        if len(columns) != 3:
            raise wrong(
                where,
                Translatable(
                    "{columns_count} columns; a line is query id, corpus id and score between tabs",
                    columns_count=len(columns),
                ),
            )
        query, entry, score = columns
        if query not in queries:
            file = folder / "queries.jsonl"
            raise wrong(
                where, Translatable("query {query!r} is not in {file}", query=query, file=file)
            )
        if entry not in entries:
            file = folder / "corpus.jsonl"
            raise wrong(
                where, Translatable("entry {entry!r} is not in {file}", entry=entry, file=file)
            )
        try:
            grades.setdefault(query, {})[entry] = int(score)
        except ValueError:
            raise wrong(
                where, Translatable("score {score!r} is no whole number", score=score)
            ) from None
    return grades


def _load_ours(folder: Path) -> Dataset:
    if not (folder / "docs").is_dir():
        raise UserError(
            "{folder} has questions.jsonl but no folder docs/ to ask them of", folder=folder
        )
    questions = []
    for where, record in unique(folder / "questions.jsonl", key="id"):
        answerable = take(record, "answerable", bool, where, default=True)
        gold = _gold(record, folder / "docs", where)
        if answerable != bool(gold):
            raise wrong(
                where,
                Translatable(
                    "answerable is {answerable} but gold holds {gold_count} places; answerable questions "
                    "have one or more, the others none",
                    answerable=str(answerable).lower(),
                    gold_count=len(gold),
                ),
            )
        questions.append(
            Question(
                id=take(record, "id", str, where),
                text=take(record, "question", str, where),
                answerable=answerable,
                answers=strings(record, "answers", where),
                gold=gold,
                language=take(record, "language", str, where, default=""),
                kind=take(record, "kind", str, where, default=""),
            )
        )
    return Dataset(folder.name, tuple(questions), docs=folder / "docs")


def _gold(record: Mapping[str, Any], docs: Path, where: str) -> tuple[Gold, ...]:
    gold = []
    for place in take(record, "gold", list, where, default=[]):
        if not isinstance(place, dict):
            raise wrong(
                where,
                Translatable("gold holds {place!r}; it needs a document and a quote", place=place),
            )
        document, quote = take(place, "document", str, where), take(place, "quote", str, where)
        if not (docs / document).is_file():
            raise wrong(
                where,
                Translatable(
                    "gold names {document!r}, which is not a file in {docs}",
                    document=document,
                    docs=docs,
                ),
            )
        gold.append(Gold(document, quote))
    return tuple(gold)
