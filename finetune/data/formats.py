"""Training data in the forms that people have it -> `Example`s, or what is wrong with a row.

The fields of a row decide its form: alpaca's (instruction, input, output, history, system), the
tutorial's (context, target), Stanford's seed tasks (instruction, instances), preference pairs (instruction, chosen, rejected), conversations (messages, conversations), or the columns that the caller
names.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from finetune.data.reader import Record, records
from finetune.options import Columns
from finetune.types import (
    Example,
    Finding,
    InvalidRow,
    is_blank,
    missing_field,
    require_text,
    row_error,
    short_repr,
    text_of,
    wrong_type,
)
from ingest.errors import UserError
from ingest.i18n import Translatable
from ingest.normalize import readable
from rag.types import Message

Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant",
    "assistant": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant",
    "model": "assistant",
}  # fmt: skip
TOOLS = ("tools", "functions", "tool_calls", "function_call")
WEIGHTS = ("loss_weight", "weight", "loss")
"""Fields of a message that say whether it is learnt: 1 or true, 0 or false."""
GROUNDED = {"gold", "document", "start", "end", "reply"}
"""Fields of the rows that `rag finetune grounded` writes, whose passages must not be cut."""
HEAD_ROWS = 20
"""One of so many first rows of a file must be of a known form."""
# As cover_alpaca2jsonl.py writes it; an input is written only if there is one.
_TUTORIAL = re.compile(r"Instruction: (.*?)(?:\nInput: (.+))?\nAnswer: ", re.DOTALL)
_OBJECT = Translatable("an object")


AS_FOUND = Columns()


def conversation(record: Record, columns: Columns = AS_FOUND) -> Example:
    """All answers are learnt except those whose weight is 0. Raises `InvalidRow` if a message is out
    of turn, the last is not the assistant's, or nothing is learnt."""
    row = record.value
    _check_tools(row)
    field = "messages" if "messages" in row else "conversations"
    values = row[field]
    if not isinstance(values, list):
        raise wrong_type(f'"{field}"', values, Translatable("a list of messages"))
    messages: list[Message] = []
    context_only: list[int] = []
    system = text_of(row, "system") or ""
    if not is_blank(system):
        messages.append(Message("system", system))
    for number, value in enumerate(values, 1):
        message, learnt = _message(value, number)
        if message.role == "system" and not messages and is_blank(message.text):
            continue
        _check_turn(message.role, messages[-1].role if messages else "", number)
        if message.role == "assistant" and not learnt:
            context_only.append(len(messages))
        messages.append(message)
    if not messages:
        raise InvalidRow('"{field}" is empty; need messages', "empty", field=field)
    if (role := messages[-1].role) != "assistant":
        raise InvalidRow("the last message is the {role}'s; need the assistant's", role=role)
    if len(context_only) == sum(message.role == "assistant" for message in messages):
        raise InvalidRow(
            "every message of the assistant has weight 0; at least one must count in the loss", "missing"
        )
    whole = row.keys() >= GROUNDED
    return Example(tuple(messages), "", frozenset(context_only), record.source, whole=whole)


def _message(value: Any, number: int) -> tuple[Message, bool]:
    """A message, and whether its weight lets it be learnt."""
    where = Translatable("message {number}", number=number)
    if not isinstance(value, dict):
        raise wrong_type(where, value, _OBJECT)
    _check_tools(value)
    by, content = ("from", "value") if "from" in value else ("role", "content")
    name = text_of(value, by)
    if name is None:
        raise missing_field(by)
    role = ROLES.get(name.strip().lower())
    if role is None:
        raise InvalidRow(
            "{where} has the role {role}; known: {known}",
            where=where, role=short_repr(name), known=", ".join(ROLES),
        )  # fmt: skip
    if isinstance(parts := value.get(content), list):
        value = {**value, content: "".join(_part_text(part, content) for part in parts)}
    if role == "system":
        return Message(role, text_of(value, content) or ""), True
    return Message(role, require_text(value, content)), role == "user" or _is_learnt(value, where)


def _check_tools(value: Mapping[str, Any]) -> None:
    for name in TOOLS:
        if value.get(name):
            raise InvalidRow(
                '"{name}" holds tools or calls of them, which are not learnt; take it out of the row',
                name=name,
            )


def _part_text(part: Any, words: str) -> str:
    """The text of a part, if a message is a list of parts."""
    if not isinstance(part, dict):
        raise wrong_type(Translatable('a part of "{words}"', words=words), part, _OBJECT)
    if (kind := part.get("type", "text")) != "text":
        raise InvalidRow(
            'a part of "{words}" is of type {part}; need text', words=words, part=short_repr(kind)
        )
    name = "value" if "value" in part else "text"
    text = text_of(part, name)
    if text is None:
        raise missing_field(name)
    return text


def _is_learnt(value: Mapping[str, Any], where: Translatable) -> bool:
    for name in WEIGHTS:
        if (weight := value.get(name)) is None:
            continue
        if weight not in (0, 1):
            raise InvalidRow(
                '"{name}" of {where} is {weight}; need 0 or 1',
                name=name, where=where, weight=short_repr(weight),
            )  # fmt: skip
        if not weight:
            return False
    return True


def _check_turn(role: Role, before: str, number: int) -> None:
    """Roles come as: system (or not), user, assistant, user, assistant."""
    due = "assistant" if before == "user" else "user"
    if role != due and (role != "system" or before):
        text = Translatable(
            "message {number} is the {role}'s, but it is the {due}'s turn", number=number, role=role, due=due
        )
        raise InvalidRow(text)


def read(paths: Sequence[Path], *, columns: Columns = AS_FOUND) -> Iterator[Example | Finding]:
    """Every row of the files in order: an example, or a bad `Finding`.

    Rows are read one at a time, and none is held. Raises `UserError` for a file that is missing,
    without rows, or of no known form.
    """
    names = [readable(path.name) for path in paths]
    for path, name in zip(paths, names, strict=True):
        if names.count(name) > 1:
            name = readable(str(path))
        rows = records(path, name)
        head = list(islice(rows, HEAD_ROWS))
        if not head:
            raise UserError("{name} has no rows", name=name)
        _check_form(name, head, columns)
        for item in chain(head, rows):
            if isinstance(item, Finding):
                yield item
                continue
            try:
                if not isinstance(item.value, dict):
                    raise wrong_type(Translatable("row"), item.value, _OBJECT)
                form = _form_of(item.value, columns)
                if form is None:
                    raise missing_field(columns.prompt or "instruction")
                yield form(item, columns)
            except InvalidRow as invalid:
                yield invalid.finding(item.source)


def examples(paths: Sequence[Path], *, columns: Columns = AS_FOUND) -> Iterator[Example]:
    """The examples of the files; raises `UserError` at the first bad row."""
    for item in read(paths, columns=columns):
        if isinstance(item, Finding):
            raise row_error(item)
        yield item


def _check_form(name: str, head: Sequence[Record | Finding], columns: Columns) -> None:
    rows = [item.value for item in head if isinstance(item, Record)]
    rows = [row for row in rows if isinstance(row, dict)]
    if not rows or any(_form_of(row, columns) for row in rows):
        return
    inner = next((field for field, value in rows[0].items() if isinstance(value, list)), None)
    if len(rows) == 1 and inner is not None:
        raise UserError(
            "{name} is one object, and its rows seem to be in {inner}; write that list alone into a file",
            name=name,
            inner=short_repr(inner),
        )
    named = [column for column in (columns.prompt, columns.response) if column]
    wanted = (
        " + ".join(named)
        or "instruction + output, context + target, instruction + chosen + rejected, messages, conversations"
    )
    raise UserError(
        "{name} has the fields {found}; need {wanted} (name other fields with --prompt-column and "
        "--response-column of rag finetune train and prepare)",
        name=name, found=", ".join(short_repr(field) for field in list(rows[0])[:8]) or "{}", wanted=wanted,
    )  # fmt: skip


Form = Callable[[Record, Columns], Example]


def _form_of(row: Mapping[str, Any], columns: Columns) -> Form | None:
    if columns != AS_FOUND:
        named = {columns.prompt, columns.response} - {""} or {"instruction", "output"}
        return _columns if named & row.keys() else None
    if "messages" in row or "conversations" in row:
        return conversation
    if "target" in row or ("context" in row and "instruction" not in row):
        return _context_target
    if "instances" in row:
        return _seed_task
    if "chosen" in row or "rejected" in row:
        return _preference
    return _columns if "instruction" in row or "output" in row else None


def _columns(record: Record, columns: Columns) -> Example:
    """Alpaca's form, under its own names or the caller's."""
    row: Mapping[str, Any] = record.value
    prompt, history = columns.prompt or "instruction", columns.history or "history"
    question = text_of(row, prompt)
    input = "" if columns.prompt else text_of(row, "input") or ""
    if is_blank(input):  # otherwise the whole question may be in the input
        question = require_text(row, prompt)
    answer = require_text(row, columns.response or "output")
    past = _history(row.get(history), history)
    return _example(record, question or "", input, answer, past, text_of(row, "system") or "")


def _seed_task(record: Record, columns: Columns) -> Example:
    """Stanford's form: alpaca's fields, but for the instruction, are those of its one instance."""
    instances = record.value["instances"]
    if not isinstance(instances, list) or len(instances) != 1 or not isinstance(instances[0], dict):
        raise wrong_type('"instances"', instances, Translatable("a list of one object"))
    return _columns(Record(record.source, {**record.value, **instances[0]}), columns)


def _preference(record: Record, columns: Columns) -> Example:
    """LLaMA-Factory's form of a pair for an alpaca question. Neither answer may be cut: both must follow
    the same prompt."""
    example = _columns(record, Columns(response="chosen"))
    rejected = require_text(record.value, "rejected")
    if rejected.strip() == example.answer.strip():
        raise InvalidRow('"chosen" and "rejected" are the same text; a pair needs two answers', "conflict")
    return replace(example, rejected=rejected, whole=True)


def _example(
    record: Record, question: str, input: str, answer: str, past: list[Message], system: str
) -> Example:
    before = [] if is_blank(system) else [Message("system", system)]
    messages = (*before, *past, Message("user", question), Message("assistant", answer))
    context_only = [i for i, message in enumerate(messages[:-1]) if message.role == "assistant"]
    return Example(messages, input, frozenset(context_only), record.source)


def _history(value: Any, name: str) -> list[Message]:
    """Pairs of question and answer, which are context only."""
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise wrong_type(f'"{name}"', value, Translatable("a list of [question, answer]"))
    past: list[Message] = []
    for number, pair in enumerate(value, 1):
        if not isinstance(pair, list) or len(pair) != 2:
            where = Translatable('"{name}", turn {number}', name=name, number=number)
            raise wrong_type(where, pair, Translatable("[question, answer]"))
        for role, part, text in zip(("user", "assistant"), ("question", "answer"), pair, strict=True):
            field = f"{name}[{number}].{part}"
            past.append(Message(role, require_text({field: text}, field)))
    return past


def _context_target(record: Record, columns: Columns) -> Example:
    """The tutorial's form: its frame is taken off; a context of any other form is the question."""
    context = require_text(record.value, "context")
    answer = require_text(record.value, "target")
    frame = _TUTORIAL.fullmatch(context)
    question, input = (frame[1], frame[2] or "") if frame else (context, "")
    if is_blank(question) and is_blank(input):
        question, input = context, ""
    return _example(record, question, input, answer, [], "")
