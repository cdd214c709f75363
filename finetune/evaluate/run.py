"""Base and adapter, asked the same questions in the same words: greedy, one weight for both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.conditions import Case, Cases, Condition, Pair
from finetune.evaluate.questions import Question
from finetune.judge import Reply, judge
from rag.generate import Adaptable, Generator
from rag.types import Message, Sampling

if TYPE_CHECKING:
    from rag.chatglm.generator import ChatGLMGenerator


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
