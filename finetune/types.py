"""The nouns of training: a conversation to learn from, its tokens, and what is wrong with data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, LiteralString, Protocol

import numpy as np
from numpy.typing import NDArray

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.types import Message

Ids = NDArray[np.int32]
IGNORED = -100
"""The label of a token that is not learnt (torch's `ignore_index`)."""
REJECTED = -101
"""The label of the token with which the rejected half of a pair begins; it is not learnt either."""


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation whose assistant messages are learnt.

    `messages` are a system message (or none), then user and assistant in turn; the last is the
    assistant's. `context_only` holds the indices of assistant messages that are not learnt.
    """

    messages: tuple[Message, ...]
    input: str = ""
    """Alpaca's `input`, which belongs to the last question."""
    context_only: frozenset[int] = frozenset()
    source: str = ""
    """`file.json:17`, the row as a person counts it, from 1."""
    whole: bool = False
    """Nothing of it may be cut off: its question holds the passages that its answer cites."""
    rejected: str = ""
    """Of a preference pair: a worse answer than the last message."""

    @property
    def question(self) -> str:
        return self.messages[-2].text

    @property
    def answer(self) -> str:
        return self.messages[-1].text

    def unplaced(self, template: str) -> int:
        """The number of messages that a template has no place for."""
        return len(self.messages) - 2 if template == "tutorial" else 0


@dataclass(frozen=True, slots=True)
class TokenRow:
    """The tokens of an example. `labels[i]` is `ids[i]` if that token is learnt, else IGNORED.

    A preference pair is one row: the conversation with the better answer, then, from the label REJECTED
    on, the one with the worse answer.
    """

    ids: Ids
    labels: Ids

    def __len__(self) -> int:
        return len(self.ids)


class TokenRows(Protocol):
    """Rows that may lie on disk: a `TokenSet` (data/dataset.py), or a list in tests."""

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row."""
        ...

    @property
    def digest(self) -> str:
        """A hash of content and order, which a resumed training compares."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> TokenRow: ...


class RowSubset:
    """The rows at `places` of others, in that order."""

    def __init__(self, rows: TokenRows, places: NDArray[np.int64]) -> None:
        self.rows, self.places = rows, places

    @property
    def lengths(self) -> NDArray[np.int32]:
        return self.rows.lengths[self.places]

    @property
    def digest(self) -> str:
        return sha256(self.rows.digest.encode() + self.places.tobytes()).hexdigest()[:32]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int, /) -> TokenRow:
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
    bad: bool = False


class InvalidRow(UserError):
    """A row that can't be an example."""

    def __init__(
        self, template: LiteralString | Translatable, /, problem: Problem = "type", **fields: object
    ) -> None:
        super().__init__(template, **fields)
        self.problem: Problem = problem

    def finding(self, source: str) -> Finding:
        return Finding(source, self.problem, self.message, bad=True)


def row_error(finding: Finding, skip: str = "") -> UserError:
    """The error that a command ends with at a bad row.

    `skip` is the option of the command that leaves such rows out, if it has one.
    """
    out = Translatable("leave bad rows out with {skip}", skip=skip)
    return UserError(
        "{source}: {problem}; correct the row, or {out}",
        source=finding.source, problem=finding.text, out=out if skip else Translatable("delete it"),
    )  # fmt: skip


_BLANK = re.compile(r"[\s\u200b-\u200d\u2060\ufeff]*")
"""Characters that a reader doesn't see: blanks, and characters without width."""
_TYPES = {
    type(None): Translatable("null"),
    bool: Translatable("true or false"),
    int: Translatable("a number"),
    float: Translatable("a number"),
    str: Translatable("a text"),
    dict: Translatable("an object"),
}


def text_of(row: Mapping[str, Any], name: str) -> str | None:
    """The text of a field; None if it is absent or null. Raises `InvalidRow` if it is not text."""
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise wrong_type(f'"{name}"', value, Translatable("a text"))
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRow(
            '"{name}" holds half a character (a lone surrogate); write it whole', "encoding", name=name
        ) from None
    return value


def require_text(row: Mapping[str, Any], name: str) -> str:
    """The text of a field; raises `InvalidRow` if there is none, or nothing but blanks."""
    text = text_of(row, name)
    if text is None:
        raise missing_field(name)
    if is_blank(text):
        raise InvalidRow('"{name}" is empty; need a text', "empty", name=name)
    return text


def is_blank(text: str) -> bool:
    return _BLANK.fullmatch(text) is not None


def missing_field(name: str) -> InvalidRow:
    return InvalidRow('"{name}" is missing; need a text', "missing", name=name)


def short_repr(value: Any) -> str:
    """A value of the data in a message: short, and without control characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def wrong_type(what: str, value: Any, need: Translatable) -> InvalidRow:
    """`what` has the type of `value`, but `need` is needed."""
    if isinstance(value, list):
        kind = Translatable("a list of {count}", count=len(value))
    else:
        kind = _TYPES[type(value)]
    return InvalidRow("{what} is {kind}; need {need}", what=what, kind=kind, need=need)
