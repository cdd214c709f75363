"""Fusion: each leg counts, and counts nothing where it has nothing to say."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ingest.types import Chunk
from rag.question import analyze, content_words
from rag.retrieve import SearchScores, coverage, fuse, idf, mass, names_row

SCORES = arrays(np.float64, 7, elements=st.floats(0, 50))


def candidates(similarity, words, bigrams, word_mass, bigram_mass):
    arrays = map(np.array, (similarity, words, bigrams))
    return SearchScores(*arrays, word_mass, bigram_mass)


@given(similarity=SCORES)
def test_without_shared_words_the_vectors_decide_alone(similarity):
    none = np.zeros_like(similarity)
    fused = fuse(candidates(similarity, none, none, 30.0, 40.0))
    assert np.array_equal(fused, similarity)


@given(similarity=SCORES, words=SCORES, bigrams=SCORES)
def test_a_question_without_terms_has_no_coverage(similarity, words, bigrams):
    assert not coverage(candidates(similarity, words, bigrams, 0.0, 0.0)).any()


@given(words=SCORES, bigrams=SCORES, heavy=st.floats(0.1, 100), light=st.floats(0.1, 100))
def test_coverage_is_a_share_and_grows_with_either_search(words, bigrams, heavy, light):
    more = candidates(np.zeros(7), words + 1, bigrams, heavy, light)
    share = coverage(candidates(np.zeros(7), words, bigrams, heavy, light))
    assert ((share >= 0) & (share <= 1)).all()
    assert (coverage(more) >= share).all()


def test_fusion_prefers_the_chunk_that_both_searches_like():
    fused = fuse(candidates([2, 2, 1], [0, 9, 9], [0, 9, 9], 10.0, 10.0))
    assert fused.argmax() == 1
    assert fused[2] > fused[0]


@given(chunks=st.integers(1, 10**6), df=st.lists(st.integers(0, 10**6), max_size=6))
def test_idf_is_positive_and_falls_with_frequency(chunks, df):
    weights = idf(sorted(df), chunks)
    assert (weights > 0).all()
    assert (np.diff(weights) <= 0).all()
    assert np.isclose(mass(df, chunks), weights.sum())


def test_question_words_are_no_content_words():
    assert content_words("大雄寶殿一般供奉著誰？").split() == ["大雄宝殿一般供奉著", "?"]
    assert content_words("What religion did the French spread?").split() == ["religion", "french", "spread?"]
    assert content_words("几何学是谁创立的？").startswith("几何学是")
    assert not content_words("什么").strip()


def test_a_question_names_a_row_if_the_row_and_its_header_have_all_its_words():
    header, rows = "| 部门 | 职务 | 伙食补助 一线城市 |", "| 销售部 | 经理 | 160 |\n| 研发部 | 专员 | 120 |"
    chunk = Chunk("d", "a.xlsx", "差旅标准", (), f"差旅标准\n{header}", 0, len(rows), rows, (0, len(rows)))
    assert names_row(analyze("销售部经理一线城市的伙食补助是多少？"), chunk)
    assert not names_row(analyze("销售部专员一线城市的伙食补助是多少？"), chunk)  # of two rows
    assert not names_row(analyze("销售部经理一线城市的住宿费是多少？"), chunk)  # of no column
