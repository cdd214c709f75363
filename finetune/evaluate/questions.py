"""Questions that no training has seen, and the prompts that compare two models on them.

They are `heldout.jsonl` of `rag finetune grounded`; a set of `rag eval`, whose documents are in the
knowledge base; an exam of `rag finetune exam`; or training data in alpaca's forms. The last two have no
places in documents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from finetune.data.formats import AS_FOUND, examples
from finetune.data.reader import Record, records
from finetune.evaluate.metrics import contains
from finetune.options import Columns
from finetune.types import Example
from ingest.errors import UserError
from ingest.store import Store
from ingest.types import Hit, Passage
from rag.evaluate.dataset import Dataset, InvalidRecord, take
from rag.evaluate.metrics import locate
from rag.evaluate.score import ends_in
from rag.generate import Generator
from rag.pipeline import Pipeline
from rag.prompt import compose
from rag.types import Message, Sampling, Source

Form = Literal["grounded", "set", "exam", "alpaca"]
GROUNDED = {"question", "answer", "document", "start", "end"}


@dataclass(frozen=True, slots=True)
class GoldSpan:
    """Characters [start, end) of the document with this id."""

    document: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class HeldOutQuestion:
    """A question, its answers (any of them is right; none if the documents don't answer it), and the
    places of the knowledge base that answer it."""

    id: str
    text: str
    answers: tuple[str, ...]
    answerable: bool = True
    places: tuple[GoldSpan, ...] = ()
    example: Example | None = None
    """The conversation that it ends, if there is more than the question."""
    exam: bool = False
    """The answer is a letter, or says whether a statement is true."""


@dataclass(frozen=True, slots=True)
class HeldOutSet:
    """The questions, each once; `lost` are the ids of those whose place is not in the knowledge
    base, or that have no answer to compare with."""

    questions: tuple[HeldOutQuestion, ...]
    lost: tuple[str, ...] = ()


def form_of(path: Path) -> Form:
    """The form of the questions in `path`, by its content."""
    if path.is_dir():
        return "set"
    first = next(records(path), None)
    row = first.value if isinstance(first, Record) else None
    names = row.keys() if isinstance(row, dict) else ()
    return "grounded" if {*names} >= GROUNDED else "exam" if "exam" in names else "alpaca"


def read(path: Path, store: Store | None, columns: Columns = AS_FOUND) -> HeldOutSet:
    """The questions of `path`, with their places if `store` is given. `columns` are alpaca rows' fields.

    Raises `UserError` if a row is wrong, or if no question is left.
    """
    form = form_of(path)
    if form == "set":
        candidates = _of_set(Dataset.load(path), store)
    else:
        candidates = _grounded(path) if form == "grounded" else _alpaca(path, columns, exam=form == "exam")
    questions: dict[str, HeldOutQuestion] = {}
    lost: list[str] = []
    for question in candidates:
        if _usable(question, form, store):
            questions.setdefault(question.text, question)
        else:
            lost.append(question.id)
    if not questions:
        raise UserError(
            "{path}: none of its {count} questions is from this knowledge base; name the right "
            "one with --kb, or ingest its documents",
            path=path,
            count=len(lost),
        )
    return HeldOutSet(tuple(questions.values()), tuple(lost))


def _usable(question: HeldOutQuestion, form: Form, store: Store | None) -> bool:
    """Whether there is an answer to compare with, and the knowledge base has it at its place."""
    if not question.answerable:
        return True
    if form in ("alpaca", "exam") or not store:
        return bool(question.answers)
    if form == "set":
        return bool(question.answers and question.places)
    [place] = question.places
    try:
        text = store.text(place.document, place.start, place.end)
    except KeyError:
        return False
    return question.answers[0] in text


def _grounded(path: Path) -> Iterator[HeldOutQuestion]:
    for record in records(path):
        if not isinstance(record, Record):
            raise InvalidRecord(record.text, record.source)
        where, row = record.source, record.value
        if not isinstance(row, dict):
            raise InvalidRecord("not a JSON object", where)
        span = (take(row, name, int, where) for name in ("start", "end"))
        place = GoldSpan(take(row, "document", str, where), *span)
        # A row's reply is the answer in whole sentences, as training has it.
        names = ("answer", "reply") if "reply" in row else ("answer",)
        answers = [_text(row, name, where) for name in names]
        id = str(row.get("id") or where)
        yield HeldOutQuestion(id, _text(row, "question", where), tuple(answers), places=(place,))


def _text(row: dict[str, Any], name: str, where: str) -> str:
    text = take(row, name, str, where)
    if not text.strip():
        raise InvalidRecord("{name} is empty", where, name=name)
    return text


def _alpaca(path: Path, columns: Columns, *, exam: bool) -> Iterator[HeldOutQuestion]:
    for example in examples([path], columns=columns):
        text = example.question or example.input
        yield HeldOutQuestion(example.source, text, (example.answer,), example=example, exam=exam)


def _of_set(dataset: Dataset, store: Store | None) -> Iterator[HeldOutQuestion]:
    """Each document is read once."""
    text = cache(store.text) if store else None
    documents = list(store.documents()) if store else []

    def places(name: str, quotes: Sequence[str]) -> Iterator[GoldSpan]:
        """The places of the quotes in the documents of this name."""
        for document in documents:
            if text and ends_in(document.source, name):
                id = document.id
                yield from (GoldSpan(id, *span) for q in quotes for span in locate(q, text(id)))

    for each in dataset.questions:
        if not each.answerable:
            yield HeldOutQuestion(each.id, each.text, (), False)
            continue
        # The quotes state it in whole sentences, as an adapter may have learnt to.
        answers = (*each.answers, *(gold.quote for gold in each.gold))
        wanted = [(gold.document, (gold.quote,)) for gold in each.gold]
        # In a BEIR-like set: the answers in relevant entries.
        wanted += [(name, each.answers) for name, grade in each.grades.items() if grade > 0]
        found = tuple(place for name, quotes in wanted for place in places(name, quotes))
        yield HeldOutQuestion(each.id, each.text, answers, True, found)


Condition = Literal["closed", "gold", "retrieved", "distractors", "general"]
CONDITIONS: tuple[Condition, ...] = ("closed", "gold", "retrieved", "distractors")
DEPTH = 20
"""The number of retrieved passages among which distractors are searched."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The two models to compare. `template` is the form of the adapter's training prompts."""

    base: Generator
    adapter: Generator
    template: str = "chat"

    def count(self, messages: Sequence[Message]) -> int:
        """The tokens of the longer one of the two prompts."""
        return max(self.base.count(messages), self.adapter.count(messages))

    def room(self, sampling: Sampling) -> int:
        """The tokens that a prompt of either may have."""
        return min(self.base.context, self.adapter.context) - sampling.max_new_tokens


@dataclass(frozen=True, slots=True)
class Case:
    """A question under a condition. `gold` are the numbers of the sources that answer it.

    `refuse`: the right reply is that the passages hold no answer. The two prompts are the same,
    unless the adapter's template has another form for the input of an instruction.
    """

    question: HeldOutQuestion
    condition: Condition
    base: tuple[Message, ...]
    adapter: tuple[Message, ...]
    sources: tuple[Source, ...] = ()
    gold: frozenset[int] = frozenset()
    refuse: bool = False


@dataclass(frozen=True, slots=True)
class Cases:
    """Makes the cases of questions. `pipeline` may be None if no condition has passages."""

    pair: Pair
    pipeline: Pipeline | None
    sampling: Sampling

    def of(self, question: HeldOutQuestion, conditions: Sequence[Condition]) -> Iterator[Case]:
        """The cases that have a right reply.

        Left out: closed book and gold for questions that the documents don't answer; passages
        without the place that answers, but with a part of it or the words of an answer, because it
        is not known whether they answer.
        """
        for condition in conditions:
            if condition in ("closed", "general"):
                if question.answers:
                    yield self._without_passages(question, condition)
            elif case := self._reading(question, condition, self._sources(question, condition)):
                yield case

    def _without_passages(self, question: HeldOutQuestion, condition: Condition) -> Case:
        if not question.example:
            messages = (Message("user", question.text),)
            return Case(question, condition, messages, messages)
        from finetune.data.template import turns_of  # loads torch

        base, adapter = (
            tuple(turns_of(question.example, template)[:-1]) for template in ("chat", self.pair.template)
        )
        return Case(question, condition, base, adapter)

    def _sources(self, question: HeldOutQuestion, condition: Condition) -> list[Source]:
        assert self.pipeline
        if condition == "gold":
            return gold_source(question, self.pipeline.store)
        most = self.pipeline.config.retrieve.passages
        limit = None if condition == "retrieved" else max(DEPTH, 2 * most)
        found = self.pipeline.retrieve(question.text, limit=limit)
        sources = [Source(*each) for each in zip(found.passages, found.hits, strict=True)]
        if condition == "retrieved":
            return sources
        return [source for source in sources if not may_answer(source.passage, question)][:most]

    def _reading(
        self, question: HeldOutQuestion, condition: Condition, sources: Sequence[Source]
    ) -> Case | None:
        if not sources:
            return None
        room = self.pair.room(self.sampling)
        prompt = compose(question.text, sources, [], self.pair.count, room)
        passages = [source.passage for source in prompt.sources]
        gold = frozenset(n for n, passage in enumerate(passages, 1) if answers(passage, question))
        if not gold and any(may_answer(passage, question) for passage in passages):
            return None
        messages = prompt.messages
        return Case(question, condition, messages, messages, prompt.sources, gold, not gold)


def answers(passage: Passage, question: HeldOutQuestion) -> bool:
    """Whether the passage holds a place that answers the question, or a part of one that has the
    words of an answer."""
    return any(
        (passage.start <= place.start and place.end <= passage.end) or _has_words(passage, question)
        for place in question.places
        if _overlap(passage, place)
    )


def may_answer(passage: Passage, question: HeldOutQuestion) -> bool:
    """Whether the passage has a part of a place that answers, or the words of an answer."""
    overlap = any(_overlap(passage, place) for place in question.places)
    return overlap or _has_words(passage, question)


def _overlap(passage: Passage, place: GoldSpan) -> bool:
    same = place.document == passage.document
    return same and place.start < passage.end and passage.start < place.end


def _has_words(passage: Passage, question: HeldOutQuestion) -> bool:
    return any(contains(passage.text, answer) for answer in question.answers)


def gold_source(question: HeldOutQuestion, store: Store) -> list[Source]:
    """The first passage that answers, of the first place that has one; [] if there is none."""
    for place in question.places:
        start = 0
        while chunks := store.chunks_within(Passage(place.document, start, start, "", "")):
            [passage] = store.passages(chunks[:1])
            if _overlap(passage, place) and answers(passage, question):
                chunk = next((c for c in chunks if place.start < c.end), chunks[-1])
                return [Source(passage, Hit(chunk, 1.0))]
            start = passage.end
    return []
