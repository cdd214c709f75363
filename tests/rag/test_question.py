"""Follow-up questions."""

import pytest

from rag.question import codes, is_follow_up, small_talk, stand_alone, strays
from rag.types import Message

HISTORY = [Message("user", "劳动合同的试用期最长多久？"), Message("assistant", "六个月 [1]")]


@pytest.mark.parametrize(
    "question",
    [
        "它可以延长吗？",
        "为什么？",
        "多久？",
        "How long?",
        "這是誰規定的？",
        "然后呢？",
        "举个例子",
        "那它呢？",
    ],
)
def test_a_follow_up_gets_the_subject(question: str) -> None:
    assert stand_alone(question, HISTORY) == f"劳动合同的试用期最长多久？ {question}"


@pytest.mark.parametrize(
    ("question", "alone"),
    [("取暖费谁付？", True), ("电费呢？", True), ("为什么？", False), ("它能退吗？", False)],
)
def test_a_long_story_is_the_subject_only_of_a_question_without_words_of_its_own(
    question: str, alone: bool
) -> None:
    story = "我因为工作调动的原因需要在租期没有到期之前搬走，" * 4
    stands = stand_alone(question, [Message("user", story), Message("assistant", "三十日 [1]")])
    assert (stands == question) is alone


@pytest.mark.parametrize(
    ("before", "question", "stands"),
    [
        (["甲型的额定电压是多少？"], "乙型呢？", "乙型的额定电压是多少？"),
        (["甲型的额定电压是多少？"], "那乙型呢", "乙型的额定电压是多少？"),
        (["甲型的額定電壓是多少？"], "那麼，乙型呢？", "乙型的額定電壓是多少？"),
        (["甲型的额定电压是多少？", "乙型呢？"], "丙型呢？", "丙型的额定电压是多少？"),
        (["甲型的额定电压是多少？", "乙型呢？", "谢谢"], "为什么？", "乙型的额定电压是多少？ 为什么？"),
        (["年假有几天？"], "病假呢？", "病假有几天？"),
        (["张三的分机号是多少？"], "李四呢？", "李四的分机号是多少？"),
        (["解除合同要提前多少天通知？"], "试用期内呢？", "试用期内要提前多少天通知？"),
        (["2023年的预算是多少？"], "2024年呢？", "2024年的预算是多少？"),
        (["第12条规定了什么？"], "那第13条呢？", "第13条规定了什么？"),
        (["劳动法第十二条之一规定了什么？"], "第13条", "劳动法第13条规定了什么？"),
        (["第十二条"], "第12條之一", "第12條之一"),
        (["甲型的额定电压是多少？"], "第13条", "第13条"),
        (["What is the voltage of type A?"], "What about type B?", "What is the voltage of type B?"),
        (["What is the warranty of the X100?"], "And the X200?", "What is the warranty of the X200?"),
        (["How long is the notice period?"], "what about probation?", "How long is probation?"),
    ],
)
def test_a_new_subject_replaces_the_old_one(before: list[str], question: str, stands: str) -> None:
    assert stand_alone(question, [Message("user", each) for each in before]) == stands


TALK = {
    "thanks": ["谢谢", "多谢！", "好的，谢谢", "非常感谢您的帮助。", "辛苦了", "thanks a lot", "Thank you!", "ok, thx"],
    "greeting": ["你好", "您好！", "在吗？", "你是谁？", "hi", "Hello there", "good morning", "How are you?"],
    "farewell": ["再见", "exit", "quit", "退出", "bye", "/exit"],
    "remark": ["ok", "?", "？？", "……", "👍", "嗯嗯", "好的", "明白了", "1+1=?", "2×(3+4)等于几？", "一加一等于几", "got it"],
    "contents": ["what is in here?", "What's in here?", "/help", "这里有什么？", "里面都有哪些文档", "你能回答什么问题？",
                 "列出所有文档", "What can I ask?", "list the documents", "Which documents do you have?"],
    None: ["讲个笑话", "今天天气怎么样？", "2024?", "好的评价标准是什么？", "你好，试用期多久？", "谢谢的英文是什么？", "在哪里？",
           "Can I end it?", "What is in article 12?", "第12-15条", "help desk hours?", "停止供电要提前几天通知？"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in TALK.items() for text in texts])
def test_small_talk_asks_nothing(kind: str | None, text: str) -> None:
    assert small_talk(text) == kind


@pytest.mark.parametrize(
    ("question", "passage", "astray"),
    [
        ("讲个笑话", "试用期不得超过六个月。", True),
        ("天气呢？", "试用期不得超过六个月。", True),
        ("试用期呢？", "試用期不得超過六個月。", False),
        ("罚多少？", "处二百元罚款。", False),
        ("为什么？", "试用期不得超过六个月。", False),
        ("它呢？", "试用期不得超过六个月。", False),
        ("Jokes?", "Cargo builds Rust.", True),
    ],
)
def test_a_short_message_is_judged_by_its_own_words(question: str, passage: str, astray: bool) -> None:
    assert strays(question, [passage]) is astray


def test_articles_are_exact_and_numerals_are_equal() -> None:
    assert codes("第13条") == codes("第十三条") == codes("第 13 條") == {"13.0"}
    assert len(codes("第12条 第十二条之一 第一百一十二条 第十三条")) == 4
    assert codes("第12条之1") == codes("第十二条之一") != codes("第十二条")
    assert codes("第二百零三条") == codes("第203条")


@pytest.mark.parametrize(
    "question",
    [
        "消费者在多少天内可以退货？",
        "Who decides on personal information protection?",
        "其他国家的劳动法怎么规定？",
        "劳动者应该做什么准备？",
        "合同应该由谁保管？",
        "什么是物权？",
        "What penalty applies to drivers that drink alcohol?",
        "Is there a minimum wage in China?",
    ],
)
def test_a_question_that_stands_alone_is_left_alone(question: str) -> None:
    assert stand_alone(question, HISTORY) == question


def test_the_first_question_is_left_alone() -> None:
    assert stand_alone("那工资呢？", []) == "那工资呢？"


def test_the_subject_survives_a_chain_of_follow_ups() -> None:
    history = [*HISTORY, Message("user", "它可以延长吗？"), Message("assistant", "不可以 [1]")]
    assert stand_alone("为什么？", history).startswith("劳动合同的试用期最长多久？")
    assert is_follow_up("那工资呢？")
