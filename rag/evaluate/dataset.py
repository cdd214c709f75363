"""Questions with known answers over a known corpus, read from a folder of one of two layouts.

BEIR's: `corpus.jsonl`, `queries.jsonl`, and `qrels.tsv` or `qrels/test.tsv`; queries may have
`answers` and `answerable`. Ours: `questions.jsonl` beside a folder `docs/` of files. A question has
`gold`, places with a quote, or names its file, `doc`; it may have a `kind` and an `evidence` page.
"""

import json
import random
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, LiteralString, TypeVar

from ingest.errors import UserError
from ingest.i18n import Translatable


class InvalidRecord(UserError):
    """The line `where` of a file is invalid."""

    def __init__(self, template: LiteralString | Translatable, where: str, /, **fields: object) -> None:
        problem = UserError(template, **fields).message
        super().__init__("{where}: {problem}", where=where, problem=problem)


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of `path` that are not blank, each with its place, `file:line`."""
    if not path.is_file():
        raise UserError("{path} is missing; an evaluation set needs it", path=path)
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise InvalidRecord("not UTF-8 (byte {n})", where, n=error.start) from None
            if line.strip():
                yield where, line


def records(path: Path, key: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The JSON objects in `path`, each with its place and its id, the unique value of `key`."""
    ids: set[str] = set()
    for where, line in lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidRecord(
                "not JSON ({problem} at column {n})", where, problem=error.msg, n=error.colno
            ) from None
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise InvalidRecord("a {kind}; each line must be a JSON object", where, kind=kind)
        id = take(record, key, str, where)
        if id in ids:
            raise InvalidRecord("id {id!r} was used before; ids are unique", where, id=id)
        ids.add(id)
        yield where, id, record


KINDS = {
    str: Translatable("a text"),
    int: Translatable("an integer"),
    bool: Translatable("true or false"),
    list: Translatable("a list"),
    dict: Translatable("an object"),
}
UNANSWERABLE = "unanswerable"
_REQUIRED: Any = object()


def take(record: Mapping[str, Any], name: str, kind: type, where: str, *, default: Any = _REQUIRED) -> Any:
    """`record[name]`, or `default` if it is absent. Raises `InvalidRecord` if it is not of `kind`,
    one of `KINDS`."""
    value = record.get(name, default)
    if value is _REQUIRED:
        names = ", ".join(record) or "none"
        raise InvalidRecord("no field {name!r} among {names}", where, name=name, names=names)
    if not isinstance(value, kind):
        need = KINDS[kind]
        raise InvalidRecord(
            "{name} is {value!r}; it must be {need}", where, name=name, value=value, need=need
        )
    return value


@dataclass(frozen=True, slots=True)
class Entry:
    """A corpus entry of a BEIR-like set. Its `id` becomes the source of the ingested document."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Gold:
    """A place that answers a question: the `quote` in the file `document` below `docs/`."""

    document: str
    quote: str


@dataclass(frozen=True, slots=True)
class EvalQuestion:
    """A question, its answers (any one suffices) and what is relevant to it.

    BEIR-like sets fill `grades` (corpus id -> grade, relevant above 0), ours fill `gold`. Both are
    empty if the corpus does not contain the answer. `kind` groups questions; `page` is the page of a
    PDF that answers.
    """

    id: str
    text: str
    answerable: bool
    answers: tuple[str, ...] = ()
    grades: Mapping[str, int] = field(default_factory=dict)
    gold: tuple[Gold, ...] = ()
    kind: str = ""
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """A named set of questions and its corpus: `entries`, or the files in `docs`."""

    name: str
    questions: tuple[EvalQuestion, ...]
    entries: tuple[Entry, ...] = ()
    docs: Path | None = None

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        """Read and check `folder`. Raises `UserError`, which names the invalid file and line."""
        if (folder / "corpus.jsonl").is_file():
            dataset = _load_beir(folder)
        elif (folder / "questions.jsonl").is_file():
            dataset = _load_ours(folder)
        else:
            raise UserError(
                "{folder} is not an evaluation set: it needs corpus.jsonl, queries.jsonl and "
                "qrels.tsv, or questions.jsonl and docs/",
                folder=folder,
            )
        if not dataset.questions:
            raise UserError("{folder} has no judged question; nothing to evaluate", folder=folder)
        return dataset

    def sample(self, count: int, *, seed: int = 0) -> "Dataset":
        """This set with `count` of its questions, drawn at random, in their order."""
        return replace(self, questions=sample(self.questions, count, seed=seed))


T = TypeVar("T")


def sample(items: Sequence[T], count: int, *, seed: int = 0) -> tuple[T, ...]:
    """`count` of the items (all if there are fewer), drawn at random, in their order."""
    positions = sorted(random.Random(seed).sample(range(len(items)), min(count, len(items))))
    return tuple(items[i] for i in positions)


def _load_beir(folder: Path) -> Dataset:
    entries: dict[str, Entry] = {}
    for where, id, record in records(folder / "corpus.jsonl", "_id"):
        title = take(record, "title", str, where, default="")
        entries[id] = Entry(id, title, take(record, "text", str, where))
    queries = list(records(folder / "queries.jsonl", "_id"))
    grades = _qrels(folder, entries, {id for _, id, _ in queries})
    questions = []
    for where, id, record in queries:
        judged = any(grade > 0 for grade in grades.get(id, {}).values())
        if "answerable" not in record and not judged:
            continue  # BEIR's queries.jsonl also contains the queries of other splits
        if take(record, "answerable", bool, where, default=judged) != judged:
            relevant = Translatable("relevant entries")
            raise InvalidRecord(
                "query {id} has answerable: {answerable}, but qrels give it {relevant}; fix one",
                where,
                id=id,
                answerable=str(not judged).lower(),
                relevant=relevant if judged else Translatable("no relevant entry"),
            )
        text, answers = take(record, "text", str, where), _answers(record, where)
        questions.append(EvalQuestion(id, text, judged, answers, grades.get(id, {})))
    return Dataset(folder.name, tuple(questions), tuple(entries.values()))


def _qrels(folder: Path, entries: Container[str], queries: Container[str]) -> dict[str, dict[str, int]]:
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
            n = len(columns)
            raise InvalidRecord("{n} columns; need 3: query id, corpus id, score", where, n=n)
        query, entry, score = columns
        if query not in queries:
            file = folder / "queries.jsonl"
            raise InvalidRecord("query {id!r} is not in {file}", where, id=query, file=file)
        if entry not in entries:
            file = folder / "corpus.jsonl"
            raise InvalidRecord("entry {id!r} is not in {file}", where, id=entry, file=file)
        try:
            grades.setdefault(query, {})[entry] = int(score)
        except ValueError:
            raise InvalidRecord("score {score!r} is not an integer", where, score=score) from None
    return grades


def _load_ours(folder: Path) -> Dataset:
    if not (folder / "docs").is_dir():
        raise UserError("{folder} has questions.jsonl but no folder docs/", folder=folder)
    questions = []
    for where, id, record in records(folder / "questions.jsonl", "id"):
        kind = take(record, "kind", str, where, default="")
        answerable = take(record, "answerable", bool, where, default=kind != UNANSWERABLE)
        gold = _gold(record, folder / "docs", where) if answerable or "gold" in record else ()
        if answerable != bool(gold):
            raise InvalidRecord(
                "answerable is {answerable} but gold has {n} places; an answerable question needs "
                "one or more, any other question none",
                where,
                answerable=str(answerable).lower(),
                n=len(gold),
            )
        text, answers = take(record, "question", str, where), _answers(record, where)
        page = _page(record, where)
        questions.append(EvalQuestion(id, text, answerable, answers, gold=gold, kind=kind, page=page))
    return Dataset(folder.name, tuple(questions), docs=folder / "docs")


def _answers(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    answers = take(record, "answers", list, where, default=[])
    for value in answers:
        if not isinstance(value, str) or not value.strip():
            raise InvalidRecord("answers has {x!r}; each must be a text", where, x=value)
    return tuple(answers)


def _page(record: Mapping[str, Any], where: str) -> int | None:
    """The page of the evidence in a PDF; drawings of other formats have pages that no label names."""
    evidence = take(record, "evidence", dict, where, default={})
    pdf = take(record, "doc", str, where, default="").lower().endswith(".pdf")
    return take(evidence, "page", int, where) if pdf and evidence.get("page") is not None else None


def _gold(record: Mapping[str, Any], docs: Path, where: str) -> tuple[Gold, ...]:
    gold = []
    named = [{"document": record["doc"], "quote": ""}] if "doc" in record else []
    for place in take(record, "gold", list, where, default=named):
        if not isinstance(place, dict):
            raise InvalidRecord("gold has {x!r}; it needs a document and a quote", where, x=place)
        file, quote = take(place, "document", str, where), take(place, "quote", str, where)
        if not (docs / file).is_file():
            raise InvalidRecord("gold names {file!r}, missing in {docs}", where, file=file, docs=docs)
        gold.append(Gold(file, quote))
    return tuple(gold)
