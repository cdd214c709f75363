"""A question and its answer -> a row that trains to answer from retrieved passages.

The passages are what our own retriever finds for the question, the prompt is what
`rag.prompt.compose` makes of them, and the target cites as that prompt asks (RAFT: Zhang et al.
2024, but with hard negatives and refusals). A question is kept only if the retriever finds its
passage, and a target only if `rag.cite` reads the right citation from it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Any, Literal

from finetune.synth.pair import Kind, Pair, folded
from ingest.chunk import sentences
from ingest.errors import UserError
from ingest.types import Document
from rag.cite import cite
from rag.pipeline import Pipeline
from rag.prompt import NOT_FOUND, Prompt, compose
from rag.score_norm import script_of
from rag.types import Message, Source

DEPTH = 20
"""So many passages are looked through for the gold one and for hard negatives."""

BROAD: frozenset[Kind] = frozenset({"heading"})
"""Questions that other passages of a document may answer in part; none of them is refused."""

Left = Literal["unfound", "room", "unsupported", "gone"]
"""Why there is no row: the retriever does not find the passage; the window can't hold it; the
target would not be cited right; the document was removed meanwhile."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A pair and the document that it is from."""

    pair: Pair
    document: Document

    @property
    def id(self) -> str:
        said = f"{self.document.digest}\0{self.pair.start}\0{self.pair.end}\0{self.pair.question}"
        return blake2b(said.encode("utf-8", "replace"), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Grounded:
    """A row: `gold` is the number of the passage that answers, None where the target refuses.

    `sources` are the passages of the prompt in their order.
    """

    asked: Asked
    messages: tuple[Message, ...]
    sources: tuple[Source, ...]
    gold: int | None

    @property
    def record(self) -> dict[str, Any]:
        """The row as it is written: chat messages, and what an evaluation needs."""
        pair, document = self.asked.pair, self.asked.document
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
            "id": self.asked.id,
        }


@dataclass(frozen=True, slots=True)
class Grounder:
    """Makes rows for a model that counts tokens with `count` and has `room` for a prompt.

    A share `without_gold` of the rows has only passages that do not answer, and refuses.
    """

    pipeline: Pipeline
    count: Callable[[Sequence[Message]], int]
    room: int
    passages: int
    without_gold: float = 0.2
    seed: int = 0

    def row(self, asked: Asked) -> Grounded | Left:
        """The row of a pair; the same every time for the same knowledge base and seed."""
        pair, dice = asked.pair, Random(f"{self.seed} {asked.id}")
        found = self.pipeline.retrieve(pair.question, limit=max(DEPTH, 2 * self.passages))
        sources = [Source(*each) for each in zip(found.passages, found.hits, strict=True)]
        gold = next((source for source in sources if _answers(source, asked)), None)
        if gold is None:
            return "unfound"
        answer = folded(pair.answer)
        others = [s for s in sources if answer not in folded(s.passage.text) and s is not gold]
        refuses = dice.random() < self.without_gold and pair.kind not in BROAD
        try:
            row = self._citing(asked, gold, others, dice)
            # Also a question to be refused is one that its passage would answer.
            if refuses and isinstance(row, Grounded):
                return self._refusing(asked, others, dice) or row
        except KeyError:
            return "gone"
        return row

    def _citing(
        self, asked: Asked, gold: Source, others: Sequence[Source], dice: Random
    ) -> Grounded | Left:
        prompt = self._composed(asked, [gold, *others[: self.passages - 1]], dice)
        numbers = (
            (n for n, s in enumerate(prompt.sources, 1) if _answers(s, asked)) if prompt else ()
        )
        number = next(iter(numbers), None)
        if prompt is None or number is None:
            return "room"
        target = marked(asked.pair.reply, number)
        if not self._cited(asked, target, number, prompt.sources):
            return "unsupported"
        messages = (*prompt.messages, Message("assistant", target))
        return Grounded(asked, messages, prompt.sources, number)

    def _refusing(self, asked: Asked, others: Sequence[Source], dice: Random) -> Grounded | None:
        """None where there are no other passages, or they say the same in other words."""
        prompt = self._composed(asked, others[: self.passages], dice) if others else None
        if prompt is None:
            return None
        question, store = asked.pair.question, self.pipeline.store
        if not cite(asked.pair.reply, question, prompt.sources, store).unsupported:
            return None
        target = NOT_FOUND[script_of(question)]
        messages = (*prompt.messages, Message("assistant", target))
        return Grounded(asked, messages, prompt.sources, None)

    def _composed(self, asked: Asked, sources: Sequence[Source], dice: Random) -> Prompt | None:
        """The prompt with the passages that fit, the first of them first of all, shuffled."""
        question = asked.pair.question
        try:
            kept = list(compose(question, sources, (), self.count, self.room).sources)
            dice.shuffle(kept)
            return compose(question, kept, (), self.count, self.room)
        except UserError:  # no room for the question and one passage
            return None

    def _cited(self, asked: Asked, target: str, number: int, sources: Sequence[Source]) -> bool:
        """Whether a reader of the target is shown the right place, and no doubt."""
        pair = asked.pair
        cited = cite(target, pair.question, sources, self.pipeline.store)
        return (
            not cited.unsupported
            and not cited.unknown
            and {citation.number for citation in cited.citations} == {number}
            and any(c.start < pair.end and pair.start < c.end for c in cited.citations)
        )


def marked(reply: str, number: int) -> str:
    """`reply` with the mark of passage `number` at the end of each sentence, before its stop."""
    parts = []
    for start, end in sentences(reply):
        said = reply[start:end].rstrip()
        stop = len(said) - (said[-1:] in tuple("。！？.!?"))
        space = " " if script_of(said) == "latin" else ""
        parts.append(f"{said[:stop]}{space}[{number}]{said[stop:]}{reply[start + len(said) : end]}")
    return "".join(parts)


def _answers(source: Source, asked: Asked) -> bool:
    """Whether the passage holds the whole span of the pair."""
    passage, pair = source.passage, asked.pair
    same = passage.document == asked.document.id
    return same and passage.start <= pair.start and pair.end <= passage.end
