"""Rows -> which of them make each step, and how they lie in memory: packed or padded.

The layout never changes what is computed: a packed sample sees no other and has its own positions,
as if it were alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.options import TrainOptions
from finetune.types import IGNORED, Row

Indices = NDArray[np.int64]
GROUP = 50
"""Steps among whose rows those of like length are put together (transformers' Trainer has 50)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What goes through the model at once: B lines of S tokens."""

    ids: Tensor
    """[B, S]"""
    labels: Tensor
    """[B, S]: the label of a token is the token itself or IGNORED, as in `Row`; the first token of
    a sample is never learnt."""
    samples: Tensor
    """[B, S]: which sample of its line a token belongs to, from 1; 0 is padding."""
    positions: Tensor
    """[B, S]: places within the sample, from 0."""

    @property
    def learnt(self) -> int:
        """How many tokens are learnt."""
        return int((self.labels != IGNORED).sum())

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(*(t.to(device) for t in (self.ids, self.labels, self.samples, self.positions)))


def laid_out(rows: Sequence[Row], options: TrainOptions) -> list[Batch]:
    """How a device's rows of a step go through the model."""
    if options.packing:
        return packed(rows, options.pack_length)
    return padded(rows, options.per_device_train_batch_size)


def packed(rows: Sequence[Row], length: int) -> list[Batch]:
    """The rows one behind the other, in lines of at most `length` tokens of a batch each.

    A longer row is a line by itself. First fit, the longest first (Johnson 1973).
    """
    lines: list[list[Row]] = []
    room: list[int] = []
    for row in sorted(rows, key=len, reverse=True):
        place = next((i for i, left in enumerate(room) if left >= len(row)), None)
        if place is None:
            lines.append([row])
            room.append(length - len(row))
        else:
            lines[place].append(row)
            room[place] -= len(row)
    return [_batch([line]) for line in lines]


def padded(rows: Sequence[Row], size: int, *, length: int | None = None) -> list[Batch]:
    """Batches of `size` rows, each padded on the right to its longest row, or to `length`."""
    ordered = sorted(rows, key=len, reverse=True)
    return [
        _batch([[row] for row in ordered[start : start + size]], length)
        for start in range(0, len(ordered), size)
    ]


def _batch(lines: Sequence[Sequence[Row]], length: int | None = None) -> Batch:
    width = length or max(sum(map(len, line)) for line in lines)
    ids, samples, positions = (torch.zeros(len(lines), width, dtype=torch.long) for _ in range(3))
    labels = torch.full((len(lines), width), IGNORED)
    for i, line in enumerate(lines):
        start = 0
        for number, row in enumerate(line, 1):
            span = slice(start, start + len(row))
            ids[i, span] = torch.from_numpy(row.ids.astype(np.int64))
            labels[i, span] = torch.from_numpy(row.labels.astype(np.int64))
            labels[i, start] = IGNORED  # what stands before it is another sample
            samples[i, span] = number
            positions[i, span] = torch.arange(len(row))
            start += len(row)
    return Batch(ids, labels, samples, positions)


class Stream:
    """Numbers of rows without end: all of them in an order drawn anew for each epoch.

    A place in it says all, so that a training goes on anywhere. Where rows will be padded, their
    `lengths` let those of like length meet: blocks of `size` rows, in an order that is drawn too.
    """

    def __init__(
        self, rows: int, seed: int, *, lengths: NDArray[np.int32] | None = None, size: int = 1
    ) -> None:
        self.rows, self.seed, self.lengths, self.size = rows, seed, lengths, size
        self._drawn: tuple[int, Indices] = (-1, np.zeros(0, np.int64))

    def take(self, start: int, end: int) -> Indices:
        """The rows at places [start, end)."""
        places = np.arange(start, end)
        epochs = places // self.rows
        parts = [
            self._order(epoch)[places[epochs == epoch] % self.rows]
            for epoch in np.unique(epochs).tolist()
        ]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def _order(self, epoch: int) -> Indices:
        if self._drawn[0] != epoch:
            self._drawn = (epoch, self._draw(epoch))
        return self._drawn[1]

    def _draw(self, epoch: int) -> Indices:
        dice = np.random.default_rng((self.seed, epoch))
        order = dice.permutation(self.rows)
        if self.lengths is None:
            return order
        wide = GROUP * self.size
        groups = [order[start : start + wide] for start in range(0, self.rows, wide)]
        ordered = [group[np.argsort(-self.lengths[group], kind="stable")] for group in groups]
        blocks = [
            group[start : start + self.size]
            for group in ordered
            for start in range(0, len(group), self.size)
        ]
        return np.concatenate([blocks[i] for i in dice.permutation(len(blocks))])


@dataclass(frozen=True, slots=True)
class Plan:
    """How many steps there are and which rows each takes.

    `size` rows a step, of which the share `mix` comes from the `general` set.
    """

    own: Stream
    size: int
    epochs: float
    max_steps: int = 0
    general: Stream | None = None
    mix: float = 0.0

    @property
    def steps(self) -> int:
        return self.max_steps or max(1, math.ceil(self._last / (self.size * (1 - self.mix))))

    @property
    def _last(self) -> float:
        """Where the stream of own rows ends."""
        return math.inf if self.max_steps else math.ceil(self.own.rows * self.epochs)

    def step(self, number: int) -> tuple[Indices, Indices]:
        """The rows of step `number`, from 0, and those of the general set."""
        mixed = [math.floor(n * self.size * self.mix) for n in (number, number + 1)]
        start, end = (n * self.size - m for n, m in zip((number, number + 1), mixed, strict=True))
        own = self.own.take(start, int(min(end, max(self._last, start + 1))))
        if self.general is None:
            return own, np.zeros(0, np.int64)
        return own, self.general.take(*mixed)

    def epoch(self, number: int) -> float:
        """How often each row has been seen after `number` steps."""
        seen = number * self.size - math.floor(number * self.size * self.mix)
        return min(seen, self._last) / self.own.rows
