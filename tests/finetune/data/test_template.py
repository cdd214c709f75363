"""What is too long is cut so that it can still be learnt: the mark before the answer, some of the
answer, and its end stay."""

from dataclasses import replace
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st

from finetune.data.template import RowEncoder, turns_of
from finetune.types import IGNORED, Example, InvalidRow, TokenRow
from rag.chatglm.chat import TEMPLATES, encode_chat
from rag.types import Message
from tests.finetune.tokenizers import GENERATIONS, conversations, tokenizers

ENDS = {1: "<eop>", 2: "</s>", 3: "</s>", 4: "<|user|>"}
LEADS = {1: 1, 2: 0, 3: 1, 4: 1}
"""Learnt tokens before an answer's own: <sop>, or the line end behind a role."""
SHORT = ("甲", "a", "b\n", "c\n\n", "d  ", "。", "0")


@pytest.fixture(scope="module")
def all_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    return tokenizers(tmp_path_factory.mktemp("tokenizers"))


def one(question: str, answer: str, **more: Any) -> Example:
    return Example((Message("user", question), Message("assistant", answer)), **more)


def mark(encoder: RowEncoder) -> list[int]:
    """The tokens between question and answer, in prompts that nothing was cut from."""
    prompts = [
        encode_chat(
            TEMPLATES[encoder.template](turns_of(one(short, "答"), encoder.template)[:-1]),
            encoder.tokenizer,
            encoder.generation,
        )
        for short in SHORT
    ]
    columns = zip(*(reversed(prompt) for prompt in prompts), strict=False)
    return [same[0] for same in takewhile(lambda ids: len({*ids}) == 1, columns)][::-1]


def check(row: TokenRow, encoder: RowEncoder) -> None:
    """What holds of every row, however it was cut."""
    generation, tokenizer = encoder.generation, encoder.tokenizer
    assert len(row) <= encoder.max_length
    ids, learnt = row.ids.tolist(), (row.labels != IGNORED).tolist()
    assert ids[-1] == tokenizer.convert_tokens_to_ids(ENDS[generation])
    assert learnt[-1]
    start = len(learnt) - learnt[::-1].index(False)
    assert row.labels.tolist()[start:] == ids[start:]
    prompt = ids[: start + (generation == 1)]
    expected = mark(encoder)
    assert expected
    assert prompt[-len(expected) :] == expected
    assert len(ids) - start > LEADS[generation] + 1  # and the end


@pytest.mark.parametrize("template", ["chat", "tutorial"])
@pytest.mark.parametrize("generation", GENERATIONS)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=conversations(), times=st.integers(1, 30), max_length=st.integers(24, 160))
@example(asked=one("问" * 300, "答" * 300), times=1, max_length=64)
@example(asked=one("问" * 300, "答"), times=1, max_length=64)
@example(asked=one("问", "答" * 300), times=1, max_length=64)
@example(asked=one("问", " \n" * 90 + "答"), times=1, max_length=64)
def test_a_cut_row_can_still_be_learnt(
    all_tokenizers: dict[int, Any],
    generation: int,
    template: str,
    asked: Example,
    times: int,
    max_length: int,
) -> None:
    encoder = RowEncoder(all_tokenizers[generation], generation, template, max_length)
    *before, question, answer = asked.messages
    long = replace(question, text=question.text * times), replace(answer, text=answer.text * times)
    asked = replace(asked, messages=(*before, *long), context_only=frozenset())
    try:
        rows = encoder(asked).rows
    except InvalidRow:
        reject()
    for row in rows:
        check(row, encoder)


@pytest.mark.parametrize("template", ["chat", "tutorial"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_smallest_length_is_named_and_works(
    all_tokenizers: dict[int, Any], generation: int, template: str
) -> None:
    """One token less than what serves is refused, not learnt without an answer."""
    asked = one("很长的问题" * 9, "很长的回答" * 9)
    encoder = RowEncoder(all_tokenizers[generation], generation, template, 1)
    with pytest.raises(InvalidRow) as invalid:
        encoder(asked)
    least = int(str(invalid.value).split("but ")[1].split()[0])
    with pytest.raises(InvalidRow, match=f"max_length is {least - 1}, but {least} tokens"):
        replace(encoder, max_length=least - 1)(asked)
    serving = replace(encoder, max_length=least)
    (row,) = serving(asked).rows
    check(row, serving)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_rows_that_cite_passages_are_never_cut(all_tokenizers: dict[int, Any], generation: int) -> None:
    asked = one("[1] 段落。" * 20 + "问？", "答[1]。", whole=True)
    encoder = RowEncoder(all_tokenizers[generation], generation, max_length=60)
    with pytest.raises(InvalidRow, match="would lose passages") as invalid:
        encoder(asked)
    assert invalid.value.problem == "long"
    assert encoder(replace(asked, whole=False)).shortened
    assert not replace(encoder, max_length=1000)(asked).shortened


@pytest.mark.parametrize("generation", GENERATIONS)
def test_turns_without_a_place_are_counted(all_tokenizers: dict[int, Any], generation: int) -> None:
    past = Message("user", "一"), Message("assistant", "二")
    asked = one("问", "答")
    longer = replace(asked, messages=(*past, *asked.messages))
    tutorial = RowEncoder(all_tokenizers[generation], generation, "tutorial")
    assert not tutorial(asked).shortened
    assert tutorial(longer).shortened
    assert not replace(tutorial, template="chat")(longer).shortened


@pytest.mark.parametrize("template", ["chat", "tutorial"])
def test_an_input_alone_is_the_question(all_tokenizers: dict[int, Any], template: str) -> None:
    encoder = RowEncoder(all_tokenizers[2], 2, template)
    (row,), (same,) = (encoder(each).rows for each in (one("", "答", input="问"), one("问", "答")))
    assert row.ids.tolist() == same.ids.tolist()
