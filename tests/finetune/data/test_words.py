"""Words: the very ids that SentencePiece gives to each text, whatever the text."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data import words
from finetune.data.words import Flat, Words
from tests.rag.chatglm.vocabularies import GOLDEN, TEXTS, small_1

LETTERS = st.sampled_from(
    [*"ab 的是中国人\n\t▁<>|/s0é🙂\0[]", "<s>", "<0x0A>", "  ", "the", "\ud83d"]
)
TEXT = st.one_of(st.text(max_size=40), st.lists(LETTERS, max_size=30).map("".join))


@pytest.fixture(scope="module")
def chatglm2() -> Words:
    return Words((GOLDEN / "tokenizer.model").read_bytes())


def alike(ours: Words, texts: list[str]) -> None:
    whole = ours.whole.encode([text.encode("utf-8", "replace").decode() for text in texts])
    assert [ids.tolist() for ids in ours(texts).lists()] == whole


def lines() -> list[str]:
    return [line for path in TEXTS for line in path.read_text("utf-8").splitlines(keepends=True)]


@settings(deadline=None, max_examples=100)
@given(texts=st.lists(TEXT, max_size=8))
def test_ids_are_those_of_sentencepiece(chatglm2: Words, texts: list[str]) -> None:
    assert chatglm2.separable
    alike(chatglm2, texts)


def test_ids_of_whole_documents(chatglm2: Words) -> None:
    alike(chatglm2, ["".join(lines()), *lines()])


def test_words_that_share_a_slot_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "SLOTS", 2)
    ours = Words((GOLDEN / "tokenizer.model").read_bytes())
    alike(ours, lines())
    alike(ours, lines()[::-1])


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "CHARACTERS", 200)
    for words_, room in ((300, 100_000), (100_000, 1000)):
        monkeypatch.setattr(words, "REMEMBERED", words_)
        monkeypatch.setattr(words, "ROOM", room)
        ours = Words((GOLDEN / "tokenizer.model").read_bytes())
        alike(ours, lines())
        known = ours.known
        assert len(known.lengths) == words_
        assert len(known.text) == len(known.ids) == room


def test_long_texts_are_encoded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "CHARACTERS", 50)
    ours = Words((GOLDEN / "tokenizer.model").read_bytes())
    alike(ours, ["", "中" * 49, "中" * 50, "a b" * 100, "x", "", "y" * 48])


def trained(folder: Path, kind: str, **options: object) -> bytes:
    lines: Iterable[str] = (line for path in TEXTS for line in path.read_text("utf-8").split("\n"))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in lines if line]),
        model_prefix=str(folder / "model"),
        model_type=kind,
        vocab_size=900,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return (folder / "model.model").read_bytes()


@pytest.mark.parametrize(
    ("kind", "options", "separable"),
    [
        ("bpe", {"normalization_rule_name": "identity", "remove_extra_whitespaces": False,
                 "byte_fallback": True, "character_coverage": 0.98}, True),
        ("bpe", {"normalization_rule_name": "identity", "remove_extra_whitespaces": False,
                 "byte_fallback": True, "add_dummy_prefix": False,
                 "user_defined_symbols": ["数据", "rag "]}, True),
        ("bpe", {"normalization_rule_name": "identity", "remove_extra_whitespaces": False,
                 "character_coverage": 0.98}, False),
        ("bpe", {"byte_fallback": True}, False),
        ("unigram", {"normalization_rule_name": "identity", "remove_extra_whitespaces": False,
                     "byte_fallback": True}, False),
    ],
)  # fmt: skip
def test_models_of_other_kinds(
    tmp_path: Path, kind: str, options: dict[str, object], separable: bool
) -> None:
    ours = Words(trained(tmp_path, kind, **options))
    assert ours.separable == separable
    alike(ours, [*lines(), "数据数据 rag rag 数", "\u2603\u2603\u2603", " \u2603  x"])


def test_chatglm_6bs_texts_are_encoded_whole(tmp_path: Path) -> None:
    ours = Words((small_1(tmp_path) / "ice_text.model").read_bytes())
    assert not ours.separable
    alike(ours, lines())


def test_a_worker_answers_with_the_same_ids(tmp_path: Path, chatglm2: Words) -> None:
    asked, answers = tmp_path / "asked", tmp_path / "answers"
    texts = [lines()[:40], [], ["", "中国", "半\ud83d"], [""]]
    asked.write_bytes(b"".join(map(words.packed, texts)))
    with asked.open("rb") as source, answers.open("wb") as target:
        words.serve(GOLDEN / "tokenizer.model", source, target)
    data = answers.read_bytes()
    for each in texts:
        lists, ids = np.frombuffer(data, np.int64, 2).tolist()
        counts = np.frombuffer(data[16:], np.int64, lists)
        found = Flat(np.frombuffer(data[16 + 8 * lists :], np.int32, ids), counts)
        data = data[16 + 8 * lists + 4 * ids :]
        assert [part.tolist() for part in found.lists()] == [
            chatglm2.whole.encode(text.encode("utf-8", "replace").decode()) for text in each
        ]
    assert data == b""
