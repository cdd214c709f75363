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
from finetune.evaluate.metrics import contains
from finetune.types import Example
from ingest.errors import UserError
from ingest.store import Store
from ingest.types import Chunk, Hit, Passage
from rag.evaluate.dataset import Dataset, EvalQuestion, InvalidRecord, take
from rag.evaluate.metrics import locate
from rag.generate import Generator
from rag.pipeline import Pipeline
from rag.prompt import compose
from rag.types import Message, Sampling, Source

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
            "{path}: none of its {count} questions stands in this knowledge base; name the "
            "one that it was made from with --kb, or ingest its documents",
            path=path,
            count=len(lost),
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
            raise InvalidRecord(record.text, record.source)
        where, row = record.source, record.value
        if not isinstance(row, dict):
            raise InvalidRecord("not a JSON object", where)
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
        raise InvalidRecord("{name} is empty", where, name=name)
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

    def places(self, judged: EvalQuestion) -> Iterator[Place]:
        """Where the quotes stand; in a BEIR-like set, where answers stand in relevant entries."""
        wanted = [(gold.document, (gold.quote,)) for gold in judged.gold]
        wanted += [(entry, judged.answers) for entry, grade in judged.grades.items() if grade > 0]
        for name, quotes in wanted:
            tail = PurePath(name).parts
            for parts, id in self.documents:
                if parts[-len(tail) :] == tail:
                    text = self.text(id)
                    yield from (Place(id, *span) for q in quotes for span in locate(q, text))


Condition = Literal["closed", "gold", "retrieved", "distractors", "general"]
CONDITIONS: tuple[Condition, ...] = ("closed", "gold", "retrieved", "distractors")
DEPTH = 20
"""Passages among which distractors are looked for."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What is compared. `template` is the form in which the adapter was trained to be asked."""

    base: Generator
    adapter: Generator
    template: str = "chat"

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the longer of the two prompts."""
        return max(self.base.count(messages), self.adapter.count(messages))

    def room(self, sampling: Sampling) -> int:
        """Tokens for a prompt of either."""
        return min(self.base.context, self.adapter.context) - sampling.max_new_tokens


@dataclass(frozen=True, slots=True)
class Case:
    """A question under a condition. `gold` are the numbers of the sources that answer it.

    `refuse`: a reply that the passages hold no answer is the right one. The two prompts are the
    same, unless the adapter knows another form for the input of an instruction.
    """

    question: Question
    condition: Condition
    base: tuple[Message, ...]
    adapter: tuple[Message, ...]
    sources: tuple[Source, ...] = ()
    gold: frozenset[int] = frozenset()
    refuse: bool = False


@dataclass(frozen=True, slots=True)
class Cases:
    """Makes the cases of questions. `pipeline` may be missing where no passage is asked for."""

    pair: Pair
    pipeline: Pipeline | None
    sampling: Sampling

    def of(self, question: Question, conditions: Sequence[Condition]) -> Iterator[Case]:
        """Those that have a right reply.

        Left out: closed book and gold for what the documents do not tell; what is found without the
        place that answers, but with a part of it or the words of an answer, because nobody knows
        whether they answer.
        """
        for condition in conditions:
            if condition in ("closed", "general"):
                if question.answers:
                    yield self._alone(question, condition)
            elif case := self._reading(question, condition, self._sources(question, condition)):
                yield case

    def _alone(self, question: Question, condition: Condition) -> Case:
        if not question.example:
            said = (Message("user", question.text),)
            return Case(question, condition, said, said)
        from finetune.data.template import turns_of  # loads torch

        base, adapter = (
            tuple(turns_of(question.example, template)[:-1])
            for template in ("chat", self.pair.template)
        )
        return Case(question, condition, base, adapter)

    def _sources(self, question: Question, condition: Condition) -> list[Source]:
        assert self.pipeline
        if condition == "gold":
            return gold_source(question, self.pipeline.store)
        if condition == "retrieved":
            return self._found(question.text)
        most = self.pipeline.config.retrieve.passages
        found = self._found(question.text, limit=max(DEPTH, 2 * most))
        return [source for source in found if not holds(source, question)][:most]

    def _found(self, text: str, *, limit: int | None = None) -> list[Source]:
        assert self.pipeline
        found = self.pipeline.retrieve(text, limit=limit)
        return [Source(*each) for each in zip(found.passages, found.hits, strict=True)]

    def _reading(
        self, question: Question, condition: Condition, sources: Sequence[Source]
    ) -> Case | None:
        if not sources:
            return None
        room = self.pair.room(self.sampling)
        prompt = compose(question.text, sources, [], self.pair.count, room)
        numbered = list(enumerate(prompt.sources, start=1))
        gold = frozenset(number for number, source in numbered if answers(source, question))
        if not gold and any(holds(source, question) for source in prompt.sources):
            return None
        messages = prompt.messages
        return Case(question, condition, messages, messages, prompt.sources, gold, not gold)


def answers(source: Source, question: Question) -> bool:
    """Whether the passage holds a place that answers the question, or as much of one as has the
    words of an answer."""
    passage = source.passage
    return any(
        (passage.start <= place.start and place.end <= passage.end) or _says(passage, question)
        for place in question.places
        if _shared(passage, place)
    )


def holds(source: Source, question: Question) -> bool:
    """Whether it might answer: it has a part of a place that does, or the words of an answer."""
    passage = source.passage
    parts = any(_shared(passage, place) for place in question.places)
    return parts or _says(passage, question)


def _shared(passage: Passage, place: Place) -> bool:
    same = place.document == passage.document
    return same and place.start < passage.end and passage.start < place.end


def _says(passage: Passage, question: Question) -> bool:
    return any(contains(passage.text, answer) for answer in question.answers)


def gold_source(question: Question, store: Store) -> list[Source]:
    """The passage that answers, that of the first place if there are more; [] without any."""
    sources: list[Source] = []
    for place in question.places:
        chunks = _passage(place, store)
        if not chunks:
            continue
        chunk = next((c for c in chunks if place.start < c.end), chunks[-1])
        [passage] = store.passages([chunk])
        sources.append(Source(passage, Hit(chunk, 1.0)))
    return [source for source in sources if answers(source, question)][:1]


def _passage(place: Place, store: Store) -> list[Chunk]:
    """The chunks of the passage that a place begins in: the one that begins last before it."""
    for start in range(place.start, -1, -1):
        if chunks := store.chunks_within(Passage(place.document, start, start, "", "")):
            return chunks if place.start < chunks[0].passage[1] else []
    return []
