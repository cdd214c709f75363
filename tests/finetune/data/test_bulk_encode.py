"""Speller: in bulk, in workers or here, the ids are those of one text at a time."""

from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.data.bulk_encode import Speller
from ingest.errors import UserError
from rag.chatglm.chat import encode_text
from tests.finetune.tokenizers import GENERATIONS, SPECIAL, TEXT, tokenizers


@pytest.fixture(scope="module")
def all_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    return tokenizers(tmp_path_factory.mktemp("tokenizers"))


@cache
def speller(tokenizer: Any, parsing: bool) -> Speller:
    return Speller(tokenizer, parsing=parsing)


@pytest.mark.parametrize("parsing", [False, True])
@pytest.mark.parametrize("generation", GENERATIONS)
@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(TEXT, max_size=6))
def test_bulk_is_one_by_one(
    all_tokenizers: dict[int, Any], generation: int, *, parsing: bool, texts: list[str]
) -> None:
    tokenizer = all_tokenizers[generation]
    found = [ids.tolist() for ids in speller(tokenizer, parsing).submit(texts)().lists()]
    if parsing:
        assert found == [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    else:
        assert found == [encode_text(text, tokenizer) for text in texts]


@pytest.mark.parametrize("generation", [1, 2])
def test_workers_give_the_same_in_order(all_tokenizers: dict[int, Any], generation: int) -> None:
    tokenizer = all_tokenizers[generation]
    lists = [[f"第 {i} 句\n  {special}" for special in SPECIAL] for i in range(30)]
    for parsing in (False, True):
        here = Speller(tokenizer, parsing=parsing)
        with Speller(tokenizer, parsing=parsing, workers=2) as there:
            waiting = [there.submit(texts) for texts in lists]
            for texts, spelt in zip(lists, waiting, strict=True):
                assert spelt().ids.tolist() == here.submit(texts)().ids.tolist()


def test_a_worker_that_dies_is_told(all_tokenizers: dict[int, Any]) -> None:
    with Speller(all_tokenizers[2], workers=1) as speller:
        speller.submit(["一"])()
        speller.workers[0].process.kill()
        handed = [speller.submit(["二"]) for _ in range(3)]
        for spelt in handed:
            with pytest.raises(UserError, match="has ended, perhaps for want of memory"):
                spelt()


def test_workers_end_with_the_work(all_tokenizers: dict[int, Any]) -> None:
    speller = Speller(all_tokenizers[2], workers=2)

    def interrupted() -> None:
        with speller:
            for _ in range(5):
                speller.submit(["很长的文本"] * 1000)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(worker.process.returncode is not None for worker in speller.workers)
