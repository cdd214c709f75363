"""Folding joins spellings of one word and touches nothing else."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ingest
from ingest.normalize import bigrams, normalize, words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("勞動合同法", "劳动合同法"),
        ("ＧＰＴ－４", "gpt-4"),
        ("ﾊﾝｶｸ", "ハンカク"),
        ("①②", "12"),
        ("臺灣大學", "台湾大学"),
        ("Straße", "straße"),
    ],
)
def test_spellings_of_one_word_normalize_alike(one: str, other: str) -> None:
    assert normalize(one) == normalize(other)
    assert words(one) == words(other)
    assert bigrams(one) == bigrams(other)


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_only_lowered(text: str) -> None:
    assert normalize(text) == text.lower()


@given(st.text())
def test_no_term_is_empty_or_holds_space(text: str) -> None:
    for term in [*words(text), *bigrams(text)]:
        assert term
        assert not any(character.isspace() for character in term)


def test_the_table_pairs_up_and_needs_no_second_pass() -> None:
    lines = Path(ingest.__path__[0], "simplified.tsv").read_text("utf-8").splitlines()
    traditional, simplified = zip(*(line.split("\t") for line in lines), strict=True)
    assert len(set(traditional)) == len(lines) > 4000
    assert not set(traditional) & set(simplified)
    assert normalize("".join(traditional)) == "".join(simplified)


def test_words_keep_long_words_beside_their_parts() -> None:
    assert words("中华人民共和国café") == ["中华", "华人", "人民", "共和", "共和国", "中华人民共和国", "café"]


def test_bigrams_pair_characters_and_keep_other_words_whole() -> None:
    assert bigrams("第 3 章：总则 GPT4") == ["第", "3", "章", "总则", "gpt4"]
    assert bigrams("劳动法") == ["劳动", "动法"]
