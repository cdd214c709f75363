"""Rows -> which of them each step takes, and how they lie in memory: packed, without padding.

The layout never changes what is computed: a sample attends to no other and has its own positions, as
if it were alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.types import IGNORED, REJECTED, TokenRow

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """What goes through the model at once: a line of S tokens, which holds whole samples."""

    ids: Tensor
    """[1, S]"""
    labels: Tensor
    """[1, S]: the label of a token is the token itself or IGNORED, as in `TokenRow`; the first token
    of a sample is never learnt."""
    samples: Tensor
    """[1, S]: which sample a token belongs to, from 1."""
    positions: Tensor
    """[1, S]: places within the sample, from 0."""
    rejected: tuple[int, ...] = ()
    """The samples that are worse than the one before them (preference pairs)."""

    @property
    def learnt(self) -> int:
        """The number of learnt tokens; those of rejected samples are not."""
        rejected = torch.isin(self.samples, torch.tensor(self.rejected, device=self.samples.device))
        return int(((self.labels != IGNORED) & ~rejected).sum())

    def to(self, device: torch.device | str) -> "Batch":
        names = ("ids", "labels", "samples", "positions")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def pack(rows: Sequence[TokenRow], length: int) -> list[Batch]:
    """Batches of at most `length` tokens.

    A longer row gets its own. First fit, the longest first (Johnson 1973).
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
    return [_batch(line) for line in lines]


def _batch(line: Sequence[TokenRow]) -> Batch:
    ids, labels = (np.concatenate([getattr(row, name) for row in line]) for name in ("ids", "labels"))
    first = labels == REJECTED  # the first token of a sample
    first[np.cumsum([0, *map(len, line[:-1])])] = True
    samples = np.cumsum(first)
    rejected = tuple(samples[labels == REJECTED].tolist())
    labels[first] = IGNORED  # the token before it belongs to another sample
    arrays = (ids, labels, samples, np.arange(len(ids)) - np.flatnonzero(first)[samples - 1])
    return Batch(*(torch.from_numpy(array.astype(np.int64))[None] for array in arrays), rejected=rejected)


class Stream:
    """An endless stream of row numbers: all of them in a new random order for each epoch.

    It depends on nothing but seed and place, so that a training can continue anywhere.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed = rows, seed
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
        return np.random.default_rng((self.seed, epoch)).permutation(self.rows)


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
