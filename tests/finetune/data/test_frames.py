"""Frames: rows in bulk are those that RowEncoder gives, example by example."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.data.bulk_encode import Speller
from finetune.data.frames import MARK, Block, Counts, Frames
from finetune.data.template import RowEncoder
from finetune.types import Example, Unfit
from ingest.errors import UserError
from rag.types import Message
from tests.finetune.tokenizers import GENERATIONS, conversations, tokenizers

ALL = st.lists(conversations(), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def all_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    return tokenizers(tmp_path_factory.mktemp("tokenizers"))


@cache
def speller_of(tokenizer: Any) -> Speller:
    return Speller(tokenizer)


def same(ours: Block, theirs: Block) -> None:
    assert ours.ids.tolist() == theirs.ids.tolist()
    assert ours.labels.tolist() == theirs.labels.tolist()
    assert ours.lengths.tolist() == theirs.lengths.tolist()
    assert ours.counts == theirs.counts
    assert {a.dtype for a in (ours.ids, ours.labels, ours.lengths)} == {np.dtype(np.int32)}


def made(frames: Frames, speller: Speller, examples: list[Example]) -> Block:
    texts = [text for example in examples for text in frames.texts(example)]
    return frames.block(examples, speller.submit(texts)())


def refused(encoder: RowEncoder, examples: list[Example]) -> bool:
    try:
        return not [encoder(example) for example in examples]
    except Unfit:
        return True


@pytest.mark.parametrize("template", ["chat", "tutorial"])
@pytest.mark.parametrize("generation", GENERATIONS)
@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(examples=ALL, max_length=st.sampled_from([24, 40, 400]))
def test_rows_are_those_of_the_encoder(
    all_tokenizers: dict[int, Any],
    generation: int,
    template: str,
    examples: list[Example],
    max_length: int,
) -> None:
    tokenizer = all_tokenizers[generation]
    encoder = RowEncoder(tokenizer, generation, template, max_length)
    speller = speller_of(tokenizer)
    frames = Frames(encoder)
    if refused(encoder, examples):
        with pytest.raises(UserError, match=r"data\.json:7: max_length is"):
            made(frames, speller, examples)
        skipping = made(Frames(encoder, skip_bad=True), speller, examples)
        kept = [example for example in examples if not refused(encoder, [example])]
        theirs = Block.of([encoder(example) for example in kept])
        bad = Counts(bad=len(examples) - len(kept))
        same(skipping, replace(theirs, counts=theirs.counts + bad))
        return
    theirs = Block.of([encoder(example) for example in examples])
    same(made(frames, speller, examples), theirs)
    same(made(frames, speller, examples), theirs)  # now that the shapes are known


def test_a_shape_is_asked_for_once(all_tokenizers: dict[int, Any]) -> None:
    frames = Frames(RowEncoder(all_tokenizers[2], 2))

    def example(question: str, answer: str) -> Example:
        return Example((Message("user", question), Message("assistant", answer)))

    examples = [example("问", "答"), example("你好吗？", "好。"), example("a", "b")]
    made(frames, Speller(all_tokenizers[2]), examples)
    assert len(frames.known) == 1


def test_marks_in_a_text_are_text(all_tokenizers: dict[int, Any]) -> None:
    for generation, tokenizer in all_tokenizers.items():
        said = f"a{chr(MARK)}b{chr(MARK + 1)}"
        example = Example((Message("user", said), Message("assistant", said)))
        encoder = RowEncoder(tokenizer, generation)
        same(made(Frames(encoder), Speller(tokenizer), [example]), Block.of([encoder(example)]))


def test_an_error_names_its_row_in_both_languages(all_tokenizers: dict[int, Any]) -> None:
    system = Message("system", "很长" * 50)
    example = Example((system, Message("user", "问"), Message("assistant", "答")), "", source="d:3")
    tokenizer = all_tokenizers[3]
    frames = Frames(RowEncoder(tokenizer, 3, max_length=20))
    with pytest.raises(UserError, match=r"d:3: max_length is 20, but \d+ tokens") as error:
        made(frames, Speller(tokenizer), [example])
    assert error.value.zh.startswith("d:3：max_length 为 20")
