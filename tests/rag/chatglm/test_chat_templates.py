"""The prompts that adapters were trained on."""

from rag.chatglm.chat import TEMPLATES
from rag.types import Message


def test_the_chat_template_keeps_the_messages() -> None:
    messages = [Message("system", "s"), Message("user", "q")]
    assert TEMPLATES["chat"](messages) == messages


def test_the_tutorials_template_is_equal_byte_for_byte() -> None:
    """As `format_example` of mymusise/ChatGLM-Tuning's cover_alpaca2jsonl.py writes it."""
    chat = [Message("user", "早"), Message("assistant", "早"), Message("user", "你好吗？")]
    [message] = TEMPLATES["tutorial"](chat)
    assert message == Message("user", "Instruction: 你好吗？\nAnswer: ")
    [message] = TEMPLATES["tutorial"]([Message("system", "翻译"), *chat])
    assert message.text == "Instruction: 翻译\nInput: 你好吗？\nAnswer: "
