"""Example -> rows of tokens, and which of them are learnt: exactly the prompts that `rag` answers.

A row is the prompt of an answer (`rag.chatglm.chat.encode_chat`, in the adapter's template),
followed by the answer. If a generation's prompt of the next question begins with the whole conversation
before it (ChatGLM3, GLM-4), a conversation is one row that learns all its answers; else it is one
row for each answer, whose prompt holds the earlier turns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from finetune.options import MAX_LENGTH
from finetune.types import IGNORED, REJECTED, Example, InvalidRow, TokenRow
from ingest.errors import UserError
from rag.chatglm.chat import TEMPLATES, encode_answer, encode_chat, encode_text, tutorial_prompt
from rag.types import Message

CONTINUED = (3, 4)
"""Generations that write a conversation as one sequence."""
ROUND_2 = "[Round 1]\n\n问：{}\n\n答："
"""ChatGLM2's first round."""


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """The rows of an example.

    `shortened`: a part of the example did not fit into them. `bad`: there are none, because nothing
    of the example may be cut off.
    """

    rows: tuple[TokenRow, ...]
    shortened: bool
    bad: bool = False


class CachedTokenizer:
    """A tokenizer that remembers the ids of recent texts.

    The prompts of a conversation repeat its earlier turns, and texts around the turns recur: rows
    of GLM-4 take a third of the time (`tokenizer.encode` takes 0.3 ms a call), conversations less.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.encode_data = lru_cache(1024)(lambda text: encode_text(text, tokenizer))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@dataclass(frozen=True, slots=True)
class RowEncoder:
    """Examples -> rows of at most `max_length` tokens for a model of `generation`.

    A longer example loses its earliest turns, then the middle of its question, and finally the end
    of its answer. The tokens between question and answer, the start of the answer, and the token
    that ends it, always stay. The two conversations of a preference pair are one row, and `max_length`
    is that of each.
    """

    tokenizer: Any
    generation: int
    template: str = "chat"
    max_length: int = MAX_LENGTH

    def __call__(self, example: Example) -> EncodedExample:
        """Raises `InvalidRow` if `max_length` has no room for the tokens around question and answer,
        or if the example is too long and must stay whole."""
        turns = turns_of(example, self.template)
        first = len(example.messages) - len(turns)  # the tutorial's form has one turn
        if self.template == "tutorial":
            learnt = [len(turns) - 1]
        else:
            answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
            learnt = [i for i in answers if i + first not in example.context_only]
        if example.rejected:
            answers = (turns[-1], replace(turns[-1], text=example.rejected))
            fitted = [self._fit([*turns[:-1], answer], learnt) for answer in answers]
        elif self.generation in CONTINUED:
            fitted = [self._fit(turns, learnt)]
        else:
            fitted = [self._fit(turns[: i + 1], [i]) for i in learnt]
        shortened = any(cut for _, cut in fitted)
        if shortened and example.whole:
            raise InvalidRow(
                "longer than max_length, {max_length}, and cut it would lose passages that it cites; "
                "raise max_length, or make rows with fewer --passages",
                "long",
                max_length=self.max_length,
            )
        rows = tuple(row for row, _ in fitted)
        if example.rejected:
            rows[1].labels[0] = REJECTED
            ids, labels = (np.concatenate([getattr(row, name) for row in rows]) for name in ("ids", "labels"))
            rows = (TokenRow(ids, labels),)
        return EncodedExample(rows, shortened or example.unplaced(self.template) > 0)

    def _fit(self, turns: Sequence[Message], learnt: Sequence[int]) -> tuple[TokenRow, bool]:
        """The row, and whether it was shortened."""
        row = self._row(turns, learnt)
        if len(row) <= self.max_length:
            return row, False
        system = [turn for turn in turns if turn.role == "system"]
        rest, start = list(turns[len(system) :]), len(system)
        while len(rest) > 2:
            rest = rest[2:]
            start += 2
            still_learnt = [i - start + len(system) for i in learnt if i >= start]
            if len(row := self._row([*system, *rest], still_learnt)) <= self.max_length:
                return row, True
        return self._cut(system, *rest), True

    def _cut(self, system: list[Message], question: Message, answer: Message) -> TokenRow:
        def row(q: int, a: int) -> TokenRow:
            """The row with `q` characters of the question and `a` of the answer."""
            last = replace(answer, text=answer.text[:a])
            turns = [*system, replace(question, text=_ends(question.text, q)), last]
            return self._row(turns, [len(turns) - 1])

        def fits(q: int, a: int) -> bool:
            return len(row(q, a)) <= self.max_length

        # One character of the answer stays at least, and a quarter row of the question if possible.
        first = len(answer.text) - len(answer.text.lstrip()) + 1
        if not fits(0, first):
            raise InvalidRow(
                "max_length is {max_length}, but {least} tokens are needed around question and "
                "answer, with the first one of the answer; raise it, or shorten the system message",
                "long",
                max_length=self.max_length,
                least=len(row(0, first)),
            )
        quarter = min(len(question.text), self.max_length // 4)
        q = _most(0, quarter, lambda count: fits(count, first))
        a = _most(first, len(answer.text), lambda count: fits(q, count))
        return row(_most(q, len(question.text), lambda count: fits(count, a)), a)

    def _row(self, turns: Sequence[Message], learnt: Sequence[int]) -> TokenRow:
        """Prompt by prompt and answer by answer; each prompt begins with everything before it."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        last = len(turns) - 1
        for i in [*learnt, *([] if last in learnt else [last])]:
            messages = TEMPLATES[self.template](turns[:i])
            prompt = encode_chat(messages, self.tokenizer, self.generation)
            answer = encode_answer(turns[i].text, self.tokenizer, self.generation)
            ids = [*prompt, *answer]
            # As upstream, ChatGLM-6B also learns the <sop> that its prompt ends with.
            spans.append((len(prompt) - (self.generation == 1), len(ids)))
        row = np.array(ids, np.int32)
        labels = np.full(len(row), IGNORED, np.int32)
        for start, end in spans[: len(learnt)]:
            labels[start:end] = row[start:end]
        return TokenRow(row, labels)


@dataclass(frozen=True, slots=True)
class TutorialOptions:
    """Arguments of mymusise/ChatGLM-Tuning's tokenize_dataset_rows.py."""

    max_seq_length: int = 384
    """The most tokens of a prompt, and of an answer: a row has up to 2 * max_seq_length + 1."""
    skip_overlength: bool = False
    """Leave out rows of more than max_seq_length tokens."""

    def __post_init__(self) -> None:
        if self.max_seq_length < 3:
            raise UserError(
                "--max-seq-length is {length}, which has no room for a token; give 3 or more",
                length=self.max_seq_length,
            )


@dataclass(frozen=True, slots=True)
class TutorialEncoder:
    """Examples -> the rows of tokenize_dataset_rows.py, id for id, and the labels of the collator
    in the tutorial's finetune.py.

    Earlier turns are left out. Special words in a text become special tokens. ChatGLM2's context is
    put into a round of a chat, although it ends with "Answer: ". A prompt that is too long loses its
    end, "Answer: " first. Labels begin one token before the answer: with `<sop>` in ChatGLM-6B, with
    the last token of the prompt in ChatGLM2.
    """

    tokenizer: Any
    generation: int
    options: TutorialOptions = TutorialOptions()
    whole_context: bool = False
    """Whether a question is the whole context, as in the tutorial's jsonl."""

    def __post_init__(self) -> None:
        if self.generation > 2:
            raise UserError(
                "--max-seq-length and --skip-overlength write the tutorial's tokens, which are for "
                "ChatGLM-6B and ChatGLM2-6B; this is a later model: use --max-length"
            )

    def __call__(self, example: Example) -> EncodedExample:
        context = tutorial_context(example, whole=self.whole_context)
        if self.generation == 2:
            context = ROUND_2.format(context)
        source = self.tokenizer.encode(context, add_special_tokens=False)
        target = self.tokenizer.encode(example.answer, add_special_tokens=False)
        most = self.options.max_seq_length
        prompt = self.tokenizer.build_inputs_with_special_tokens(source[: most - 2])
        ids = np.array([*prompt, *target[:most], self.tokenizer.eos_token_id], np.int32)
        cut = len(source) > most - 2 or len(target) > most
        shortened = cut or example.unplaced("tutorial") > 0
        if self.options.skip_overlength and len(ids) > most:
            return EncodedExample((), shortened)
        labels = ids.copy()
        labels[: len(prompt) - 1] = IGNORED
        return EncodedExample((TokenRow(ids, labels),), shortened)


def tutorial_context(example: Example, *, whole: bool) -> str:
    """The question as cover_alpaca2jsonl.py writes it; `whole`: the question already is that."""
    return example.question if whole else tutorial_prompt(example.question, example.input)


def turns_of(example: Example, template: str) -> list[Message]:
    """The messages in the form that a template takes, with the `input` in its place."""
    *before, question, answer = example.messages
    if template == "tutorial":
        # Instruction and input, which rag.chatglm.chat tells apart by the roles.
        if example.input:
            return [Message("system", question.text), Message("user", example.input), answer]
        return [question, answer]
    if example.input:
        # An instruction may be empty, with the whole question in the input.
        texts = filter(None, (question.text, example.input))
        question = replace(question, text="\n".join(texts))
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
