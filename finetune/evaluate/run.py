"""Base and adapter reply to the same questions: same prompts, greedy, with one copy of the weights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.evaluate.metrics import bare, bleu4, chosen, contains, exact, f1, rouge_l
from finetune.evaluate.questions import Case, Cases, Condition, HeldOutQuestion, Pair
from ingest.store import Store
from rag.cite import cite, claims, declines, marks, numbers
from rag.generate import Adaptable, Generator, Reply
from rag.types import Message, Sampling

if TYPE_CHECKING:
    from rag.chatglm.generator import ChatGLMGenerator


TEXT_METRICS = {"exact": exact, "contains": contains, "f1": f1, "rouge_l": rouge_l, "bleu4": bleu4}


@dataclass(frozen=True, slots=True)
class ScoredReply:
    """A model's reply: `cited` are the numbers of its citation marks, in order, and `unsupported` the
    sentences of its text that no passage supports."""

    text: str
    refused: bool
    cited: tuple[int, ...]
    unsupported: tuple[str, ...]
    scores: Mapping[str, float]


def score(case: Case, text: str, store: Store | None) -> ScoredReply:
    """The scores are 0 or 1 or counts, except the text metrics; one that a case does not measure is
    missing.

    `asked` and the text metrics (for cases with an answer): the best over the answers, without
    marks; 0 for a refusal. `refused`, `wanted` (a refusal would be right), `agreed` (both): for cases
    with passages. `grounded` (if the passage that answers is there): the reply cites it and nothing
    else. `marked`, `known` (for replies with marks): whether all have a passage. `claims`,
    `unsupported`: the sentences of replies that are not refusals.
    """
    refused = declines(text)
    scores: dict[str, float] = {}
    if not case.refuse:
        reply = "" if refused else bare(text)
        scores["asked"] = 1.0
        for name, metric in ({"accuracy": chosen} if case.question.exam else TEXT_METRICS).items():
            scores[name] = max(metric(reply, answer) for answer in case.question.answers)
    if not case.sources:
        return ScoredReply(text, refused, (), (), scores)
    assert store
    cited = tuple(number for mark in marks(text) for number in numbers(mark))
    scores["refused"], scores["wanted"] = float(refused), float(case.refuse)
    scores["agreed"] = float(refused and case.refuse)
    if not case.refuse:
        scores["grounded"] = float(bool(cited) and case.gold.issuperset(cited))
        scores["misrefused"] = float(refused)
    if refused:
        return ScoredReply(text, refused, cited, (), scores)
    citations = cite(text, case.question.text, case.sources, store)
    if cited:
        scores["marked"], scores["known"] = 1.0, float(not citations.unknown)
    scores["claims"] = float(len(claims(text)))
    scores["unsupported"] = float(len(citations.unsupported))
    unsupported = tuple(text[start:end] for start, end in citations.unsupported)
    return ScoredReply(text, refused, cited, unsupported, scores)


@dataclass(frozen=True, slots=True)
class CaseResult:
    """A case and the replies of both."""

    case: Case
    base: ScoredReply
    adapter: ScoredReply


@dataclass(frozen=True)
class AdapterGenerator:
    """A generator that switches a shared model to one of its adapters, or to none.

    Only one of the generators of a model may be used at a time.
    """

    generator: Adaptable
    adapter: Path | None

    @property
    def name(self) -> str:
        return self.generator.name

    @property
    def context(self) -> int:
        return self.generator.context

    def count(self, messages: Sequence[Message]) -> int:
        self.generator.use(self.adapter)
        return self.generator.count(messages)

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        self.generator.use(self.adapter)
        return (yield from self.generator.stream(messages, sampling))

    def stop(self) -> None:
        self.generator.stop()


def pair_of(generator: "ChatGLMGenerator", adapter: Path) -> tuple[Pair, tuple[str, ...]]:
    """The loaded model without and with an adapter, and assumptions about the adapter.

    Raises `UserError` if the adapter belongs to another model, or changes nothing.
    """
    notes = generator.use(adapter)
    assert generator.contract
    template = generator.contract.template
    sides = (AdapterGenerator(generator, None), AdapterGenerator(generator, adapter))
    return Pair(*sides, template), notes


def evaluate(
    questions: Sequence[HeldOutQuestion], conditions: Sequence[Condition], cases: Cases
) -> Iterator[tuple[CaseResult, ...]]:
    """The results of each question, as soon as both have replied to it."""
    store = cases.pipeline.store if cases.pipeline else None
    for question in questions:
        # Conditions may have the same prompt: if the passage that answers is not retrieved, all
        # retrieved ones are distractors.
        base, adapter = (
            cache(partial(_reply, generator, sampling=cases.sampling))
            for generator in (cases.pair.base, cases.pair.adapter)
        )
        yield tuple(
            CaseResult(case, score(case, base(case.base), store), score(case, adapter(case.adapter), store))
            for case in cases.of(question, conditions)
        )


def _reply(generator: Generator, messages: tuple[Message, ...], *, sampling: Sampling) -> str:
    return "".join(generator.stream(messages, sampling))
