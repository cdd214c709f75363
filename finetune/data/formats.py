"""Training data in the forms that people have it -> `Example`s, or what is wrong with a row.

The fields of a row decide its form: alpaca's (instruction, input, output, history, system), the
tutorial's (context, target), Stanford's seed tasks (instruction, instances), conversations
(messages, conversations), or the columns that the caller names.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from finetune.data.reader import Record, records
from finetune.types import (
    Example,
    Finding,
    InvalidRow,
    is_blank,
    lacking,
    quoted,
    refused,
    said,
    text_of,
    wrong,
)
from ingest.errors import UserError
from ingest.i18n import Translatable, readable
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
TRIED = 20
"""Rows of a file, of which one must be of a known form."""
# As cover_alpaca2jsonl.py writes it; an input is written only if there is one.
_TUTORIAL = re.compile(r"Instruction: (.*?)(?:\nInput: (.+))?\nAnswer: ", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Columns:
    """The fields that hold question, answer and earlier turns; "": found by the data's form.

    With `prompt` named, that field alone is the question (as THUDM's --prompt_column).
    """

    prompt: str = ""
    response: str = ""
    history: str = ""


AS_FOUND = Columns()


def kind_of(row: Mapping[str, Any]) -> str:
    """The field that holds the conversation; "" if there is none."""
    for field in FIELDS:
        if field in row:
            return field
    return ""


def conversation(record: Record) -> Example:
    """All answers are learnt but those whose weight is 0. Raises `InvalidRow` if a message is out of
    turn, the last is not the assistant's, or nothing is learnt."""
    row = record.value
    field = kind_of(row)
    said_by = row[field]
    if not isinstance(said_by, list):
        raise wrong(
            Translatable('"{name}"', name=field), said_by, Translatable("a list of messages")
        )
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
        raise InvalidRow("empty", Translatable('"{field}" is empty; need messages', field=field))
    if messages[-1].role != "assistant":
        role = messages[-1].role
        raise InvalidRow(
            "type",
            Translatable("the last message is the {role}'s; need the assistant's", role=role),
        )
    if len(given) == sum(message.role == "assistant" for message in messages):
        raise InvalidRow(
            "missing",
            Translatable("every message of the assistant has weight 0; one must be learnt"),
        )
    return Example(
        tuple(messages), "", frozenset(given), record.source, whole=row.keys() >= GROUNDED
    )


def _message(value: Any, number: int) -> tuple[Message, bool]:
    """A message, and whether its weight lets it be learnt."""
    where = Translatable("message {number}", number=number)
    if not isinstance(value, dict):
        raise wrong(where, value, Translatable("an object"))
    by, words = ("from", "value") if "from" in value else ("role", "content")
    name = text_of(value, by)
    if name is None:
        raise lacking(by)
    role = ROLES.get(name.strip().lower())
    if role is None:
        known = ", ".join(ROLES)
        raise InvalidRow(
            "type",
            Translatable(
                "{where} has the role {role}; known: {known}",
                where=where,
                role=quoted(name),
                known=known,
            ),
        )
    text = _content(value, words)
    text = text or "" if role == "system" else said(text, words)
    return Message(role, text), role != "assistant" or _learnt(value, where)


def _content(value: Mapping[str, Any], words: str) -> str | None:
    """The text of a message, which may be a list of parts."""
    content = value.get(words)
    if not isinstance(content, list):
        return text_of(value, words)
    texts: list[str] = []
    for part in content:
        if not isinstance(part, dict):
            raise wrong(
                Translatable('a part of "{words}"', words=words), part, Translatable("an object")
            )
        if part.get("type", "text") != "text":
            raise InvalidRow(
                "type",
                Translatable(
                    'a part of "{words}" is of type {part}; need text',
                    words=words,
                    part=quoted(part["type"]),
                ),
            )
        name = "value" if "value" in part else "text"
        text = text_of(part, name)
        if text is None:
            raise lacking(name)
        texts.append(text)
    return "".join(texts)


def _learnt(value: Mapping[str, Any], where: Translatable) -> bool:
    for name in WEIGHTS:
        weight = value.get(name)
        if weight is None:
            continue
        if weight not in (0, 1):
            raise InvalidRow(
                "type",
                Translatable(
                    '"{name}" of {where} is {weight}; need 0 or 1',
                    name=name,
                    where=where,
                    weight=quoted(weight),
                ),
            )
        if not weight:
            return False
    return True


def _check_turn(role: Role, before: str, number: int) -> None:
    """Roles come as: system (or not), user, assistant, user, assistant."""
    due = "assistant" if before == "user" else "user"
    if role == due or (role == "system" and not before):
        return
    raise InvalidRow(
        "type",
        Translatable(
            "message {number} is the {role}'s, but it is the {due}'s turn",
            number=number,
            role=role,
            due=due,
        ),
    )


def read(paths: Sequence[Path], *, columns: Columns = AS_FOUND) -> Iterator[Example | Finding]:
    """Every row of the files in order: its examples (one, but for seed tasks), or a bad `Finding`.

    Rows are read one at a time, and none is held. Raises `UserError` for a file that is missing,
    without rows, or of no known form.
    """
    for path, name in zip(paths, _names(paths), strict=True):
        rows = records(path, name)
        head = list(islice(rows, TRIED))
        if not head:
            raise UserError("{name} has no rows", name=name)
        _check_form(name, head, columns)
        for item in chain(head, rows):
            if isinstance(item, Finding):
                yield item
                continue
            try:
                yield from _examples(item, columns)
            except InvalidRow as invalid:
                yield invalid.finding(item.source)


def examples(
    paths: Sequence[Path], *, columns: Columns = AS_FOUND, skip: str = ""
) -> Iterator[Example]:
    """The examples of the files; raises `UserError` at the first bad row. `skip` is the option of
    the command that leaves bad rows out, if it has one."""
    for item in read(paths, columns=columns):
        if isinstance(item, Example):
            yield item
        elif item.bad:
            raise refused(item, skip)


def _names(paths: Sequence[Path]) -> list[str]:
    """Files' names; of those that share one, the paths."""
    names = [readable(path.name) for path in paths]
    return [
        readable(str(path)) if names.count(name) > 1 else name
        for path, name in zip(paths, names, strict=True)
    ]


def _check_form(name: str, head: Sequence[Record | Finding], columns: Columns) -> None:
    rows = [item.value for item in head if isinstance(item, Record)]
    rows = [row for row in rows if isinstance(row, dict)]
    if not rows or any(_form_of(row, columns) for row in rows):
        return
    inner = next((field for field, value in rows[0].items() if isinstance(value, list)), None)
    if len(rows) == 1 and inner is not None:
        raise UserError(
            "{name} is one object, and its rows seem to be in {inner}; write that list alone "
            "into a file",
            name=name,
            inner=quoted(inner),
        )
    found = ", ".join(quoted(field) for field in list(rows[0])[:8]) or "{}"
    named = [column for column in (columns.prompt, columns.response) if column]
    wanted = " + ".join(named) or "instruction + output, context + target, messages, conversations"
    raise UserError(
        "{name} has the fields {found}; need {wanted} (rag finetune train and prepare can be "
        "told others: --prompt-column, --response-column)",
        name=name,
        found=found,
        wanted=wanted,
    )


def _form_of(
    row: Mapping[str, Any], columns: Columns
) -> "Callable[[Record, Columns], list[Example]] | None":
    if columns != AS_FOUND:
        named = {columns.prompt, columns.response} - {""} or {"instruction", "output"}
        return _columns if named & row.keys() else None
    if kind_of(row):
        return lambda record, _: [conversation(record)]
    if "target" in row or ("context" in row and "instruction" not in row):
        return _context_target
    if "instances" in row:
        return _seed
    return _columns if "instruction" in row or "output" in row else None


def _examples(record: Record, columns: Columns) -> list[Example]:
    row = record.value
    if not isinstance(row, dict):
        raise wrong(Translatable("row"), row, Translatable("an object"))
    form = _form_of(row, columns)
    if form is None:
        raise lacking(columns.prompt or "instruction")
    return form(record, columns)


def _columns(record: Record, columns: Columns) -> list[Example]:
    """Alpaca's form, under its own names or the caller's."""
    row: Mapping[str, Any] = record.value
    prompt, response = columns.prompt or "instruction", columns.response or "output"
    question = text_of(row, prompt)
    input = "" if columns.prompt else text_of(row, "input") or ""
    if is_blank(input):  # else the question may stand in the input alone
        question = said(question, prompt)
    answer = said(text_of(row, response), response)
    history = columns.history or "history"
    past = _history(row.get(history), history)
    return [_example(record, question or "", input, answer, past, text_of(row, "system") or "")]


def _example(
    record: Record, question: str, input: str, answer: str, past: list[Message], system: str
) -> Example:
    before = [] if is_blank(system) else [Message("system", system)]
    messages = (*before, *past, Message("user", question), Message("assistant", answer))
    given = [i for i, message in enumerate(messages[:-1]) if message.role == "assistant"]
    return Example(messages, input, frozenset(given), record.source)


def _history(value: Any, name: str) -> list[Message]:
    """Pairs of question and answer, which are context only."""
    if value is None or value == "":
        return []
    need = Translatable("a list of [question, answer]")
    if not isinstance(value, list):
        raise wrong(Translatable('"{name}"', name=name), value, need)
    past: list[Message] = []
    for number, pair in enumerate(value, 1):
        where = Translatable('"{name}", turn {number}', name=name, number=number)
        if not isinstance(pair, list) or len(pair) != 2:
            raise wrong(where, pair, Translatable("[question, answer]"))
        question, answer = ({name: side} for side in pair)
        past.append(Message("user", said(text_of(question, name), name)))
        past.append(Message("assistant", said(text_of(answer, name), name)))
    return past


def _context_target(record: Record, columns: Columns) -> list[Example]:
    """The tutorial's form: its frame is taken off; a context of any other form is the question."""
    context = said(text_of(record.value, "context"), "context")
    answer = said(text_of(record.value, "target"), "target")
    framed = _TUTORIAL.fullmatch(context)
    question, input = (framed[1], framed[2] or "") if framed else (context, "")
    if is_blank(question) and is_blank(input):
        question, input = context, ""
    return [_example(record, question, input, answer, [], "")]


def _seed(record: Record, columns: Columns) -> list[Example]:
    """Each instance with the row's instruction."""
    row: Mapping[str, Any] = record.value
    instances = row["instances"]
    if not isinstance(instances, list) or not instances:
        raise wrong(Translatable('"instances"'), instances, Translatable("a list of objects"))
    found: list[Example] = []
    for instance in instances:
        if not isinstance(instance, dict):
            raise wrong(Translatable('"instances"'), instance, Translatable("an object"))
        found += _columns(
            Record(record.source, {"instruction": row.get("instruction"), **instance}), columns
        )
    return found
