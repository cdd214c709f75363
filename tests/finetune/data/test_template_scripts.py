"""Rows are those of the older training scripts: the tutorial's id for id, and THUDM's for data that
they neither cut nor parse special words in."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.data.template import RowEncoder, TutorialEncoder, TutorialOptions
from finetune.types import Example, TokenRow
from ingest.errors import UserError
from rag.chatglm.tokenization import open_tokenizer
from rag.types import Message
from tests.finetune.data import oracles
from tests.finetune.tokenizers import conversations, tokenizers
from tests.rag.chatglm.vocabularies import SHARED, published_1

SETTINGS = settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PLAIN = st.text("ab的是中国人，。？0🙂", min_size=1, max_size=30)
TURNS = st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def all_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    found = tokenizers(tmp_path_factory.mktemp("tokenizers"))
    if SHARED.is_dir():  # the published one, with its words for blanks and line ends
        found[1] = open_tokenizer(published_1(tmp_path_factory.mktemp("chatglm-6b")))
    return found


def lists(row: TokenRow) -> oracles.Lists:
    return row.ids.tolist(), row.labels.tolist()


def example_of(*turns: tuple[str, str], system: str = "", input: str = "") -> Example:
    messages = [Message("system", system)] if system else []
    for question, answer in turns:
        messages += [Message("user", question), Message("assistant", answer)]
    return Example(tuple(messages), input)


@pytest.mark.parametrize("generation", [1, 2])
@SETTINGS
@given(example=conversations(), most=st.sampled_from([3, 12, 40, 400]), skip=st.booleans())
def test_rows_equal_the_tutorials(
    all_tokenizers: dict[int, Any], generation: int, example: Example, most: int, *, skip: bool
) -> None:
    tokenizer = all_tokenizers[generation]
    theirs = oracles.tutorial(tokenizer, generation, example, most)
    encoded = TutorialEncoder(tokenizer, generation, TutorialOptions(most, skip))(example)
    if skip and len(theirs[0]) > most:
        assert encoded.rows == ()
        return
    (row,) = encoded.rows
    assert lists(row) == theirs
    whole = TutorialEncoder(tokenizer, generation, TutorialOptions(10_000))(example)
    if len(row) < len(whole.rows[0]) or len(example.messages) > 2:
        assert encoded.shortened
    else:
        assert not encoded.shortened


def test_the_tutorials_labels_begin_before_the_answer(all_tokenizers: dict[int, Any]) -> None:
    """ChatGLM-6B learns <sop>, as in other scripts; ChatGLM2 the last token of its prompt."""
    for generation, first in ((1, "<sop>"), (2, "：")):
        tokenizer = all_tokenizers[generation]
        (row,) = TutorialEncoder(tokenizer, generation)(example_of(("问", "答"))).rows
        learnt = row.labels[row.labels >= 0].tolist()
        assert tokenizer.convert_ids_to_tokens(learnt[0]) == first


def test_a_tutorials_context_is_not_changed(all_tokenizers: dict[int, Any]) -> None:
    tokenizer = all_tokenizers[1]
    (row,) = TutorialEncoder(tokenizer, 1, whole_context=True)(example_of(("你好", "好"))).rows
    assert row.ids.tolist() == tokenizer.encode("你好", "好")


def test_the_tutorials_rows_exist_for_two_models(all_tokenizers: dict[int, Any]) -> None:
    for generation in (3, 4):
        with pytest.raises(UserError, match="later model: use --max-length"):
            TutorialEncoder(all_tokenizers[generation], generation)


def test_lengths_without_room_are_refused() -> None:
    with pytest.raises(UserError, match="give 3 or more"):
        TutorialOptions(max_seq_length=2)


@pytest.mark.parametrize("generation", [1, 2])
@SETTINGS
@given(turns=TURNS)
def test_rows_equal_those_of_ptuning(
    all_tokenizers: dict[int, Any], generation: int, turns: list[tuple[str, str]]
) -> None:
    """One row for each answer; the script has a row of the data for each."""
    tokenizer = all_tokenizers[generation]
    script = oracles.ptuning_1 if generation == 1 else oracles.ptuning_2
    rows = RowEncoder(tokenizer, generation)(example_of(*turns)).rows
    theirs = [script(tokenizer, example_of(*turns[: n + 1])) for n in range(len(turns))]
    assert [lists(row) for row in rows] == theirs


@pytest.mark.parametrize("generation", [3, 4])
@SETTINGS
@given(turns=TURNS, system=st.one_of(st.just(""), PLAIN), input=st.one_of(st.just(""), PLAIN))
def test_rows_equal_those_of_later_scripts(
    all_tokenizers: dict[int, Any], generation: int, turns: list[tuple[str, str]], system: str, input: str
) -> None:
    """One row that learns each answer, the line end before it and the role behind it."""
    tokenizer = all_tokenizers[generation]
    script = oracles.chatglm3 if generation == 3 else oracles.glm4
    example = example_of(*turns, system=system, input=input)
    (row,) = RowEncoder(tokenizer, generation)(example).rows
    assert lists(row) == script(tokenizer, example)


def test_special_words_are_text_here_and_tokens_there(all_tokenizers: dict[int, Any]) -> None:
    tokenizer = all_tokenizers[1]
    example = example_of(("填 [MASK] 空", "答<eop>"))
    (ours,) = RowEncoder(tokenizer, 1)(example).rows
    (theirs,) = TutorialEncoder(tokenizer, 1)(example).rows
    special = {tokenizer.mask_token_id, tokenizer.eos_token_id}
    assert special.isdisjoint(ours.ids[:-1].tolist())
    assert special <= {*theirs.ids[:-1].tolist()}
    # ChatGLM-6B's script learns from a <sop> in the question's text on.
    ids, labels = oracles.ptuning_1(tokenizer, example_of(("甲 <sop> 乙", "答")))
    assert labels.index(tokenizer.bos_token_id) < len(ids) - 4
