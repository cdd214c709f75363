"""The forms in which an adapter may have been trained to see a question: messages -> messages.

`chat.py` then writes them with the tokens of the model's generation.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, TypeVar


class Turn(Protocol):
    """What one side said; a dataclass, so that it can be copied with another text."""

    @property
    def role(self) -> str: ...
    @property
    def text(self) -> str: ...


M = TypeVar("M", bound=Turn)


def chat(messages: Sequence[M]) -> list[M]:
    """The generation's own conversation: nothing is changed."""
    return list(messages)


def tutorial(messages: Sequence[M]) -> list[M]:
    """mymusise/ChatGLM-Tuning's one-turn form (cover_alpaca2jsonl.py), as the only message.

    The system message, where there is one, is the instruction and the last message its input; else
    the last message is the instruction. The form has no place for earlier turns.
    """
    last = messages[-1]
    system = next((message.text for message in messages if message.role == "system"), "")
    text = framed(system, last.text) if system else framed(last.text)
    return [replace(last, text=text)]  # type: ignore[type-var]  # see `Turn`


def framed(instruction: str, input: str = "") -> str:
    """The context of cover_alpaca2jsonl.py, byte for byte."""
    return f"Instruction: {instruction}\n" + (f"Input: {input}\n" if input else "") + "Answer: "


TEMPLATES = {"chat": chat, "tutorial": tutorial}
"""Template of a `Contract` -> what it does to the messages."""
