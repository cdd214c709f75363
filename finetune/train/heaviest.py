"""A plan and the lengths of its rows -> the lines that will take most memory, before any is trained."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from finetune.options import TrainOptions
from finetune.train.batches import Batch, Indices, Plan, packed, padded
from finetune.train.loop import Sets, plan
from finetune.types import IGNORED, Row, Rows

LOOKED_AT = 100_000
"""Steps of a plan, at most."""
BUILT = 32
"""Of them, those with the most tokens, are laid out as lines."""
EVALUATED = 32
"""Rows that an evaluation packs together (loss.py)."""


@dataclass(frozen=True)
class Heaviest:
    """The heaviest lines of a training on one of `devices`."""

    sets: Sets
    options: TrainOptions
    devices: int = 1

    @cached_property
    def plan(self) -> Plan:
        return plan(self.sets, self.options, self.devices)

    @cached_property
    def steps(self) -> list[int]:
        """Numbers of the steps whose lines may be the heaviest, the first of them likely to be."""
        numbers = range(min(self.plan.steps, LOOKED_AT))
        return sorted(numbers, key=self._tokens, reverse=True)[:BUILT]

    def learnt(self) -> list[Batch]:
        """The line of most tokens and that of most logits, among those that are trained."""
        lines = [line for number in self.steps for line in self._lines(number) if line.learnt]
        return _extremes(lines)

    def measured(self) -> list[Batch]:
        """The same of the lines that are evaluated."""
        lines: list[Batch] = []
        for rows in (self.sets.dev, self.sets.general_dev):
            if rows is not None:
                longest = [rows[i] for i in _longest(rows, EVALUATED)]
                lines += packed(longest, self.options.pack_length)
        return _extremes(lines)

    def line(self, size: int) -> Batch:
        """Of the longest rows: `size` of them padded; packed, as many as `size` tokens hold, the
        longest of all if it is longer.
        """
        rows = self.sets.train
        if not self.options.packing:
            order = np.resize(_longest(rows, size), size)
            return padded([rows[int(i)] for i in order], size)[0]
        return packed(list(_filling(rows, size)), size)[0]

    def _tokens(self, number: int) -> int:
        """Of the longest line of a step, at most."""
        lengths = np.sort(np.concatenate(self._lengths(number)))[::-1]
        if self.options.packing:
            return max(min(int(lengths.sum()), self.options.pack_length), int(lengths[0]))
        return int(lengths[0]) * self.options.per_device_train_batch_size

    def _lengths(self, number: int) -> list[Indices]:
        own, general = self.plan.step(number)
        sets = self.sets
        return [
            sets.train.lengths[own],
            sets.general.lengths[general] if sets.general is not None else general,
        ]

    def _lines(self, number: int) -> list[Batch]:
        """Of one step, on the first device."""
        own, general = self.plan.step(number)
        rows = [self.sets.train[int(i)] for i in own]
        if self.sets.general is not None:
            rows += [self.sets.general[int(i)] for i in general]
        return lines(rows[:: self.devices], self.options)


def lines(rows: Sequence[Row], options: TrainOptions) -> list[Batch]:
    """How a device's rows of a step go through the model."""
    if options.packing:
        return packed(rows, options.pack_length)
    return padded(rows, options.per_device_train_batch_size)


def logits(batch: Batch) -> int:
    """Places at which a word is predicted, of all rows of the batch."""
    return len(batch.ids) * int((batch.labels != IGNORED).any(0).sum())


def _extremes(lines: Sequence[Batch]) -> list[Batch]:
    if not lines:
        return []
    most = [max(lines, key=lambda line: line.ids.numel()), max(lines, key=logits)]
    return most[:1] if most[0] is most[1] else most


def _longest(rows: Rows, count: int) -> list[int]:
    return [int(i) for i in np.argsort(-rows.lengths, kind="stable")[:count]]


def _filling(rows: Rows, size: int) -> Iterator[Row]:
    """The longest rows that fill a line of `size` tokens, the same ones again where they are few."""
    order, left = _longest(rows, 1 + size // max(1, int(rows.lengths.min()))), size
    place = 0
    while place < len(order) or left > 0:
        row = rows[order[place % len(order)]]
        if len(row) > left:
            if place == 0:
                yield row
            return
        yield row
        left -= len(row)
        place += 1
