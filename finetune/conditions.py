"""What a held-out question is asked with: nothing, its own passage, what is found, or the rest.

    closed       the question alone, as in a chat; no reply need refuse
    gold         the passage that answers it, alone
    retrieved    the passages that `rag ask` finds
    distractors  those it finds without the ones that answer: refusing is right
    general      a question about something else, alone: what a training may make a model forget

`rag ask` refuses some questions before its model reads them; here it reads them all, for the model
is what is compared. Base and adapter get the same passages, as many as both have room for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from finetune.evaluate.metrics import contains
from finetune.evaluate.questions import Place, Question
from ingest.store import Store
from ingest.types import Chunk, Hit, Passage
from rag.generate import Generator
from rag.pipeline import Pipeline
from rag.prompt import compose
from rag.types import Message, Sampling, Source

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
        most = self.pipeline.options.passages
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
