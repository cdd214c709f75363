"""Questions that no training has seen, from the forms that people have them in.

`heldout.jsonl` of `rag finetune grounded`; a set of `rag eval` (its documents being in the
knowledge base); training data in alpaca's forms, which names no place in a document.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from random import Random
from typing import Any, Literal

from finetune.data.formats import examples
from finetune.data.reader import Record, records
from finetune.types import Example
from ingest.errors import UserError
from ingest.store import Store
from rag.evaluate import Dataset
from rag.evaluate import Question as Judged
from rag.evaluate.lines import take, wrong
from rag.evaluate.metrics import locate

Form = Literal["grounded", "set", "alpaca"]
GROUNDED = {"question", "answer", "document", "start", "end"}


@dataclass(frozen=True, slots=True)
class Place:
    """Characters [start, end) of the document with this id."""

    document: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answers (any one suffices; none where the documents do not tell), and the
    places of the knowledge base that answer it."""

    id: str
    text: str
    answers: tuple[str, ...]
    answerable: bool = True
    places: tuple[Place, ...] = ()
    example: Example | None = None
    """The conversation that it ends, where there is more than the question."""


@dataclass(frozen=True, slots=True)
class Heldout:
    """The questions, each once; `lost` are the ids of those whose place is not in the knowledge
    base, or that have no answer to compare with."""

    questions: tuple[Question, ...]
    lost: tuple[str, ...] = ()


def form_of(path: Path) -> Form:
    """What `path` holds, told by its content."""
    if path.is_dir():
        return "set"
    first = next(records(path), None)
    row = first.value if isinstance(first, Record) else None
    return "grounded" if isinstance(row, dict) and row.keys() >= GROUNDED else "alpaca"


def read(path: Path, store: Store | None) -> Heldout:
    """The questions of `path`, with their places where a knowledge base is given.

    `UserError` where a row is wrong, or where no question is left.
    """
    form = form_of(path)
    if form == "set":
        found = _of_set(Dataset.load(path), store)
    else:
        found = _grounded(path) if form == "grounded" else _alpaca(path)
    questions: dict[str, Question] = {}
    lost: list[str] = []
    for question in found:
        if _usable(question, form, store):
            questions.setdefault(question.text, question)
        else:
            lost.append(question.id)
    if not questions:
        raise UserError(
            f"{path}: none of its {len(lost)} questions stands in this knowledge base; name the "
            "one that it was made from with --kb, or ingest its documents",
            zh=f"{path} 的 {len(lost)} 个问题在此知识库中都没有出处；请用 --kb 指明它所用的知识库，或先将文档入库",
        )
    return Heldout(tuple(questions.values()), tuple(lost))


def sample(questions: Sequence[Question], count: int, *, seed: int = 0) -> tuple[Question, ...]:
    """`count` of the questions, drawn at random and kept in order; all where there are no more."""
    places = sorted(Random(seed).sample(range(len(questions)), min(count, len(questions))))
    return tuple(questions[place] for place in places)


def _usable(question: Question, form: Form, store: Store | None) -> bool:
    """Whether there is an answer to compare with, and the knowledge base has it in its place."""
    if not question.answerable:
        return True
    if form == "alpaca" or not store:
        return bool(question.answers)
    if form == "set":
        return bool(question.answers and question.places)
    [place] = question.places
    try:
        text = store.text(place.document, place.start, place.end)
    except KeyError:
        return False
    return question.answers[0] in text


def _grounded(path: Path) -> Iterator[Question]:
    for record in records(path):
        if not isinstance(record, Record):
            raise wrong(record.source, record.text, record.zh)
        where, row = record.source, record.value
        if not isinstance(row, dict):
            raise wrong(where, "no JSON object", "不是 JSON 对象")
        place = Place(
            take(row, "document", str, where),
            take(row, "start", int, where),
            take(row, "end", int, where),
        )
        answers = [_said(row, "answer", where)]
        if "reply" in row:  # the same in whole sentences, as training has it
            answers.append(_said(row, "reply", where))
        id = str(row.get("id") or where)
        yield Question(id, _said(row, "question", where), tuple(answers), places=(place,))


def _said(row: dict[str, Any], name: str, where: str) -> str:
    text = take(row, name, str, where)
    if not text.strip():
        raise wrong(where, f"{name} is empty", f"{name} 是空的")
    return text


def _alpaca(path: Path) -> Iterator[Question]:
    for example in examples([path]):
        yield Question(
            example.source, example.question or example.input, (example.answer,), example=example
        )


def _of_set(dataset: Dataset, store: Store | None) -> Iterator[Question]:
    places = Finder(store).places if store else lambda judged: ()
    for judged in dataset.questions:
        # The quotes say it in whole sentences, as an adapter may have learnt to.
        answers = (*judged.answers, *(gold.quote for gold in judged.gold))
        yield Question(
            judged.id,
            judged.text,
            answers if judged.answerable else (),
            judged.answerable,
            tuple(places(judged)) if judged.answerable else (),
        )


class Finder:
    """Looks up in a knowledge base where a set's answers stand; each document is read once."""

    def __init__(self, store: Store) -> None:
        self.text = cache(store.text)
        self.documents = [(PurePath(each.source).parts, each.id) for each in store.documents()]

    def places(self, judged: Judged) -> Iterator[Place]:
        """Where the quotes stand; in a BEIR-like set, where answers stand in relevant entries."""
        wanted = [(gold.document, (gold.quote,)) for gold in judged.gold]
        wanted += [(entry, judged.answers) for entry, grade in judged.grades.items() if grade > 0]
        for name, quotes in wanted:
            tail = PurePath(name).parts
            for parts, id in self.documents:
                if parts[-len(tail) :] == tail:
                    text = self.text(id)
                    yield from (Place(id, *span) for q in quotes for span in locate(q, text))
