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

from finetune.types import IGNORED, Example, Row
from ingest.errors import UserError
from rag.chatglm.chat import encode_answer, encode_chat
from rag.chatglm.template import TEMPLATES
from rag.types import Message

CONTINUED = (3, 4)
"""Generations whose conversation is one sequence."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The rows of an example; `shortened` says that something of it did not fit into them."""

    rows: tuple[Row, ...]
    shortened: bool


@dataclass(frozen=True, slots=True)
class RowEncoder:
    """Examples -> rows of at most `max_length` tokens for a model of `generation`.

    What is too long loses its earliest turns, then the middle of its question, and the end of an
    answer that is too long by itself. The tokens between question and answer, and the one that ends
    the answer, always stay.
    """

    tokenizer: Any
    generation: int
    template: str = "chat"
    max_length: int = 1024

    def __call__(self, example: Example) -> Encoded:
        """`UserError` where `max_length` has no room for what stands around question and answer."""
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
        return Encoded(tuple(row for row, _ in made), any(shortened for _, shortened in made))

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

        if not fits(made(0, 0)):
            raise UserError(
                f"max_length is {self.max_length}, but {len(made(0, 0))} tokens stand around the "
                "question and answer of a row; raise it, or shorten the system message",
                zh=f"max_length 为 {self.max_length}，而一行中问题与回答之外已有 {len(made(0, 0))} 个词元；"
                "请调大，或缩短系统消息",
            )
        # Of the question a quarter stays, however long the answer.
        least = _most(min(len(question.text), self.max_length // 4), lambda n: fits(made(n, 0)))
        answered = _most(len(answer.text), lambda n: fits(made(least, n)))
        return made(_most(len(question.text), lambda n: fits(made(n, answered))), answered)

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
        # Instruction and input, which rag.chatglm.template tells apart by the roles.
        if example.input:
            return [Message("system", question.text), Message("user", example.input), answer]
        return [question, answer]
    if example.input:
        question = replace(question, text=f"{question.text}\n{example.input}")
    return [*before, question, answer]


def _ends(text: str, count: int) -> str:
    """The first and last characters of `text`, `count` in all."""
    if count >= len(text):
        return text
    head = (count + 1) // 2
    return text[:head] + text[len(text) - (count - head) :]


def _most(count: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `count` that fits; 0 does."""
    low, high = 0, count
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
