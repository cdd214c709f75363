"""A question and its answer -> a row that trains to answer from retrieved passages (RAFT).

After Zhang et al. 2024, but with hard negatives and refusals. The passages are those that our own
retriever finds for the question, the prompt is that of `rag.prompt.compose`, and the target cites as
that prompt requires. A question is used only if the retriever finds its passage, and a target only
if `rag.cite` reads the right citation from it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Any, Literal

from finetune.synth.pair import QuestionAnswer, normalize
from ingest.chunk import sentences
from ingest.errors import UserError
from ingest.types import Document
from rag.cite import cite
from rag.pipeline import Pipeline
from rag.prompt import compose
from rag.question import script_of
from rag.types import NOT_FOUND, Message, Prompt, Source

DEPTH = 20
"""The number of retrieved passages that are searched for the gold one and for hard negatives."""

Rejection = Literal["not retrieved", "too long", "unsupported", "removed"]
"""The reason for no row: the retriever doesn't find the passage; it doesn't fit into the window; the
target would not be cited correctly; the document was removed meanwhile."""


@dataclass(frozen=True, slots=True)
class SyntheticQuestion:
    """A question-answer pair and its document."""

    pair: QuestionAnswer
    document: Document

    @property
    def id(self) -> str:
        text = f"{self.document.digest}\0{self.pair.start}\0{self.pair.end}\0{self.pair.question}"
        return blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()

    def answered_by(self, source: Source) -> bool:
        """Whether the passage holds the whole span of the pair."""
        passage, pair = source.passage, self.pair
        same = passage.document == self.document.id
        return same and passage.start <= pair.start and pair.end <= passage.end


@dataclass(frozen=True, slots=True)
class RaftRow:
    """A training row. `sources` are the passages of the prompt in their order.

    `gold` is the number, from 1, of the passage that answers; None if the target refuses.
    """

    question: SyntheticQuestion
    messages: tuple[Message, ...]
    sources: tuple[Source, ...]
    gold: int | None

    @property
    def record(self) -> dict[str, Any]:
        """The row as it is written: chat messages, and the values that an evaluation needs."""
        pair, document = self.question.pair, self.question.document
        return {
            "messages": [{"role": each.role, "content": each.text} for each in self.messages],
            "question": pair.question,
            "answer": pair.answer,
            "reply": pair.reply,
            "kind": pair.kind,
            "source": document.source,
            "document": document.id,
            "start": pair.start,
            "end": pair.end,
            "gold": self.gold,
            "id": self.question.id,
        }

    @property
    def preferences(self) -> list[dict[str, Any]]:
        """Its target and worse answers, as pairs in LLaMA-Factory's form: the answer without a mark, and with
        that of the nearest other passage; both are invented if the target refuses. With as many pairs for
        each row, refusals keep their share."""
        *_, prompt, target = self.messages
        reply, gold = self.question.pair.reply, self.gold or 0
        others = sorted({*range(1, len(self.sources) + 1)} - {gold}, key=lambda number: abs(number - gold))
        rejected = [reply, *(with_marks(reply, number) for number in others[:1])]
        row = {"instruction": prompt.text, "input": "", "history": [], "chosen": target.text}
        return [{**row, "rejected": text} for text in rejected]


@dataclass(frozen=True, slots=True)
class RaftBuilder:
    """Builds rows for a model that counts tokens with `count` and has `room` for a prompt.

    A share `without_gold` of the rows has only passages that do not answer; these rows refuse.
    """

    pipeline: Pipeline
    count: Callable[[Sequence[Message]], int]
    room: int
    passages: int
    without_gold: float = 0.2
    seed: int = 0

    def row(self, question: SyntheticQuestion) -> RaftRow | Rejection:
        """The row of a question; the same every time for the same knowledge base and seed."""
        pair = question.pair
        found = self.pipeline.retrieve(pair.question, limit=max(DEPTH, 2 * self.passages))
        sources = [Source(*each) for each in zip(found.passages, found.hits, strict=True)]
        gold = next((source for source in sources if question.answered_by(source)), None)
        if gold is None:
            return "not retrieved"
        others, answer = [s for s in sources if s is not gold], normalize(pair.answer)
        negatives = [s for s in others if answer not in normalize(s.passage.text)]
        refuses = Random(f"{self.seed} {question.id}").random() < self.without_gold
        try:
            row = self._citing(question, gold, negatives)
            # A question is refused only if its passage would answer it.
            if refuses and isinstance(row, RaftRow):
                return self._refusing(question, negatives) or row
        except KeyError:
            return "removed"
        return row

    def _citing(
        self, question: SyntheticQuestion, gold: Source, negatives: Sequence[Source]
    ) -> RaftRow | Rejection:
        prompt = self._prompt(question, [gold, *negatives[: self.passages - 1]])
        sources = prompt.sources if prompt else ()
        numbers = (n for n, source in enumerate(sources, 1) if question.answered_by(source))
        number = next(numbers, None)
        if prompt is None or number is None:
            return "too long"
        target = with_marks(question.pair.reply, number)
        if not self._cites_correctly(question.pair, target, number, sources):
            return "unsupported"
        return RaftRow(question, (*prompt.messages, Message("assistant", target)), sources, number)

    def _refusing(self, question: SyntheticQuestion, negatives: Sequence[Source]) -> RaftRow | None:
        """None if there are no negatives, or if they state the answer in other words."""
        prompt = self._prompt(question, negatives[: self.passages]) if negatives else None
        if prompt is None:
            return None
        pair, store = question.pair, self.pipeline.store
        if not cite(pair.reply, pair.question, prompt.sources, store).unsupported:
            return None
        target = Message("assistant", NOT_FOUND[script_of(pair.question)])
        return RaftRow(question, (*prompt.messages, target), prompt.sources, None)

    def _prompt(self, question: SyntheticQuestion, sources: Sequence[Source]) -> Prompt | None:
        """The prompt with the passages that fit, of which the first has priority."""
        try:
            return compose(question.pair.question, sources, (), self.count, self.room)
        except UserError:  # no room for the question and one passage
            return None

    def _cites_correctly(
        self, pair: QuestionAnswer, target: str, number: int, sources: Sequence[Source]
    ) -> bool:
        """Whether a reader of the target is shown the span of the pair, and no warning."""
        cited = cite(target, pair.question, sources, self.pipeline.store)
        return (
            not cited.unsupported
            and not cited.unknown
            and {citation.number for citation in cited.citations} == {number}
            and any(c.start < pair.end and pair.start < c.end for c in cited.citations)
        )


def with_marks(reply: str, number: int) -> str:
    """`reply` with the mark of passage `number` at the end of each sentence, before its stop."""
    parts = []
    for start, end in sentences(reply):
        sentence = reply[start:end].rstrip()
        stop = len(sentence) - (sentence[-1:] in tuple("。！？.!?"))
        space = " " if script_of(sentence) == "latin" else ""
        after = sentence[stop:] + reply[start + len(sentence) : end]
        parts.append(f"{sentence[:stop]}{space}[{number}]{after}")
    return "".join(parts)
