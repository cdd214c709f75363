"""Questions from passages: natural, alone intelligible, and answered to the letter."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from finetune.synth.build import parse_pair, write_pair
from finetune.synth.pair import QuestionAnswer, TitledPassage, is_self_contained, is_valid, normalize
from finetune.synth.rules import RULES, pairs_by_rule
from rag.question import script_of
from rag.types import Message, Sampling

LAWS = Path(__file__).parents[3] / "corpora" / "laws" / "docs"
RUST = Path(__file__).parents[3] / "corpora" / "rust-book" / "docs"
TABLE = "| 姓名 | 分机号 | 部门 |\n| --- | --- | --- |\n| 张三 | 8012 | 财务部 |\n| 李四 | 8013 | 法务部 |\n"


def section(text: str, subject: str = "", **more: object) -> TitledPassage:
    return TitledPassage(text, 100, subject, **more)  # type: ignore[arg-type]  (fields by name)


def asked(text: str, subject: str = "", **more: object) -> dict[str, str]:
    """Question -> answer."""
    return {pair.question: pair.answer for pair in pairs_by_rule(section(text, subject, **more))}


@pytest.mark.parametrize(
    ("text", "subject", "question", "answer"),
    [
        (
            "第十三条 固定期限劳动合同，是指约定合同终止时间的劳动合同。",
            "劳动合同法",
            "固定期限劳动合同是指什么？",
            "约定合同终止时间的劳动合同",
        ),
        (
            "第二条 本法所称电子商务，是指通过互联网销售商品或者提供服务的经营活动。",
            "电子商务法",
            "《电子商务法》所称的“电子商务”是指什么？",
            "通过互联网销售商品或者提供服务的经营活动",
        ),
        ("Cargo 是 Rust 的构建系统和包管理器。", "", "Cargo 是什么？", "Rust 的构建系统和包管理器"),
        (
            "第二条 企业、个体经济组织等组织（以下称用人单位）与劳动者建立劳动关系，适用本法。",
            "劳动合同法",
            "《劳动合同法》所说的“用人单位”指的是什么？",
            "企业、个体经济组织等组织",
        ),
        (
            "第一条 为了保障公民的合法权益，维护社会秩序，根据宪法，制定本法。",
            "居民身份证法",
            "制定《居民身份证法》的目的是什么？",
            "为了保障公民的合法权益，维护社会秩序",
        ),
        (
            "RAGFlow is an open source engine for retrieval.",
            "",
            "What is RAGFlow?",
            "an open source engine for retrieval",
        ),
        (
            "第十九条 劳动合同期限三个月以上不满一年的，试用期不得超过一个月。",
            "劳动合同法",
            "根据《劳动合同法》，劳动合同期限三个月以上不满一年的，试用期不得超过多长时间？",
            "一个月",
        ),
        ("居民身份证式样由国务院公安部门制定。", "", "居民身份证式样由谁制定？", "国务院公安部门"),
        ("海南岛的最高峰五指山海拔约一千八百米。", "", "海南岛的最高峰五指山海拔约多少米？", "一千八百米"),
        (
            "货物项目的价格分值占总分值的比重不得低于30%；执行统一价格标准的除外。",
            "",
            "货物项目的价格分值占总分值的比重不得低于百分之多少？",
            "30%",
        ),
        (
            "The Harbour Museum is a public collection of ships and maps.",
            "",
            "What is the Harbour Museum?",
            "a public collection of ships and maps",
        ),
        (
            "订立劳动合同，应当遵循合法、公平、平等自愿的原则。",
            "",
            "订立劳动合同应当遵循哪些原则？",
            "合法、公平、平等自愿",
        ),
        (
            "第九条 著作权人包括：\n\n（一）作者；\n\n（二）其他享有著作权的人。\n\n第十条 其他。",
            "",
            "著作权人包括哪些？",
            "（一）作者；\n\n（二）其他享有著作权的人。",
        ),
        (
            "有下列情形之一的，公民应当出示居民身份证：\n（一）兵役登记；\n（二）婚姻登记。\n",
            "",
            "有哪些情形时，公民应当出示居民身份证？",
            "（一）兵役登记；\n（二）婚姻登记。",
        ),
        (
            "Rust 有三个发布通道：\n\n- Nightly\n- Beta\n- Stable\n\n大部分开发者使用稳定版。\n",
            "",
            "Rust 有哪三个发布通道？",
            "- Nightly\n- Beta\n- Stable",
        ),
        (TABLE, "通讯录", "《通讯录》中，张三的分机号是多少？", "8012"),
        (TABLE, "", "李四的部门是什么？", "法务部"),
        (
            "| Name | City |\n| --- | --- |\n| Alice | New York |\n| Bob | Boston |\n",
            "",
            "What is the city of Bob?",
            "Boston",
        ),
    ],
)
def test_each_kind_of_question_with_its_answer(text: str, subject: str, question: str, answer: str) -> None:
    assert asked(text, subject).get(question) == answer


def test_table_rows_use_a_header_from_before_the_passage() -> None:
    row = "| 王五 | 8014 |\n"
    assert asked(row, header="| 姓名 | 分机号 |") == {"王五的分机号是多少？": "8014"}
    assert asked(row) == {}


def test_an_article_is_asked_for_by_number_if_nothing_else_asks_about_it() -> None:
    text = "第十条 建立劳动关系，应当订立书面劳动合同。\n第十一条 实行同工同酬。\n"
    assert asked(text, "劳动合同法") == {
        "《劳动合同法》第十条是怎么规定的？": "建立劳动关系，应当订立书面劳动合同。"
    }
    assert asked(text) == {}  # whose article 10?


@pytest.mark.parametrize(
    "text",
    [
        "其最高时速不得超过三十公里，违者处罚款五百元。",  # whose?
        "前款规定的期限不得超过三十日，自受理之日起计算。",
        "该办法由国务院公安部门制定并且向社会公布施行。",
        "它是一种用来管理内存的规则和方法。",
        "默认类型是一种速度很快的浮点数。",  # of what?
        "应当依照第四十七条、第八十七条的规定支付。",
        "劳动合同期限一年以上不满三年的，适用前面的规定。",  # a figure within a condition
        "公民应当自年满十六周岁之日起三个月内，向公安机关申请。",
        "It is the largest of the twelve islands in the bay.",
        "See figure 12 for the layout of the northern warehouse building.",
        "```\n线程是一个能够独立运行的程序。\n```",
        "详见[1]，五指山是海南岛最高的一座山。",
        "三冬自矜誠足用，十年不調幾邅回。",  # verse
        "Это очень простой текст, в котором 12 слов и больше ничего нет.",
        "東京は日本の首都であり、人口は約1400万人である。",
        "| a | b |\n| --- | --- |\n| 1 | 2 |\n",
        "人员包括下列：\n（一）作者；\n（二）编者；\n",  # the list goes on in the next passage
        "",
    ],
)
def test_texts_without_a_good_question_give_none(text: str) -> None:
    assert asked(text) == {}


TEXTS = sorted([*LAWS.glob("*.md"), *RUST.glob("*.md")])


def passages(text: str, size: int = 600) -> Iterator[TitledPassage]:
    """Cut anywhere, also within sentences, lists and tables."""
    for start in range(0, len(text), size):
        yield TitledPassage(text[start : start + size], start, "劳动合同法")


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_every_answer_is_in_its_span_and_every_question_stands_alone(path: Path) -> None:
    text = path.read_text("utf-8")
    for passage in passages(text):
        pairs = pairs_by_rule(passage)
        assert len({pair.question for pair in pairs}) == len(pairs)
        assert pairs == pairs_by_rule(passage)
        for pair in pairs:
            assert passage.start <= pair.start < pair.end <= passage.end
            assert pair.answer in text[pair.start : pair.end]
            assert normalize(pair.answer) not in normalize(pair.question)
            assert is_valid(pair)
            assert is_self_contained(pair.question)
            assert script_of(pair.question) == script_of(pair.reply)


def test_laws_give_questions_of_many_kinds() -> None:
    text = (LAWS / "劳动合同法.md").read_text("utf-8")
    kinds = [pair.kind for passage in passages(text) for pair in pairs_by_rule(passage)]
    assert len(kinds) > 60
    assert set(kinds) >= {"definition", "article", "list", "cloze"}


def test_only_the_chosen_kinds_are_made() -> None:
    text = "居民身份证式样由国务院公安部门制定。\n\n" + TABLE
    assert {pair.kind for pair in pairs_by_rule(section(text), ["table"])} == {"table"}
    assert {pair.kind for pair in pairs_by_rule(section(text), tuple(RULES))} == {"table", "cloze"}


def test_random_text_is_no_error() -> None:
    dice = random.Random(0)
    signs = "第十条是指包括：（一）；。\n| - 《》`本法由制定在三年 abcThe is 12.5%,\t\u3000"
    for _ in range(300):
        text = "".join(dice.choices(signs, k=400))
        for pair in pairs_by_rule(
            TitledPassage(text, 7, "法", places=((7, "一"), (90, "二 › 三")), header="| a |")
        ):
            assert pair.answer in text[pair.start - 7 : pair.end - 7]


@pytest.mark.parametrize("run", ["、由", "、包括", "遵循、", "三个月，", "`x` 命令，", "第十条 | a |"])
def test_long_repetitive_text_takes_little_time(run: str) -> None:
    """Patterns that can be read in many ways take time that doubles with each repetition."""
    assert isinstance(pairs_by_rule(TitledPassage(run * 500 + "。", 0, "某法")), list)


class Examiner:
    """Asks for the height of the mountain that a passage names, in the form asked for."""

    name = "examiner"
    context = 2000

    def __init__(self, reply: str) -> None:
        self.reply = reply
        self.asked: list[str] = []

    def count(self, messages: Sequence[Message]) -> int:
        return sum(len(message.text) for message in messages)

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        self.asked.append(messages[-1].text)
        yield from self.reply

    def stop(self) -> None:
        """A reply is under way for no time."""


MOUNTAIN = "五指山在海南岛中部。它的海拔是一千八百六十七米，是岛上最高的山。岛上四季常青。"


@pytest.mark.parametrize(
    "reply",
    [
        "问题：五指山的海拔有多高？\n答案：一千八百六十七米",
        "问：五指山的海拔有多高？\n\n答：“一千八百六十七米”。",
    ],
)
def test_a_model_writes_a_question_that_its_passage_answers(reply: str) -> None:
    examiner = Examiner(reply)
    pair = write_pair(section(MOUNTAIN, "海南"), examiner)
    assert pair
    assert (pair.question, pair.answer) == ("五指山的海拔有多高？", "一千八百六十七米")
    assert pair.reply == "它的海拔是一千八百六十七米，是岛上最高的山。"
    assert MOUNTAIN[pair.start - 100 : pair.end - 100] == pair.reply
    assert MOUNTAIN in examiner.asked[0]


@pytest.mark.parametrize(
    "reply",
    [
        "五指山的海拔有多高？一千八百六十七米",  # no form
        "问题：五指山的海拔有多高？\n答案：1867 米",  # not in its words
        "问题：它的海拔有多高？\n答案：一千八百六十七米",  # whose?
        "问题：五指山的海拔是一千八百六十七米吗？\n答案：一千八百六十七米",  # given away
        "问题：五指山的海拔有多高？\n答案：",
        "",
    ],
)
def test_invalid_questions_of_a_model_are_rejected(reply: str) -> None:
    assert write_pair(section(MOUNTAIN), Examiner(reply)) is None


def test_a_passage_larger_than_the_window_is_skipped() -> None:
    examiner = Examiner("问题：五指山的海拔有多高？\n答案：一千八百六十七米")
    assert write_pair(section(MOUNTAIN * 60), examiner) is None
    assert examiner.asked == []


def test_an_answer_is_found_without_the_marks_around_it() -> None:
    pair = parse_pair(section(MOUNTAIN), "五指山在哪里？", "“海南岛中部。”")
    assert isinstance(pair, QuestionAnswer)
    assert pair.answer == "海南岛中部。"
