"""Compat: the rows of the tutorial's and of THUDM's scripts, id for id.

The oracles restate what those scripts do, one id at a time, with the tokenizer's own `encode` and
its truncation; nothing of finetune.data.compat is used in them.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.data.bulk_encode import Speller
from finetune.data.compat import (
    ThudmConversation,
    ThudmOptions,
    ThudmRows,
    TutorialOptions,
    TutorialRows,
    full_length,
    layout,
    padded,
)
from finetune.data.frames import Layout
from finetune.data.template import turns_of
from finetune.types import Example, Row
from ingest.errors import UserError
from rag.chatglm.tokenization import open_tokenizer
from rag.types import Message
from tests.finetune.tokenizers import GENERATIONS, conversations, tokenizers
from tests.rag.chatglm.vocabularies import SHARED, published_1

SETTINGS = settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Lists = tuple[list[int], list[int]]


@pytest.fixture(scope="module")
def all_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    found = tokenizers(tmp_path_factory.mktemp("tokenizers"))
    if SHARED.is_dir():  # the published one, with its words for blanks and line ends
        found[1] = open_tokenizer(published_1(tmp_path_factory.mktemp("chatglm-6b")))
    return found


def one(text: str, answer: str, *, input: str = "", past: Sequence[Message] = ()) -> Example:
    return Example((*past, Message("user", text), Message("assistant", answer)), input)


def lists(row: Row) -> Lists:
    return row.ids.tolist(), row.labels.tolist()


@cache
def speller(tokenizer: Any, parsing: bool) -> Speller:
    return Speller(tokenizer, parsing=parsing)


def in_bulk(written: Layout, examples: list[Example], tokenizer: Any) -> list[list[int]]:
    """Ids and labels of each row in turn, as a set of tokens gets them."""
    texts = [text for example in examples for text in written.texts(example)]
    block = written.block(examples, speller(tokenizer, written.parsing).submit(texts)())
    ends = np.cumsum(block.lengths)[:-1]
    pairs = zip(np.split(block.ids, ends), np.split(block.labels, ends), strict=True)
    return [array.tolist() for pair in pairs for array in pair] if len(block.lengths) else []


# mymusise/ChatGLM-Tuning


def tutorial_row(
    tokenizer: Any, version: int, example: Example, most: int
) -> tuple[list[int], int]:
    """input_ids and seq_len of tokenize_dataset_rows.py, from what cover_alpaca2jsonl.py writes."""
    question, answer = example.messages[-2].text, example.messages[-1].text
    context = "Instruction: " + question + "\n"
    if example.input:
        context = context + "Input: " + example.input + "\n"
    context = context + "Answer: "
    if version == 2:
        context = "[Round 1]\n\n问：" + context + "\n\n答："
    prompt = tokenizer.encode(context, max_length=most, truncation=True)
    target = tokenizer.encode(answer, max_length=most, truncation=True, add_special_tokens=False)
    return prompt + target + [tokenizer.eos_token_id], len(prompt)


def tutorial_labels(ids: list[int], seq_len: int) -> list[int]:
    """finetune.py's collator, for a batch of one."""
    return [-100 if place < seq_len - 1 else id for place, id in enumerate(ids)]


@pytest.mark.parametrize("generation", [1, 2])
@SETTINGS
@given(example=conversations(), most=st.sampled_from([3, 12, 40, 400]), skip=st.booleans())
def test_rows_of_the_tutorial(
    all_tokenizers: dict[int, Any], generation: int, example: Example, most: int, *, skip: bool
) -> None:
    tokenizer = all_tokenizers[generation]
    ids, seq_len = tutorial_row(tokenizer, generation, example, most)
    written = TutorialRows(tokenizer, generation, TutorialOptions(most, skip))
    encoded = written(example)
    if skip and len(ids) > most:
        assert encoded.rows == ()
        assert in_bulk(written, [example, example], tokenizer) == []
        return
    (row,) = encoded.rows
    assert lists(row) == (ids, tutorial_labels(ids, seq_len))
    assert in_bulk(written, [example], tokenizer) == [*lists(row)]
    assert len(row) <= 2 * most + 1


def test_the_tutorials_labels_begin_before_the_answer(all_tokenizers: dict[int, Any]) -> None:
    """ChatGLM-6B learns <sop>, as in other scripts; ChatGLM2 the last token of its prompt."""
    for generation, first in ((1, "<sop>"), (2, "：")):
        tokenizer = all_tokenizers[generation]
        (row,) = TutorialRows(tokenizer, generation)(one("问", "答")).rows
        learnt = row.labels[row.labels >= 0].tolist()
        assert tokenizer.convert_ids_to_tokens(learnt[0]) == first


def test_a_tutorials_context_is_taken_as_it_is(all_tokenizers: dict[int, Any]) -> None:
    tokenizer = all_tokenizers[1]
    (row,) = TutorialRows(tokenizer, 1, framed=False)(one("你好", "好")).rows
    assert row.ids.tolist() == tokenizer.encode("你好", "好")


def test_special_words_become_special_tokens_as_they_did(all_tokenizers: dict[int, Any]) -> None:
    tokenizer = all_tokenizers[1]
    (row,) = TutorialRows(tokenizer, 1)(one("填 [MASK] 空", "答<eop>")).rows
    assert tokenizer.mask_token_id in row.ids
    assert row.ids[-2:].tolist() == [tokenizer.eos_token_id] * 2


def test_the_tutorial_knows_two_models(all_tokenizers: dict[int, Any]) -> None:
    for generation in (3, 4):
        with pytest.raises(UserError, match="--template tutorial without --compat"):
            TutorialRows(all_tokenizers[generation], generation)


# THUDM/ChatGLM-6B and ChatGLM2-6B, ptuning/main.py


def history_of(example: Example) -> list[tuple[str, str]]:
    said = [message.text for message in example.messages if message.role != "system"][:-2]
    return [(said[i], said[i + 1]) for i in range(0, len(said), 2)]


def ptuning_1(
    tokenizer: Any, example: Example, source: int, target: int, *, history: bool, ignore_pad: bool
) -> Lists:
    prompt = example.question
    if history:
        prompt, turns = "", history_of(example)
        for number, (question, answer) in enumerate(turns):
            prompt += f"[Round {number}]\n问：{question}\n答：{answer}\n"
        prompt += f"[Round {len(turns)}]\n问：{example.question}\n答："
    a = tokenizer.encode(prompt, add_special_tokens=False)[: source - 1]
    b = tokenizer.encode(example.answer, add_special_tokens=False)[: target - 2]
    ids = tokenizer.build_inputs_with_special_tokens(a, b)
    labels = [-100] * ids.index(tokenizer.bos_token_id)
    labels += ids[len(labels) :]
    missing = [tokenizer.pad_token_id] * (source + target - len(ids))
    ids, labels = ids + missing, labels + missing
    if ignore_pad:
        labels = [-100 if label == tokenizer.pad_token_id else label for label in labels]
    return ids, labels


def ptuning_2(
    tokenizer: Any, example: Example, source: int, target: int, *, history: bool, ignore_pad: bool
) -> Lists:
    prompt, turns = "", history_of(example) if history else []
    for number, (question, answer) in enumerate(turns):
        prompt += f"[Round {number + 1}]\n\n问：{question}\n\n答：{answer}\n\n"
    prompt += f"[Round {len(turns) + 1}]\n\n问：{example.question}\n\n答："
    a = tokenizer.encode(prompt, truncation=True, max_length=source)
    b = tokenizer.encode(
        example.answer, add_special_tokens=False, truncation=True, max_length=target
    )
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    ids, labels = [*a, *b, end], [*[pad] * len(a), *b, end]
    missing = [pad] * (source + target + 1 - len(ids))
    ids, labels = ids + missing, labels + missing
    if ignore_pad:
        labels = [-100 if label == pad else label for label in labels]
    return ids, labels


@pytest.mark.parametrize("generation", [1, 2])
@SETTINGS
@given(
    example=conversations(),
    source=st.sampled_from([3, 16, 200]),
    target=st.sampled_from([3, 9, 200]),
    history=st.booleans(),
    ignore_pad=st.booleans(),
)
def test_rows_of_ptuning(
    all_tokenizers: dict[int, Any],
    generation: int,
    example: Example,
    source: int,
    target: int,
    *,
    history: bool,
    ignore_pad: bool,
) -> None:
    tokenizer = all_tokenizers[generation]
    restated = ptuning_1 if generation == 1 else ptuning_2
    theirs = restated(tokenizer, example, source, target, history=history, ignore_pad=ignore_pad)
    options = ThudmOptions(source, target, ignore_pad_token_for_loss=ignore_pad)
    written = ThudmRows(tokenizer, generation, options, history)
    (row,) = written(example).rows
    assert in_bulk(written, [example], tokenizer) == [*lists(row)]
    whole = padded(row, full_length(options, generation), tokenizer.pad_token_id)
    assert lists(whole) == theirs


def test_what_ptuning_is_known_for(all_tokenizers: dict[int, Any]) -> None:
    one_, two = all_tokenizers[1], all_tokenizers[2]
    asked = one("问" * 30, "答")
    # An empty history is a round of its own in ChatGLM-6B, where its column is named.
    told = ThudmRows(one_, 1, history=True).texts(one("问", "答"))
    assert told == ["[Round 0]\n问：问\n答：", "答"]
    assert ThudmRows(one_, 1).texts(one("问", "答")) == ["问", "答"]
    # The end of a long prompt is lost, and with it the mark before the answer.
    (row,) = ThudmRows(two, 2, ThudmOptions(20, 20))(asked).rows
    assert "答：" not in two.decode(row.ids[row.labels < 0])
    # Learnt ids that equal the padding's are not learnt: ChatGLM2's <unk>.
    assert two.pad_token_id == 0
    # source_prefix stands before all else.
    assert (
        ThudmRows(two, 2, ThudmOptions(source_prefix="前"))
        .texts(asked)[0]
        .startswith("前[Round 1]")
    )


def test_what_has_no_place_is_told(all_tokenizers: dict[int, Any]) -> None:
    past = (Message("user", "一"), Message("assistant", "二"))
    rows = ThudmRows(all_tokenizers[2], 2)
    assert not rows(one("问", "答")).shortened
    assert rows(one("问", "答", input="入")).shortened
    assert rows(one("问", "答", past=past)).shortened
    assert not ThudmRows(all_tokenizers[2], 2, history=True)(one("问", "答", past=past)).shortened
    assert rows(one("问", "答" * 500)).shortened
    assert TutorialRows(all_tokenizers[2], 2)(one("问", "答", past=past)).shortened


# ChatGLM3's finetune_hf.py and GLM-4's finetune.py


def chatglm3(tokenizer: Any, example: Example, most: int) -> Lists:
    name = tokenizer.convert_tokens_to_ids
    ids, masks = [name("[gMASK]"), name("sop")], [False, False]
    for turn in turns_of(example, "chat"):
        new = [name(f"<|{turn.role}|>")]
        new += tokenizer.encode("\n", add_special_tokens=False)
        new += tokenizer.encode(turn.text, add_special_tokens=False)
        ids += new
        masks += [turn.role == "assistant"] * len(new)
    ids.append(tokenizer.eos_token_id)
    masks = [False, *masks]
    labels = [id if mask else -100 for id, mask in zip(ids, masks, strict=True)]
    return ids[:most], labels[:most]


def glm4(tokenizer: Any, example: Example, most: int, *, combine: bool) -> Lists:
    def rendered(turns: Sequence[Message]) -> list[int]:
        """What apply_chat_template gives without tools."""
        text = "".join(f"<|{turn.role}|>\n{turn.text}" for turn in turns if turn.text)
        return tokenizer.encode("[gMASK]<sop>" + text, add_special_tokens=False)

    turns = turns_of(example, "chat")
    if combine:
        ids = rendered(turns)
        assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
        last = len(ids) - 1 - ids[::-1].index(assistant)
        masks = [place > last for place in range(len(ids))]
    else:
        ids, masks = rendered([]), [False, False]
        for turn in turns:
            new = rendered([turn])[2:]
            ids += new
            masks += [turn.role == "assistant"] * len(new)
    ids.append(tokenizer.convert_tokens_to_ids("<|user|>"))
    masks = [False, *masks]
    labels = [id if mask else -100 for id, mask in zip(ids, masks, strict=True)]
    return ids[:most], labels[:most]


@SETTINGS
@given(example=conversations(), source=st.sampled_from([3, 30, 300]))
def test_rows_of_chatglm3(all_tokenizers: dict[int, Any], example: Example, source: int) -> None:
    tokenizer = all_tokenizers[3]
    written = ThudmConversation(tokenizer, 3, ThudmOptions(source, 5))
    (row,) = written(example).rows
    assert lists(row) == chatglm3(tokenizer, example, source + 6)
    assert in_bulk(written, [example], tokenizer) == [*lists(row)]


@pytest.mark.parametrize("combine", [True, False])
@SETTINGS
@given(example=conversations(), source=st.sampled_from([3, 30, 300]))
def test_rows_of_glm4(
    all_tokenizers: dict[int, Any], example: Example, source: int, *, combine: bool
) -> None:
    tokenizer = all_tokenizers[4]
    written = ThudmConversation(tokenizer, 4, ThudmOptions(source, 5, combine=combine))
    (row,) = written(example).rows
    assert lists(row) == glm4(tokenizer, example, source + 6, combine=combine)
    assert in_bulk(written, [example], tokenizer) == [*lists(row)]


def test_what_the_later_scripts_learn(all_tokenizers: dict[int, Any]) -> None:
    """Of two turns: the line end, the answer, and the role that follows it."""
    example = one("三", "四", past=(Message("user", "一"), Message("assistant", "二")))
    end = ["</s>"]
    for generation, combine, learnt in (
        (3, True, ["\n", "二", "<|user|>", "\n", "四", *end]),
        (4, False, ["\n", "二", "<|user|>", "\n", "四", "<|user|>"]),
        (4, True, ["四", "<|user|>"]),
    ):
        tokenizer = all_tokenizers[generation]
        options = ThudmOptions(combine=combine)
        (row,) = ThudmConversation(tokenizer, generation, options)(example).rows
        want: list[int] = []
        for word in learnt:
            special = word == "</s>" or word.startswith("<|")
            encode = tokenizer.encode(word, add_special_tokens=False)
            want += [tokenizer.convert_tokens_to_ids(word)] if special else encode
        assert row.labels[row.labels >= 0].tolist() == want


def test_a_layout_is_found_by_its_options(all_tokenizers: dict[int, Any]) -> None:
    found = [
        type(layout(options, all_tokenizers[generation], generation, framed=True, history=False))
        for generation in GENERATIONS
        for options in (TutorialOptions(), ThudmOptions())
        if generation < 3 or isinstance(options, ThudmOptions)
    ]
    assert found == [TutorialRows, ThudmRows] * 2 + [ThudmConversation] * 2


def test_lengths_without_room_are_refused() -> None:
    for make in (
        lambda: TutorialOptions(max_seq_length=2),
        lambda: ThudmOptions(max_source_length=2),
        lambda: ThudmOptions(max_target_length=0),
    ):
        with pytest.raises(UserError, match="give 3 or more"):
            make()
