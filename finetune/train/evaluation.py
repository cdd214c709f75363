"""The loss on rows that are measured and not learnt."""

from typing import Any

import torch
from torch import Tensor

from finetune.train.batches import packed
from finetune.train.diagnose import not_finite
from finetune.train.loss import summed
from finetune.types import Rows

TOGETHER = 32
"""Rows that are packed at once."""


@torch.no_grad()
def evaluated(
    model: Any, rows: Rows, *, length: int, step: int, part: slice = slice(None)
) -> Tensor:
    """The sum of -ln p over the learnt tokens of `rows[part]`, and their number: float64, (2,).

    In evaluation mode, whatever the mode was before. `UserError` names `step`, the last that was
    done, where a loss is no number.
    """
    training = model.training
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)
    try:
        wanted = range(len(rows))[part]
        for start in range(0, len(wanted), TOGETHER):
            for batch in packed([rows[i] for i in wanted[start : start + TOGETHER]], length):
                if batch.learnt:
                    on = batch.to(next(model.parameters()).device)
                    loss = summed(model, on)
                    if not bool(loss.isfinite()):
                        raise not_finite(model, on, step)
                    total += torch.tensor([float(loss), batch.learnt], dtype=torch.float64)
    finally:
        model.train(training)
    return total
