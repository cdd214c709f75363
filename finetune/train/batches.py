"""Rows -> which of them each step takes, and how they lie in memory: packed or padded.

The layout never changes what is computed: a packed sample attends to no other and has its own
positions, as if it were alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.options import TrainOptions
from finetune.types import IGNORED, TokenRow

Indices = NDArray[np.int64]
GROUP = 50
"""Rows of similar length are put together among so many steps (transformers' Trainer has 50)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What goes through the model at once: B lines of S tokens."""

    ids: Tensor
    """[B, S]"""
    labels: Tensor
    """[B, S]: the label of a token is the token itself or IGNORED, as in `TokenRow`; the first token
    of a sample is never learnt."""
    samples: Tensor
    """[B, S]: which sample of its line a token belongs to, from 1; 0 is padding."""
    positions: Tensor
    """[B, S]: places within the sample, from 0."""

    @property
    def learnt(self) -> int:
        """The number of learnt tokens."""
        return int((self.labels != IGNORED).sum())

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(*(t.to(device) for t in (self.ids, self.labels, self.samples, self.positions)))


def batches_of(rows: Sequence[TokenRow], options: TrainOptions) -> list[Batch]:
    """The batches in which a device's rows of a step go through the model."""
    if options.packing:
        return pack(rows, options.pack_length)
    return pad(rows, options.per_device_train_batch_size)


def pack(rows: Sequence[TokenRow], length: int) -> list[Batch]:
    """One batch for each line of concatenated rows, which has at most `length` tokens.

    A longer row gets its own line. First fit, the longest first (Johnson 1973).
    """
    lines: list[list[TokenRow]] = []
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


def pad(rows: Sequence[TokenRow], size: int, *, length: int | None = None) -> list[Batch]:
    """Batches of `size` rows, each padded on the right to its longest row, or to `length`."""
    ordered = sorted(rows, key=len, reverse=True)
    return [
        _batch([[row] for row in ordered[start : start + size]], length)
        for start in range(0, len(ordered), size)
    ]


def _batch(lines: Sequence[Sequence[TokenRow]], length: int | None = None) -> Batch:
    width = length or max(sum(map(len, line)) for line in lines)
    ids, samples, positions = (torch.zeros(len(lines), width, dtype=torch.long) for _ in range(3))
    labels = torch.full((len(lines), width), IGNORED)
    for i, line in enumerate(lines):
        start = 0
        for number, row in enumerate(line, 1):
            span = slice(start, start + len(row))
            ids[i, span] = torch.from_numpy(row.ids.astype(np.int64))
            labels[i, span] = torch.from_numpy(row.labels.astype(np.int64))
            labels[i, start] = IGNORED  # the token before it belongs to another sample
            samples[i, span] = number
            positions[i, span] = torch.arange(len(row))
            start += len(row)
    return Batch(ids, labels, samples, positions)


class Stream:
    """An endless stream of row numbers: all of them in a new random order for each epoch.

    It depends on nothing but seed and place, so that a training can continue anywhere. If rows will
    be padded, their `lengths` bring those of similar length together, in shuffled blocks of `size`.
    """

    def __init__(
        self, rows: int, seed: int, *, lengths: NDArray[np.int32] | None = None, size: int = 1
    ) -> None:
        self.rows, self.seed, self.lengths, self.size = rows, seed, lengths, size
        self._order = lru_cache(1)(self._shuffle)

    def take(self, start: int, end: int) -> Indices:
        """The rows at places [start, end)."""
        places = np.arange(start, end)
        epochs = places // self.rows
        parts = [
            self._order(epoch)[places[epochs == epoch] % self.rows] for epoch in np.unique(epochs).tolist()
        ]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def _shuffle(self, epoch: int) -> Indices:
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(self.rows)
        if self.lengths is None:
            return order
        blocks: list[Indices] = []
        for start in range(0, self.rows, GROUP * self.size):
            group = order[start : start + GROUP * self.size]
            group = group[np.argsort(-self.lengths[group], kind="stable")]
            blocks += [group[i : i + self.size] for i in range(0, len(group), self.size)]
        return np.concatenate([blocks[i] for i in rng.permutation(len(blocks))])


@dataclass(frozen=True, slots=True)
class Plan:
    """The number of steps and the rows of each: `size`, of which the share `mix` is `general`."""

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
        """The place at which the stream of own rows ends."""
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
        """The number of times that each row has been seen after `number` steps."""
        seen = number * self.size - math.floor(number * self.size * self.mix)
        return min(seen, self._last) / self.own.rows
