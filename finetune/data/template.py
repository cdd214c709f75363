"""Example -> rows of tokens, and which of them are learnt: the very prompts that `rag` answers.

A row is the prompt of an answer (`rag.chatglm.chat.encode_chat`, in the adapter's template) and the
answer behind it. Where a generation's prompt of the next question begins with all that was said
before (ChatGLM3, GLM-4), a conversation is one row that learns all its answers; else it is one row
for each answer, whose prompt holds what was said before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from finetune.options import MAX_LENGTH
from finetune.types import IGNORED, Example, Row, Unfit
from rag.chatglm.chat import TEMPLATES, encode_answer, encode_chat
from rag.types import Message

CONTINUED = (3, 4)
"""Generations whose conversation is one sequence."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The rows of an example; `shortened` says that something of it did not fit into them, `bad`
    that there are none since nothing of it may be cut off."""

    rows: tuple[Row, ...]
    shortened: bool
    bad: bool = False


@dataclass(frozen=True, slots=True)
class RowEncoder:
    """Examples -> rows of at most `max_length` tokens for a model of `generation`.

    What is too long loses its earliest turns, then the middle of its question, and the end of an
    answer that is too long by itself. The tokens between question and answer, some of the answer,
    and the token that ends it, always stay.
    """

    tokenizer: Any
    generation: int
    template: str = "chat"
    max_length: int = MAX_LENGTH

    def __call__(self, example: Example) -> Encoded:
        """`Unfit` where `max_length` has no room for what stands around question and answer, or
        nothing may be cut off."""
        turns = turns_of(example, self.template)
        first = len(example.messages) - len(turns)  # tutorial's form has one turn
        learnt = [
            i
            for i, turn in enumerate(turns)
            if turn.role == "assistant" and i + first not in example.given
        ]
        if self.template == "tutorial":
            learnt = [len(turns) - 1]
        if self.generation in CONTINUED:
            made = [self._fit(turns, learnt)]
        else:
            made = [self._fit(turns[: i + 1], [i]) for i in learnt]
        shortened = any(cut for _, cut in made)
        if shortened and example.whole:
            raise self._uncut()
        return Encoded(
            tuple(row for row, _ in made), shortened or example.unplaced(self.template) > 0
        )

    def _fit(self, turns: Sequence[Message], learnt: Sequence[int]) -> tuple[Row, bool]:
        """The row, and whether it was shortened."""
        row = self._row(turns, learnt)
        if len(row) <= self.max_length:
            return row, False
        system = [turn for turn in turns if turn.role == "system"]
        said, place = list(turns[len(system) :]), len(system)
        while len(said) > 2:
            said = said[2:]
            place += 2
            kept = [i - place + len(system) for i in learnt if i >= place]
            if len(row := self._row([*system, *said], kept)) <= self.max_length:
                return row, True
        return self._cut(system, *said), True

    def _cut(self, system: list[Message], question: Message, answer: Message) -> Row:
        def made(asked: int, answered: int) -> Row:
            turns = [
                *system,
                replace(question, text=_ends(question.text, asked)),
                replace(answer, text=answer.text[:answered]),
            ]
            return self._row(turns, [len(turns) - 1])

        def fits(row: Row) -> bool:
            return len(row) <= self.max_length

        # Of the answer a character stays, and of the question a quarter of the row.
        some = len(answer.text) - len(answer.text.lstrip()) + 1
        if not fits(made(0, some)):
            raise Unfit(
                "long",
                f"max_length is {self.max_length}, but {len(made(0, some))} tokens stand around "
                "question and answer, with a first one of the answer; raise it, or shorten the "
                "system message",
                f"max_length 为 {self.max_length}，而问题与回答之外的内容加上回答的开头已有 "
                f"{len(made(0, some))} 个词元；请调大，或缩短系统消息",
            )
        quarter = min(len(question.text), self.max_length // 4)
        asked = _most(0, quarter, lambda n: fits(made(n, some)))
        answered = _most(some, len(answer.text), lambda n: fits(made(asked, n)))
        asked = _most(asked, len(question.text), lambda n: fits(made(n, answered)))
        return made(asked, answered)

    def _uncut(self) -> Unfit:
        return Unfit(
            "long",
            f"longer than max_length, {self.max_length}, and cut it would lose passages that it "
            "cites; raise max_length, or make rows with fewer --passages",
            f"长于 max_length（{self.max_length}），截短会丢失所引用的段落；请调大，"
            "或以更少的 --passages 生成数据",
        )

    def _row(self, turns: Sequence[Message], learnt: Sequence[int]) -> Row:
        """Prompt by prompt and answer by answer; each prompt begins with all that is before it."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        last = len(turns) - 1
        for i in [*learnt, *([] if last in learnt else [last])]:
            prompt = encode_chat(
                TEMPLATES[self.template](turns[:i]), self.tokenizer, self.generation
            )
            answer = encode_answer(turns[i].text, self.tokenizer, self.generation)
            ids = [*prompt, *answer]
            # As upstream, ChatGLM-6B also learns the <sop> that its prompt ends with.
            spans.append((len(prompt) - (self.generation == 1), len(ids)))
        row = np.array(ids, np.int32)
        labels = np.full(len(row), IGNORED, np.int32)
        for start, end in spans[: len(learnt)]:
            labels[start:end] = row[start:end]
        return Row(row, labels)


def turns_of(example: Example, template: str) -> list[Message]:
    """The messages in the form that a template takes: `input` in its place."""
    *before, question, answer = example.messages
    if template == "tutorial":
        # Instruction and input, which rag.chatglm.chat tells apart by the roles.
        if example.input:
            return [Message("system", question.text), Message("user", example.input), answer]
        return [question, answer]
    if example.input:
        # An instruction may be empty, with all of the question in the input.
        asked = f"{question.text}\n" if question.text else ""
        question = replace(question, text=asked + example.input)
    return [*before, question, answer]


def _ends(text: str, count: int) -> str:
    """The first and last characters of `text`, `count` in all."""
    if count >= len(text):
        return text
    head = (count + 1) // 2
    return text[:head] + text[len(text) - (count - head) :]


def _most(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number from `low`, which fits, up to `high` that fits."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
