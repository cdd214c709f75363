"""Examples -> rows in bulk: what stands around the texts depends on a conversation's shape alone.

`RowEncoder` is asked once for each shape (roles, which texts are empty, what is learnt), with marks
in place of the texts; its rows are then the frame into which the ids of any example's texts go.
An example whose row would be too long is left to `RowEncoder` itself. So the rows are always
those that `RowEncoder` gives, example by example.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from finetune.data.template import Encoded, RowEncoder
from finetune.data.words import Flat, Ids, gather
from finetune.types import IGNORED, Example, Row, Unfit, refused

MARK = 0xF0000
"""Marks are characters of a private area of Unicode: MARK + 3 stands for the text of message 3."""
PLACE = -1000
"""PLACE - 3 stands for the ids of a frame's text 3 (labels are IGNORED or more)."""
_MARKS = re.compile(r"([\U000F0000-\U000FFFFD])")


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of data."""

    examples: int = 0
    shortened: int = 0
    """Examples of which something did not fit into their rows."""
    left_out: int = 0
    """Examples that have no row (scripts that `finetune.data.compat` follows leave some out)."""
    bad: int = 0
    """Rows of the data that could not be examples, or be cut, and were skipped."""
    ended: tuple[str, ...] = ()
    """Rows at which a file breaks off; what follows them is lost."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


NONE = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Block:
    """The rows of some examples, one behind the other; row `i` has `lengths[i]` tokens."""

    ids: Ids
    labels: Ids
    lengths: NDArray[np.int32]
    counts: Counts = Counts()

    @classmethod
    def empty(cls, counts: Counts) -> "Block":
        return cls(NONE, NONE, NONE, counts)

    @classmethod
    def of(cls, encoded: Sequence[Encoded]) -> "Block":
        rows = [row for each in encoded for row in each.rows]
        shortened = sum(each.shortened for each in encoded)
        bad = sum(each.bad for each in encoded)
        empty = sum(not each.rows for each in encoded)
        return cls(
            np.concatenate([NONE, *(row.ids for row in rows)]),
            np.concatenate([NONE, *(row.labels for row in rows)]),
            np.array([len(row) for row in rows], np.int32),
            Counts(len(encoded) - bad, shortened, empty - bad, bad),
        )


class Layout(Protocol):
    """How examples are written: which of their texts are encoded, and what the ids become."""

    @property
    def parsing(self) -> bool:
        """Whether special words in a text become special tokens, as in upstream's scripts."""
        ...

    def texts(self, example: Example) -> Sequence[str]: ...

    def block(self, examples: Sequence[Example], ids: Flat) -> Block:
        """`ids` are those of all the examples' texts, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Frame:
    """The rows of a shape. A text is its parts: words of the frame, or the number of a message."""

    texts: tuple[tuple[str | int, ...], ...]
    ids: tuple[int, ...]
    learnt: tuple[bool, ...]
    lengths: tuple[int, ...]
    """Of the rows, with one place for each text."""
    shortened: bool
    """Whether messages of the shape have no place in the template."""


@dataclass(slots=True)
class Frames:
    """`Layout` of a `RowEncoder`: `block` gives the very rows that it gives.

    An example that it refuses ends the work, unless `skip_bad`.
    """

    encoder: RowEncoder
    skip_bad: bool = False
    known: dict[Any, Frame] = field(default_factory=dict)

    @property
    def parsing(self) -> bool:
        return False

    def texts(self, example: Example) -> list[str]:
        said = [*(message.text for message in example.messages), example.input]
        return [
            "".join([said[part] if isinstance(part, int) else part for part in text])
            for text in self._frame(example).texts
        ]

    def block(self, examples: Sequence[Example], ids: Flat) -> Block:
        frames = [self._frame(example) for example in examples]
        frame_ids = np.array([i for frame in frames for i in frame.ids], np.int64)
        learnt = np.array([yes for frame in frames for yes in frame.learnt], bool)
        places = np.flatnonzero(frame_ids <= PLACE)
        starts = np.arange(len(frame_ids)) + len(ids.ids)
        sizes = np.ones(len(frame_ids), np.int64)
        starts[places], sizes[places] = ids.ends - ids.counts, ids.counts
        made = gather(np.concatenate((ids.ids, frame_ids.astype(np.int32))), starts, sizes)
        labels = np.where(np.repeat(learnt, sizes), made, np.int32(IGNORED))
        row_ends = np.cumsum([n for frame in frames for n in frame.lengths])
        lengths = np.diff(np.cumsum(sizes)[row_ends - 1], prepend=0).astype(np.int32)
        counts = Counts(len(examples), sum(frame.shortened for frame in frames))
        block = Block(made, labels, lengths, counts)
        if (lengths > self.encoder.max_length).any():
            return self._shortened(block, examples, frames)
        return block

    def _shortened(
        self, block: Block, examples: Sequence[Example], frames: Sequence[Frame]
    ) -> Block:
        """Examples with a row that is too long are encoded by themselves."""
        ends = np.cumsum(block.lengths)[:-1]
        pairs = zip(np.split(block.ids, ends), np.split(block.labels, ends), strict=True)
        rows = [Row(ids, labels) for ids, labels in pairs]
        encoded: list[Encoded] = []
        for example, frame in zip(examples, frames, strict=True):
            own, rows = rows[: len(frame.lengths)], rows[len(frame.lengths) :]
            fits = all(len(row) <= self.encoder.max_length for row in own)
            encoded.append(Encoded(tuple(own), frame.shortened) if fits else self._alone(example))
        return Block.of(encoded)

    def _alone(self, example: Example) -> Encoded:
        try:
            return self.encoder(example)
        except Unfit as unfit:
            if self.skip_bad:
                return Encoded((), shortened=False, bad=True)
            raise refused(unfit.finding(example.source), "--skip-bad") from None

    def _frame(self, example: Example) -> Frame:
        shape = (
            tuple([(message.role, not message.text) for message in example.messages]),
            not example.input,
            example.given,
        )
        found = self.known.get(shape)
        if found is None:
            found = self.known[shape] = self._framed(example)
        return found

    def _framed(self, example: Example) -> Frame:
        said = [*(message.text for message in example.messages), example.input]
        marks = [chr(MARK + number) if text else "" for number, text in enumerate(said)]
        messages = zip(example.messages, marks, strict=False)
        marked = replace(
            example,
            messages=tuple(replace(message, text=mark) for message, mark in messages),
            input=marks[-1],
        )
        marking = Marking(self.encoder.tokenizer)
        encoder = replace(self.encoder, tokenizer=marking, max_length=sys.maxsize)
        encoded = encoder(marked)
        ids = np.concatenate([row.ids for row in encoded.rows])
        labels = np.concatenate([row.labels for row in encoded.rows])
        texts = [marking.seen[PLACE - place] for place in ids[ids <= PLACE]]
        return Frame(
            tuple(tuple(_parts(text)) for text in texts),
            tuple(ids.tolist()),
            tuple((labels != IGNORED).tolist()),
            tuple(len(row) for row in encoded.rows),
            encoded.shortened,
        )


class Marking:
    """A tokenizer to which a text with marks is one id, a `PLACE`."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.seen: list[str] = []

    def encode_data(self, text: str) -> list[int]:
        self.seen.append(text)
        return [PLACE - len(self.seen) + 1] if text else []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def _parts(text: str) -> list[str | int]:
    parts = [part for part in _MARKS.split(text) if part]
    return [ord(part) - MARK if _MARKS.fullmatch(part) else part for part in parts]
