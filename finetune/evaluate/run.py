"""Base and adapter, asked the same questions in the same words: greedy, one weight for both."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.evaluate.metrics import bare, bleu4, contains, exact, f1, rouge_l
from finetune.evaluate.questions import Case, Cases, Condition, Pair, Question
from ingest.chunk import Span
from ingest.store import Store
from rag.cite import cite, claims
from rag.generate import Adaptable, Generator
from rag.prompt import declines, marks, numbers
from rag.types import Message, Sampling

if TYPE_CHECKING:
    from rag.chatglm.generator import ChatGLMGenerator


TEXT_METRICS = {"exact": exact, "contains": contains, "f1": f1, "rouge_l": rouge_l, "bleu4": bleu4}


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply: `cited` are the numbers that it marks, in order, and `unsupported` the spans
    of its text that no passage supports."""

    text: str
    refused: bool
    cited: tuple[int, ...]
    unsupported: tuple[Span, ...]
    columns: Mapping[str, float]


def judge(case: Case, text: str, store: Store | None) -> Reply:
    """The columns are 0 or 1 or counts, but for the text metrics; a column that is missing says
    that the case does not measure it.

    `asked` and the text metrics: of cases with an answer, the best over the answers; marks are left
    out, and a refusal is worth 0. `refused`, `wanted` (a refusal would be right), `agreed` (both):
    of cases with passages. `grounded`: the reply cites the passage that answers and nothing else;
    of cases that have it. `marked`, `known`: of replies with marks, whether all have a passage.
    `claims`, `unsupported`: sentences of replies that are no refusals.
    """
    refused = declines(text)
    columns: dict[str, float] = {}
    if not case.refuse:
        said = "" if refused else bare(text)
        columns["asked"] = 1.0
        for name, metric in TEXT_METRICS.items():
            columns[name] = max(metric(said, answer) for answer in case.question.answers)
    if not case.sources:
        return Reply(text, refused, (), (), columns)
    assert store
    cited = tuple(number for mark in marks(text) for number in numbers(mark))
    columns["refused"], columns["wanted"] = float(refused), float(case.refuse)
    columns["agreed"] = float(refused and case.refuse)
    if not case.refuse:
        columns["grounded"] = float(bool(cited) and case.gold.issuperset(cited))
        columns["misrefused"] = float(refused)
    if refused:
        return Reply(text, refused, cited, (), columns)
    found = cite(text, case.question.text, case.sources, store)
    if cited:
        columns["marked"], columns["known"] = 1.0, float(not found.unknown)
    columns["claims"] = float(len(claims(text)))
    columns["unsupported"] = float(len(found.unsupported))
    return Reply(text, refused, cited, found.unsupported, columns)


@dataclass(frozen=True, slots=True)
class Asked:
    """A case and what both replied to it."""

    case: Case
    base: Reply
    adapter: Reply


@dataclass(frozen=True)
class Switched:
    """A model with one of its adapters, or with none, as a generator of its own.

    Of those that share a model, one may be used at a time.
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

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        self.generator.use(self.adapter)
        yield from self.generator.stream(messages, sampling)

    def stop(self) -> None:
        self.generator.stop()


def pair_of(generator: "ChatGLMGenerator", adapter: Path) -> tuple[Pair, tuple[str, ...]]:
    """The loaded model without and with an adapter, and what had to be assumed of that one.

    `UserError` where the adapter is another model's, or changes nothing.
    """
    notes = generator.use(adapter)
    template = generator.adapters.contracts[str(adapter)].template
    return Pair(Switched(generator, None), Switched(generator, adapter), template), notes


def evaluate(
    questions: Sequence[Question], conditions: Sequence[Condition], cases: Cases
) -> Iterator[tuple[Asked, ...]]:
    """What came of each question, when both have replied to it."""
    store = cases.pipeline.store if cases.pipeline else None
    for question in questions:
        # Conditions may come to the same prompt: without the place that answers, what is found is
        # all distractors.
        base = Replies(cases.pair.base, cases.sampling)
        adapter = Replies(cases.pair.adapter, cases.sampling)
        yield tuple(
            Asked(
                case,
                judge(case, base.to(case.base), store),
                judge(case, adapter.to(case.adapter), store),
            )
            for case in cases.of(question, conditions)
        )


class Replies:
    """A generator's replies, each prompt asked once."""

    def __init__(self, generator: Generator, sampling: Sampling) -> None:
        self.generator, self.sampling = generator, sampling
        self._known: dict[tuple[Message, ...], str] = {}

    def to(self, messages: tuple[Message, ...]) -> str:
        if messages not in self._known:
            self._known[messages] = "".join(self.generator.stream(messages, self.sampling))
        return self._known[messages]
