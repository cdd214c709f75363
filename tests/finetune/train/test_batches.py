"""Layouts hold every token once, and streams every row once an epoch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.train.batches import Batch, Plan, Stream, pack
from finetune.types import IGNORED, TokenRow

Lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def made(lengths: list[int]) -> list[TokenRow]:
    """Rows of ids that occur nowhere else; all but the first are learnt."""
    start, rows = 1, []
    for length in lengths:
        ids = np.arange(start, start + length, dtype=np.int32)
        rows.append(TokenRow(ids, np.where(np.arange(length) > 0, ids, IGNORED).astype(np.int32)))
        start += length
    return rows


def taken_apart(batches: list[Batch]) -> dict[int, tuple[list[int], list[int], list[int]]]:
    """First id of each sample -> its ids, labels and positions."""
    found = {}
    for batch in batches:
        for i in range(len(batch.ids)):
            for number in range(1, int(batch.samples[i].max()) + 1):
                here = batch.samples[i] == number
                parts = (batch.ids[i][here], batch.labels[i][here], batch.positions[i][here])
                ids, labels, positions = (part.tolist() for part in parts)
                found[ids[0]] = ids, labels, positions
    return found


@given(Lengths, st.integers(1, 60))
def test_batches_have_every_row_complete(lengths: list[int], room: int) -> None:
    rows = made(lengths)
    found = taken_apart(pack(rows, room))
    assert len(found) == len(rows)
    for row in rows:
        ids, labels, positions = found[int(row.ids[0])]
        assert ids == row.ids.tolist()
        assert labels == row.labels.tolist()
        assert positions == list(range(len(row)))
    for batch in pack(rows, room):
        assert len(batch.ids) == 1
        assert batch.ids.shape[1] <= room or int(batch.samples.max()) == 1
        assert bool((batch.samples > 0).all())


def test_the_first_token_of_a_sample_is_never_learnt() -> None:
    """It would be learnt from the sample before it."""
    row = TokenRow(np.array([7, 8], np.int32), np.array([7, 8], np.int32))
    [batch] = pack([row, row], 10)
    assert batch.labels.tolist() == [[IGNORED, 8, IGNORED, 8]]


@given(st.integers(1, 50), st.integers(0, 3), st.integers(0, 200))
def test_a_stream_gives_each_row_once_an_epoch_from_anywhere(count: int, seed: int, start: int) -> None:
    stream = Stream(count, seed)
    whole = stream.take(0, 4 * count)
    for epoch in range(4):
        assert sorted(whole[epoch * count : (epoch + 1) * count]) == list(range(count))
    start %= 3 * count
    fresh = Stream(count, seed)
    assert fresh.take(start, start + count).tolist() == whole[start : start + count].tolist()


def test_epochs_and_seeds_differ() -> None:
    stream = Stream(50, 0)
    assert stream.take(0, 50).tolist() != stream.take(50, 100).tolist()
    assert stream.take(0, 50).tolist() != Stream(50, 1).take(0, 50).tolist()


@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([0.0, 0.1, 0.25, 0.5]))
def test_a_plan_has_each_row_once_an_epoch(rows: int, size: int, mix: float) -> None:
    general = Stream(5, 1) if mix else None
    plan = Plan(Stream(rows, 0), size, 2.0, general=general, mix=mix)
    steps = [plan.step(number) for number in range(plan.steps)]
    own = np.concatenate([step[0] for step in steps])
    assert np.bincount(own[: 2 * rows], minlength=rows).tolist() == [2] * rows
    assert len(own) - 2 * rows <= 1  # a step of its own for what rounding leaves
    others = sum(len(step[1]) for step in steps)
    assert abs(others - mix * size * len(steps)) <= 1
    assert plan.epoch(plan.steps) == pytest.approx(2.0)


def test_a_plan_has_the_given_number_of_steps() -> None:
    plan = Plan(Stream(3, 0), 4, 1.0, max_steps=5)
    assert [len(plan.step(number)[0]) for number in range(plan.steps)] == [4] * 5


def test_batches_move_to_a_device() -> None:
    batch = pack(made([3]), 3)[0].to("cpu")
    assert torch.equal(batch.ids, torch.tensor([[1, 2, 3]]))
