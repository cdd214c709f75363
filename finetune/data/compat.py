"""The rows of two older training scripts, id for id, with what is wrong in them.

To go on with a training that was begun there, and to compare with it. Special words in a text
become special tokens here as they do there, but in ChatGLM3, whose tokenizer never takes them so.

Padding is not kept in rows: whoever makes batches pads on the right with labels IGNORED, which is
what both scripts train on. `padded` gives THUDM's own arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.data.bulk_encode import spell
from finetune.data.frames import PLACE, Block, Counts
from finetune.data.template import Encoded, turns_of
from finetune.data.words import Flat, Ids, gather
from finetune.types import IGNORED, Example, Row
from ingest.errors import UserError
from rag.chatglm.chat import framed

FRAME_1, FRAME_2 = "[Round {}]\n问：{}\n答：{}", "[Round {}]\n\n问：{}\n\n答：{}"


def _check_room(name: str, length: int) -> None:
    if length < 3:
        raise UserError(
            f"{name} is {length}, which has no room for a word; give 3 or more",
            zh=f"{name} 为 {length}，容不下一个词；请设为 3 或以上",
        )


@dataclass(frozen=True, slots=True)
class TutorialOptions:
    """Arguments of mymusise/ChatGLM-Tuning's tokenize_dataset_rows.py."""

    max_seq_length: int = 384
    """Of prompt and of answer, each: a row may have 2 * max_seq_length + 1 tokens."""
    skip_overlength: bool = False
    """Leave out rows of more than max_seq_length tokens."""

    def __post_init__(self) -> None:
        _check_room("--max-seq-length", self.max_seq_length)


@dataclass(frozen=True, slots=True)
class ThudmOptions:
    """Arguments of THUDM's training scripts, which call two of them max_input_length and
    max_output_length from ChatGLM3 on."""

    max_source_length: int = 1024
    max_target_length: int = 128
    source_prefix: str = ""
    ignore_pad_token_for_loss: bool = True
    """False: what is padding (in ChatGLM2, also the prompt) is learnt to be the padding's id."""
    combine: bool = True
    """GLM-4: only the last answer is learnt, without the line end that it begins with."""

    def __post_init__(self) -> None:
        _check_room("--max-source-length", self.max_source_length)
        _check_room("--max-target-length", self.max_target_length)


@dataclass(frozen=True, slots=True)
class TutorialRows:
    """tokenize_dataset_rows.py, of which ChatGLM-6B's is `v1`, ChatGLM2-6B's `v2`, and the labels
    of finetune.py's collator.

    One turn: earlier ones are left out. ChatGLM2's context, which ends with "Answer: " already, is
    put into a round of a chat as well. Labels begin one token before the answer: with `<sop>` in
    ChatGLM-6B, with the last token of the prompt in ChatGLM2. The end of a prompt that is too long
    is cut off, "Answer: " first.
    """

    tokenizer: Any
    generation: int
    options: TutorialOptions = TutorialOptions()
    framed: bool = True
    """False: a question is the whole context, as the tutorial's jsonl holds it."""

    def __post_init__(self) -> None:
        if self.generation > 2:
            raise UserError(
                f"the tutorial knows ChatGLM-6B and ChatGLM2-6B; this is {_NAMES[self.generation]}: "
                "use --template tutorial without --compat",
                zh=f"该教程只支持 ChatGLM-6B 和 ChatGLM2-6B，而这是 {_NAMES[self.generation]}："
                "请去掉 --compat，改用 --template tutorial",
            )

    @property
    def parsing(self) -> bool:
        return True

    def texts(self, example: Example) -> list[str]:
        context = example.question
        if self.framed:
            context = framed(example.question, example.input)
        if self.generation == 2:
            context = FRAME_2.format(1, context, "")
        return [context, example.answer]

    def block(self, examples: Sequence[Example], ids: Flat) -> Block:
        most = self.options.max_seq_length
        prompt = self.tokenizer.build_inputs_with_special_tokens([PLACE])
        frame = np.array([*prompt, PLACE, self.tokenizer.eos_token_id], np.int32)
        places = np.flatnonzero(frame == PLACE)  # of context and target
        counts = ids.counts.reshape(-1, 2)
        kept = np.minimum(counts, [most - 2, most])
        sizes = np.ones((len(counts), len(frame)), np.int64)
        sizes[:, places] = kept
        starts = np.tile(np.arange(len(frame)) + len(ids.ids), (len(counts), 1))
        starts[:, places] = (ids.ends - ids.counts).reshape(-1, 2)
        made = gather(np.concatenate((ids.ids, frame)), starts.ravel(), sizes.ravel())
        lengths = sizes.sum(1)
        learnt = np.repeat(
            np.tile(np.arange(len(frame)) >= len(prompt), len(counts)), sizes.ravel()
        )
        learnt[np.cumsum(lengths) - kept[:, 1] - 2] = True  # the last of the prompt
        left_out = (lengths > most) & self.options.skip_overlength
        longer = np.array([len(each.messages) > 2 for each in examples], bool)
        told = Counts(
            len(examples),
            int(np.count_nonzero((kept < counts).any(1) | longer)),
            int(left_out.sum()),
        )
        if left_out.any():
            stays = np.repeat(~left_out, lengths)
            made, learnt, lengths = made[stays], learnt[stays], lengths[~left_out]
        labels = np.where(learnt, made, np.int32(IGNORED))
        return Block(made, labels, lengths.astype(np.int32), told)

    def __call__(self, example: Example) -> Encoded:
        made = self.block([example], Flat.of(_spelt(self, example)))
        rows = (Row(made.ids, made.labels),) if len(made.lengths) else ()
        return Encoded(rows, made.counts.shortened > 0)


@dataclass(frozen=True, slots=True)
class ThudmRows:
    """preprocess_function_train of THUDM/ChatGLM-6B's and ChatGLM2-6B's ptuning/main.py.

    An alpaca `input` and a system message have no place, nor have earlier turns unless a history
    column is named; ChatGLM-6B then writes an empty history as [Round 0]. Prompts that are too long
    lose their end, in ChatGLM2 with the mark before the answer. Of ChatGLM2's answers, ids that
    equal the padding's, which is `<unk>`, are not learnt.
    """

    tokenizer: Any
    generation: int
    options: ThudmOptions = ThudmOptions()
    history: bool = False
    """Whether a history column is named."""

    @property
    def parsing(self) -> bool:
        return True

    def texts(self, example: Example) -> list[str]:
        said = [message.text for message in example.messages if message.role != "system"]
        past = list(zip(said[:-2:2], said[1:-2:2], strict=True)) if self.history else []
        query = example.question
        if self.generation == 2:
            rounds = [FRAME_2.format(i, q, a) + "\n\n" for i, (q, a) in enumerate(past, 1)]
            query = "".join(rounds) + FRAME_2.format(len(past) + 1, query, "")
        elif self.history:
            rounds = [FRAME_1.format(i, q, a) + "\n" for i, (q, a) in enumerate(past)]
            query = "".join(rounds) + FRAME_1.format(len(past), query, "")
        return [self.options.source_prefix + query, example.answer]

    def rows(self, example: Example, ids: Sequence[Ids]) -> Encoded:
        if not (example.question and example.answer):
            return Encoded((), shortened=False)
        source, target = ids
        most, most_target = self.options.max_source_length, self.options.max_target_length
        build, pad = self.tokenizer.build_inputs_with_special_tokens, self.tokenizer.pad_token_id
        if self.generation == 1:
            most, most_target = most - 1, most_target - 2
            row = _row([build(source[:most].tolist(), target[:most_target].tolist())])
            labels = row.copy()
            # The first <sop>: one in the question's text, where there is one.
            labels[: row.tolist().index(self.tokenizer.bos_token_id)] = IGNORED
        else:
            most -= 2
            prompt = build(source[:most].tolist())
            row = _row([prompt, target[:most_target], [self.tokenizer.eos_token_id]])
            labels = row.copy()
            labels[: len(prompt)] = pad
        if self.options.ignore_pad_token_for_loss:
            labels[labels == pad] = IGNORED
        made = Row(row, labels)
        if not self.options.ignore_pad_token_for_loss:
            made = padded(made, full_length(self.options, self.generation), pad, pad)
        left = bool(example.input) or (len(example.messages) > 2 and not self.history)
        cut = len(source) > most or len(target) > most_target or left
        return Encoded((made,), cut)

    def block(self, examples: Sequence[Example], ids: Flat) -> Block:
        return _block(self, examples, ids)

    def __call__(self, example: Example) -> Encoded:
        return _alone(self, example)


@dataclass(frozen=True, slots=True)
class ThudmConversation:
    """process_batch of ChatGLM3's finetune_hf.py and of GLM-4's finetune.py.

    Whether a token is learnt is told by the token before it: an answer's role is not, the token
    that follows an answer is. A row that is too long loses its end, the end token first. Every
    answer is learnt, whatever its weight; GLM-4 with `combine` learns the last one only.
    """

    tokenizer: Any
    generation: int
    options: ThudmOptions = ThudmOptions()

    @property
    def parsing(self) -> bool:
        return self.generation == 4

    def texts(self, example: Example) -> list[str]:
        said = [turn.text for turn in self._turns(example)]
        # ChatGLM3 encodes the line end behind a role by itself, GLM-4 with the text.
        return ["\n", *said] if self.generation == 3 else [f"\n{text}" for text in said]

    def rows(self, example: Example, ids: Sequence[Ids]) -> Encoded:
        name = self.tokenizer.convert_tokens_to_ids
        lead, said = (ids[0], ids[1:]) if self.generation == 3 else (np.zeros(0, np.int32), ids)
        parts = [_row([[name("[gMASK]"), name("sop" if self.generation == 3 else "<sop>")]])]
        learnt = [np.zeros(2, bool)]
        for turn, text in zip(self._turns(example), said, strict=True):
            parts.append(_row([[name(f"<|{turn.role}|>")], lead, text]))
            learnt.append(np.full(len(parts[-1]), turn.role == "assistant"))
        row, mask = np.concatenate(parts), np.concatenate(learnt)
        if self.generation == 4 and self.options.combine:
            last = np.flatnonzero(row == name("<|assistant|>"))[-1]
            mask = np.arange(len(row)) > last
        end = self.tokenizer.eos_token_id if self.generation == 3 else name("<|user|>")
        row, mask = np.append(row, np.int32(end)), np.insert(mask, 0, False)
        most = self.options.max_source_length + self.options.max_target_length + 1
        labels = np.where(mask, row, np.int32(IGNORED))
        return Encoded((Row(row[:most], labels[:most]),), len(row) > most)

    def _turns(self, example: Example) -> list[Any]:
        """GLM-4's chat template skips what is empty."""
        turns = turns_of(example, "chat")
        return [turn for turn in turns if turn.text or self.generation == 3]

    def block(self, examples: Sequence[Example], ids: Flat) -> Block:
        return _block(self, examples, ids)

    def __call__(self, example: Example) -> Encoded:
        return _alone(self, example)


Compat = TutorialOptions | ThudmOptions
Layouts = TutorialRows | ThudmRows | ThudmConversation
_NAMES = {3: "ChatGLM3-6B", 4: "GLM-4"}


def layout(
    options: Compat, tokenizer: Any, generation: int, *, framed: bool, history: bool
) -> Layouts:
    """The rows of the script that the options are of, for a model of `generation`."""
    if isinstance(options, TutorialOptions):
        return TutorialRows(tokenizer, generation, options, framed)
    if generation < 3:
        return ThudmRows(tokenizer, generation, options, history)
    return ThudmConversation(tokenizer, generation, options)


def full_length(options: ThudmOptions, generation: int) -> int:
    """Tokens of a row with its padding, in the scripts for ChatGLM-6B and ChatGLM2."""
    return options.max_source_length + options.max_target_length + (generation == 2)


def padded(row: Row, length: int, pad: int, label: int = IGNORED) -> Row:
    """The row as THUDM's script for ChatGLM-6B and ChatGLM2 writes it: filled up to `length`."""
    missing = max(0, length - len(row))
    ids, labels = np.full((2, missing), [[pad], [label]], np.int32)
    return Row(np.concatenate([row.ids, ids]), np.concatenate([row.labels, labels]))


def _row(parts: Sequence[Sequence[int] | Ids]) -> Ids:
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def _block(layout: ThudmRows | ThudmConversation, examples: Sequence[Example], ids: Flat) -> Block:
    lists = iter(ids.lists())
    return Block.of(
        [layout.rows(each, [next(lists) for _ in layout.texts(each)]) for each in examples]
    )


def _alone(layout: ThudmRows | ThudmConversation, example: Example) -> Encoded:
    return layout.rows(example, [np.array(ids, np.int32) for ids in _spelt(layout, example)])


def _spelt(layout: Layouts, example: Example) -> list[list[int]]:
    """The ids of each of the example's texts."""
    texts = layout.texts(example)
    return [spell(text, layout.tokenizer, parsing=layout.parsing) for text in texts]
