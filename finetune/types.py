"""The nouns of training: a conversation to learn from, its tokens, and what is wrong with data."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.types import Message

Ids = NDArray[np.int32]
IGNORED = -100
"""The label of a token that is not learnt (torch's `ignore_index`)."""


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation of which the assistant's messages are learnt.

    `messages` are a system message (or none), then user and assistant in turn; the last is the
    assistant's. `given` holds the indices of assistant messages that are context only.
    """

    messages: tuple[Message, ...]
    input: str = ""
    """Alpaca's `input`, which belongs to the last question."""
    given: frozenset[int] = frozenset()
    source: str = ""
    """`file.json:17`, the row as a person counts it, from 1."""
    whole: bool = False
    """Nothing of it may be cut off: its question holds the passages that its answer cites."""

    @property
    def question(self) -> str:
        return self.messages[-2].text

    @property
    def answer(self) -> str:
        return self.messages[-1].text

    def unplaced(self, template: str) -> int:
        """How many of the messages a template has no place for."""
        return len(self.messages) - 2 if template == "tutorial" else 0


@dataclass(frozen=True, slots=True)
class Row:
    """The tokens of an example. `labels[i]` is `ids[i]` where that token is learnt, else IGNORED."""

    ids: Ids
    labels: Ids

    def __len__(self) -> int:
        return len(self.ids)


class Rows(Protocol):
    """Rows that may lie on disk: a `TokenSet` (data/dataset.py), or a list in tests."""

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row."""
        ...

    @property
    def digest(self) -> str:
        """Stands for content and order: what a resumed training compares."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...


class Part(Sequence[Row]):
    """Some rows of others, in the order of `places`."""

    def __init__(self, rows: Rows, places: NDArray[np.int64]) -> None:
        self.rows, self.places = rows, places

    @property
    def lengths(self) -> NDArray[np.int32]:
        return self.rows.lengths[self.places]

    @property
    def digest(self) -> str:
        from hashlib import sha256

        return sha256(self.rows.digest.encode() + self.places.tobytes()).hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self.rows[int(place)] for place in self.places[index]]
        return self.rows[int(self.places[index])]


Problem = Literal[
    "broken", "ended", "missing", "empty", "type", "duplicate", "conflict", "special", "control",
    "long", "place", "encoding",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a row. A `bad` one can't be trained on; others are warnings."""

    source: str
    """`file.json:17`"""
    problem: Problem
    text: Translatable
    bad: bool


_KINDS = {
    type(None): Translatable("null"),
    bool: Translatable("true or false"),
    int: Translatable("a number"),
    float: Translatable("a number"),
    str: Translatable("a text"),
    list: Translatable("a list"),
    dict: Translatable("an object"),
}
_BLANK = re.compile(r"[\s\u200b-\u200d\u2060\ufeff]*")
"""What a reader sees nothing of: blanks, and signs without width."""


class InvalidRow(Exception):
    """A row that can't be an example."""

    def __init__(self, problem: Problem, text: Translatable) -> None:
        super().__init__(text)
        self.problem: Problem = problem
        self.text = text

    def finding(self, source: str) -> Finding:
        return Finding(source, self.problem, self.text, bad=True)


def refused(finding: Finding, skip: str = "") -> UserError:
    """What ends the work at a bad row. `skip` is the option of the command that leaves such rows
    out, where it has one."""
    out = Translatable("delete it")
    if skip:
        out = Translatable("leave bad rows out with {skip}", skip=skip)
    return UserError(
        "{source}: {problem}; mend the row, or {out}",
        source=finding.source,
        problem=finding.text,
        out=out,
    )


def text_of(row: Mapping[str, Any], name: str) -> str | None:
    """The text of a field; None where it is absent or null; `InvalidRow` where it is something else."""
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise wrong(Translatable('"{name}"', name=name), value, Translatable("a text"))
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRow(
            "encoding",
            Translatable(
                '"{name}" holds half a character (a lone surrogate); write it whole', name=name
            ),
        ) from None
    return value


def said(text: str | None, name: str) -> str:
    """The text itself; `InvalidRow` where there is none, or nothing but blanks."""
    if text is None:
        raise lacking(name)
    if is_blank(text):
        raise InvalidRow("empty", Translatable('"{name}" is empty; need a text', name=name))
    return text


def is_blank(text: str) -> bool:
    return _BLANK.fullmatch(text) is not None


def lacking(name: str) -> InvalidRow:
    return InvalidRow("missing", Translatable('"{name}" is missing; need a text', name=name))


def quoted(value: Any) -> str:
    """A value of the data in a message: short, and no sign of it reaches a terminal raw."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def wrong(what: Translatable, value: Any, need: Translatable) -> InvalidRow:
    """`what` has the type of `value`, but `need` is needed."""
    kind = _KINDS[type(value)]
    if isinstance(value, list):
        kind = Translatable("a list of {count}", count=len(value))
    return InvalidRow(
        "type", Translatable("{what} is {kind}; need {need}", what=what, kind=kind, need=need)
    )
