"""A plan and the lengths of its rows -> the lines that will take most memory, before any is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from finetune.options import TrainOptions
from finetune.train.batches import Batch, Plan, laid_out, packed, padded
from finetune.train.evaluation import TOGETHER
from finetune.train.loop import Sets, plan
from finetune.types import IGNORED, Rows

LOOKED_AT = 100_000
"""Steps of a plan, at most."""
BUILT = 32
"""Of them, those with the most tokens, are laid out as lines."""
WIDEST = {True: 1 << 13, False: 1 << 16}
"""Tokens of a line, packed or padded, beyond which none is tried: masks of packed ones are squares."""


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
        return sorted(numbers, key=lambda number: self._step(number)[1], reverse=True)[:BUILT]

    def learnt(self) -> list[Batch]:
        """The line of most tokens and that of most logits, among those that are trained."""
        rows = (self.sets.of(self.plan, number)[:: self.devices] for number in self.steps)
        lines = [line for own in rows for line in laid_out(own, self.options)]
        return _extremes([line for line in lines if line.learnt])

    def measured(self) -> list[Batch]:
        """The same of the lines that are evaluated."""
        lines: list[Batch] = []
        for rows in (self.sets.dev, self.sets.general_dev):
            if rows is not None:
                longest = [rows[i] for i in _longest(rows, TOGETHER)]
                lines += packed(longest, self.options.pack_length)
        return _extremes(lines)

    def line(self, count: int) -> Batch:
        """`count` of the longest rows, the same ones again where they are fewer: packed in one line,
        or padded as one batch.
        """
        rows = self.sets.train
        most = [rows[int(i)] for i in np.resize(_longest(rows, count), count)]
        if self.options.packing:
            return packed(most, sum(map(len, most)))[0]
        return padded(most, count)[0]

    @property
    def most(self) -> int:
        """How many of the longest rows are tried together."""
        return max(1, WIDEST[self.options.packing] // int(self.sets.train.lengths.max()))

    @cached_property
    def tokens(self) -> float:
        """Of all steps and devices together, padding included."""
        seen = min(self.plan.steps, LOOKED_AT)
        return sum(self._step(number)[0] for number in range(seen)) / seen * self.plan.steps

    def _step(self, number: int) -> tuple[int, int]:
        """Tokens of a step, and of its longest line on the first device, at most."""
        own, general = self.plan.step(number)
        lengths = self.sets.train.lengths[own]
        if self.sets.general is not None:
            lengths = np.concatenate([lengths, self.sets.general.lengths[general]])
        if self.options.packing:
            mine = lengths[:: self.devices]
            most = max(min(int(mine.sum()), self.options.pack_length), int(mine.max()))
            return int(lengths.sum()), most
        size = self.options.per_device_train_batch_size
        widths = [
            int(part.max()) * len(part)
            for device in range(self.devices)
            for part in np.split(
                np.sort(lengths[device :: self.devices])[::-1], range(size, len(lengths), size)
            )
            if len(part)
        ]
        return sum(widths), max(widths)


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
