"""Extraction: spans are exact, the sentence that answers wins, odd texts do no harm."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.chunk import LONGEST_SENTENCE
from ingest.normalize import normalize
from rag.extract import ScoredPassage, Sentence, choose, rank
from rag.question import analyze, mentions
from tests.fakes import HashEmbedder

TEXT = st.text(st.sampled_from("甲乙丙丁公司年成立。，！？；\n 0123456789abc.|“”"), max_size=400)

COMPANY = ScoredPassage(
    "星河公司是一家软件公司，总部设在杭州。星河公司由李明创办。公司成立于1998年，当时只有七名员工。"
    "它的第一件产品是《星河笔记》。",
    topic="星河公司",
    score=9.0,
)
BRIDGE = ScoredPassage("这座桥长1200米。它在1975年建成。", topic="长虹桥", score=7.0)


def ranked(question, *sources):
    embedder = HashEmbedder()
    vector = embedder.embed_query(question)
    return rank(
        analyze(question),
        sources,
        embedder=embedder,
        similarity=lambda vectors: 10 * (vectors @ vector),
        idf=lambda terms, field: [1.0] * len(terms),
    )


def quote(sources, sentence):
    return sources[sentence.passage].text[sentence.start : sentence.end]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("星河公司是哪一年成立的？", "1998年"),
        ("星河公司由谁创办？", "李明"),
        ("星河公司的总部设在哪里？", "杭州"),
        ("星河公司的第一件产品叫什么？", "《星河笔记》"),
        ("星河公司成立时有多少名员工？", "七名"),
    ],
)
def test_the_sentence_beyond_the_topic_wins(question, answer):
    best = ranked(question, COMPANY, BRIDGE)[0]
    assert answer in quote([COMPANY, BRIDGE], best)


def test_a_date_is_answered_by_its_clause():
    best = ranked("星河公司是哪一年成立的？", COMPANY)[0]
    assert best.focus is not None
    assert COMPANY.text[slice(*best.focus)] == "公司成立于1998年"


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=3), question=TEXT)
def test_spans_are_exact_and_lie_within_their_text(texts, question):
    sources = [ScoredPassage(text, "甲公司", 0.0) for text in texts]
    found = ranked(question, *sources)
    assert bool(found) == any(re.search(r"\w", text) for text in texts)
    for sentence in found:
        text = quote(sources, sentence)
        assert text == text.strip() != ""
        assert len(text) <= LONGEST_SENTENCE
        if sentence.focus:
            assert sentence.start <= sentence.focus[0] < sentence.focus[1] <= sentence.end
    scores = [sentence.score for sentence in found]
    assert scores == sorted(scores, reverse=True)
    assert np.isfinite(scores).all()


def test_a_text_without_stops_is_cut_to_length():
    found = ranked("甲是什么？", ScoredPassage("甲乙丙丁" * 500, "", 0.0))
    assert found
    assert all(sentence.end - sentence.start <= LONGEST_SENTENCE for sentence in found)


def test_nothing_to_extract_from():
    assert ranked("甲是什么？") == []
    assert ranked("甲是什么？", ScoredPassage(" \n", "", 0.0)) == []
    assert choose([]) == []


def test_a_second_sentence_only_where_it_is_nearly_as_good():
    near, far = Sentence(0, 3, 6, 8.0), Sentence(0, 6, 9, 4.0)
    best = Sentence(0, 0, 3, 9.0)
    assert choose([best, near, far], most=3, within=3.0) == [best, near]
    assert choose([best, near, far], most=1) == [best]


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("公司是哪年成立的？", "date"),
        ("湯瑪斯什麼時候去世？", "date"),
        ("In which year did it open?", "date"),
        ("第几届比赛？", "number"),
        ("How many people live there?", "number"),
        ("誰寫了這本書？", "person"),
        ("Who wrote it?", "person"),
        ("首都在哪里？", "place"),
        ("为什么停产？", "reason"),
        ("这部小说叫什么？", "title"),
    ],
)
def test_kinds_asked_for(question, kind):
    assert kind in analyze(question).answer_types


def test_a_name_that_the_question_holds_is_no_answer():
    assert mentions("date", normalize("公司1998年成立"), normalize("哪年成立？"))
    assert not mentions("date", normalize("1998年的公司"), normalize("1998年发生了什么？"))
