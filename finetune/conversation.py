"""Conversations as rows: ShareGPT's (from, value), and messages (role, content)."""

from collections.abc import Mapping
from typing import Any, Literal

from finetune.data.reader import Record
from finetune.types import Example
from finetune.unfit import Unfit, is_blank, lacking, quoted, said, text_of, wrong
from rag.types import Message

FIELDS = ("messages", "conversations")
Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
}
WEIGHTS = ("loss_weight", "weight", "loss")
"""Fields of a message that say whether it is learnt: 1 or true, 0 or false."""


GROUNDED = {"gold", "document", "start", "end", "reply"}
"""Fields of the rows that `rag finetune grounded` writes, whose passages must not be cut."""


def kind_of(row: Mapping[str, Any]) -> str:
    """The field that holds the conversation; "" where there is none."""
    for field in FIELDS:
        if field in row:
            return field
    return ""


def conversation(record: Record) -> Example:
    """All answers are learnt but those whose weight is 0. `Unfit` where a message is out of turn,
    the last is not the assistant's, or nothing is learnt."""
    row = record.value
    field = kind_of(row)
    said_by = row[field]
    if not isinstance(said_by, list):
        raise wrong(f'"{field}"', f'"{field}"', said_by, "a list of messages", "消息的列表")
    messages: list[Message] = []
    given: list[int] = []
    system = text_of(row, "system") or ""
    if not is_blank(system):
        messages.append(Message("system", system))
    for number, value in enumerate(said_by, 1):
        message, learnt = _message(value, number)
        if message.role == "system" and not messages and is_blank(message.text):
            continue
        _check_turn(message.role, messages[-1].role if messages else "", number)
        if message.role == "assistant" and not learnt:
            given.append(len(messages))
        messages.append(message)
    if not messages:
        raise Unfit("empty", f'"{field}" is empty; need messages', f'"{field}" 为空；需要消息')
    if messages[-1].role != "assistant":
        role = messages[-1].role
        raise Unfit(
            "type",
            f"the last message is the {role}'s; need the assistant's",
            f"最后一条消息的角色为 {role}；须为 assistant",
        )
    if len(given) == sum(message.role == "assistant" for message in messages):
        raise Unfit(
            "missing",
            "every message of the assistant has weight 0; one must be learnt",
            "assistant 的消息权重均为 0；至少须学习一条",
        )
    return Example(
        tuple(messages), "", frozenset(given), record.source, whole=row.keys() >= GROUNDED
    )


def _message(value: Any, number: int) -> tuple[Message, bool]:
    """A message, and whether its weight lets it be learnt."""
    where, where_zh = f"message {number}", f"第 {number} 条消息"
    if not isinstance(value, dict):
        raise wrong(where, where_zh, value, "an object", "对象")
    by, words = ("from", "value") if "from" in value else ("role", "content")
    name = text_of(value, by)
    if name is None:
        raise lacking(by)
    role = ROLES.get(name.strip().lower())
    if role is None:
        known = ", ".join(ROLES)
        raise Unfit(
            "type",
            f"{where} has the role {quoted(name)}; known: {known}",
            f"{where_zh}的角色为 {quoted(name)}；支持：{known}",
        )
    text = _content(value, words)
    text = text or "" if role == "system" else said(text, words)
    return Message(role, text), role != "assistant" or _learnt(value, where, where_zh)


def _content(value: Mapping[str, Any], words: str) -> str | None:
    """The text of a message, also where it is a list of parts."""
    content = value.get(words)
    if not isinstance(content, list):
        return text_of(value, words)
    texts: list[str] = []
    for part in content:
        if not isinstance(part, dict):
            raise wrong(f'a part of "{words}"', f'"{words}" 的一部分', part, "an object", "对象")
        if part.get("type", "text") != "text":
            raise Unfit(
                "type",
                f'a part of "{words}" is of type {quoted(part["type"])}; need text',
                f'"{words}" 有一部分的类型为 {quoted(part["type"])}；须为 text',
            )
        name = "value" if "value" in part else "text"
        text = text_of(part, name)
        if text is None:
            raise lacking(name)
        texts.append(text)
    return "".join(texts)


def _learnt(value: Mapping[str, Any], where: str, where_zh: str) -> bool:
    for name in WEIGHTS:
        weight = value.get(name)
        if weight is None:
            continue
        if weight not in (0, 1):
            raise Unfit(
                "type",
                f'"{name}" of {where} is {quoted(weight)}; need 0 or 1',
                f'{where_zh}的 "{name}" 为 {quoted(weight)}；须为 0 或 1',
            )
        if not weight:
            return False
    return True


def _check_turn(role: Role, before: str, number: int) -> None:
    """Roles come as: system (or not), user, assistant, user, assistant."""
    due = "assistant" if before == "user" else "user"
    if role == due or (role == "system" and not before):
        return
    raise Unfit(
        "type",
        f"message {number} is the {role}'s, but it is the {due}'s turn",
        f"第 {number} 条消息的角色为 {role}，此处应为 {due}",
    )
