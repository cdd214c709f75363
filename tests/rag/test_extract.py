"""Extraction: spans are exact, the sentence that answers wins, odd texts do no harm."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.chunk import LONGEST_SENTENCE
from rag.extract import ScoredPassage, Sentence, choose, rank
from rag.question import analyze
from rag.units import LONGEST_GROUP
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


def test_a_date_is_answered_by_its_sentence():
    assert ranked("星河公司是哪一年成立的？", COMPANY)[0].shown == "公司成立于1998年，当时只有七名员工。"


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=3), question=TEXT)
def test_spans_are_exact_and_lie_within_their_text(texts, question):
    sources = [ScoredPassage(text, "甲公司", 0.0) for text in texts]
    found = ranked(question, *sources)
    assert not found or any(re.search(r"\w", text) for text in texts)
    for sentence in found:
        text = quote(sources, sentence)
        assert text == text.strip() != ""
        assert len(text) <= LONGEST_GROUP + LONGEST_SENTENCE
        assert sentence.shown
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
    near, far = Sentence(0, 3, 6, 8.0, "乙"), Sentence(0, 6, 9, 4.0, "丙")
    best = Sentence(0, 0, 3, 9.0, "甲")
    assert choose([best, near, far], most=3, within=3.0) == [best, near]
    assert choose([best, near, far], most=1) == [best]


def test_the_same_text_is_not_shown_twice():
    best = Sentence(0, 0, 9, 9.0, "共 5 天。")
    assert choose([best, Sentence(1, 0, 9, 8.5, "共5天"), Sentence(0, 3, 6, 8.0, "天")]) == [best]


TABLE = ScoredPassage(
    "产品清单\n\n| 产品 | 颜色 | 重量(kg) | 产地 |\n| --- | --- | --- | --- |\n"
    "| 云雀台灯 | 白色 | 3 | 宁波 |\n| 晨星台灯 | 黑色 | 4 | 中山 |\n| 北斗台灯 | 银色 | 6 | 佛山 |",
    topic="清单",
    score=5.0,
)


def shown(question, *sources):
    return ranked(question, *sources)[0].shown


def test_a_cell_is_shown_with_its_label_and_column():
    assert shown("北斗台灯的重量是多少？", TABLE) == "产品：北斗台灯；重量(kg)：6"
    assert shown("晨星台灯的产地在哪里？", TABLE) == "产品：晨星台灯；产地：中山"


def test_a_column_that_is_not_there_gives_the_labelled_row():
    assert shown("云雀台灯的价格是多少？", TABLE) == "产品：云雀台灯；颜色：白色；重量(kg)：3；产地：宁波"


def test_a_record_of_a_header_that_repeats_is_a_row():
    text = "| 序号 | 名称 | 序号 | 名称 |\n| --- | --- | --- | --- |\n| 1 | 上肉 | 30 | 猪踭 |"
    answer = shown("序号30是什么？", ScoredPassage(text, "", 0.0))
    assert answer == "序号：30；名称：猪踭"


@pytest.mark.parametrize(
    "text",
    [
        "Q：年假可以结转吗？ A：最多结转五天，逾期作废。\nQ：工牌丢了怎么办？ A：到前台补办。",
        "问：年假可以结转吗？\n答：最多结转五天，逾期作废。\n\n问：工牌丢了怎么办？\n答：到前台补办。",
        "## 年假可以结转吗？\n\n最多结转五天，逾期作废。\n\n## 工牌丢了怎么办？\n\n到前台补办。",
    ],
)
def test_the_answer_of_a_faq_is_shown_without_its_question(text):
    passage = ScoredPassage(text, "常见问题", 0.0)
    assert shown("年假可以结转吗？", passage) == "最多结转五天，逾期作废。"
    assert shown("工牌丢了怎么办？", passage) == "到前台补办。"


def test_a_faq_in_a_table_shows_the_answer_cell():
    text = "| 问题 | 答案 |\n| --- | --- |\n| 年假可以结转吗？ | 最多五天 |\n| 工牌丢了？ | 补办 |"
    assert shown("年假可以结转吗？", ScoredPassage(text, "", 0.0)) == "答案：最多五天"


def test_a_lead_in_brings_its_list():
    text = (
        "发生泄漏时，应当立即采取以下措施：\n\n1. 疏散人员；\n2. 佩戴面具；\n3. 围堵泄漏物。\n\n"
        "本手册自发布之日起施行。"
    )
    answer = shown("泄漏时应采取哪些措施？", ScoredPassage(text, "安全手册", 0.0))
    assert all(item in answer for item in ("疏散人员", "佩戴面具", "围堵泄漏物"))


def test_headings_questions_and_labels_are_no_answers():
    text = "什么是所有权？\n\n所有权人\n\n所有权是对物占有、使用、收益和处分的权利。\n\n主要内容："
    passage = ScoredPassage(text, "物权", 0.0, headings=frozenset({"所有权人"}))
    answers = [sentence.shown for sentence in ranked("什么是所有权？", passage)]
    assert answers == ["所有权是对物占有、使用、收益和处分的权利。"]
