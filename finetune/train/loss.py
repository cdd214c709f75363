"""What is minimised: the cross-entropy of the learnt tokens, computed at their places alone."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune.train.batches import Batch, packed
from finetune.train.lines import ATTENTION
from finetune.types import IGNORED, Rows
from rag.chatglm.configuration import generation_of

EVALUATED = 32
"""Rows that an evaluation packs together."""


def summed(model: Any, batch: Batch) -> Tensor:
    """The sum over the batch's learnt tokens of -ln p, float32, shape ().

    Logits are computed where the next token is learnt; as upstream, in float32 from there on (or
    float64, where the model is).
    """
    learnt = batch.labels[:, 1:]
    places = (learnt != IGNORED).any(0).nonzero()[:, 0]
    logits = model(
        batch.ids, **seen(model, batch), use_cache=False, logits_to_keep=places
    ).logits  # [B, n, V]
    targets = learnt[:, places]
    exact = logits.float() if logits.dtype.itemsize < 4 else logits
    return cross_entropy(
        exact.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def seen(model: Any, batch: Batch) -> dict[str, Any]:
    """What tells the model of `batch` which tokens see each other, and where they stand."""
    if generation_of(model.config) == 1:
        return {"attention_mask": batch.samples}  # numbers of samples, as it takes them
    real = batch.samples > 0
    if int(batch.samples.max()) == 1:
        return {} if real.all() else {"attention_mask": real.long()}
    if model.config._attn_implementation == ATTENTION and len(real) == 1 and real.all():
        # A mask with four axes is handed on as it is, and transformers makes none.
        unused = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=real.device)
        lengths = batch.samples[0].bincount()[1:].tolist()
        return {"lengths": lengths, "attention_mask": unused, "position_ids": batch.positions}
    length = batch.ids.shape[1]
    same = batch.samples[:, :, None] == batch.samples[:, None]
    earlier = torch.ones(length, length, dtype=torch.bool, device=same.device).tril()
    return {"attention_mask": (same & earlier)[:, None], "position_ids": batch.positions}


@torch.no_grad()
def evaluated(model: Any, rows: Rows, *, length: int, part: slice = slice(None)) -> Tensor:
    """The sum of -ln p over the learnt tokens of `rows[part]`, and their number: float64, (2,).

    In evaluation mode, whatever the mode was before.
    """
    training = model.training
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)
    try:
        wanted = range(len(rows))[part]
        for start in range(0, len(wanted), EVALUATED):
            for batch in packed([rows[i] for i in wanted[start : start + EVALUATED]], length):
                if batch.learnt:
                    loss = summed(model, batch.to(next(model.parameters()).device))
                    total += torch.tensor([float(loss), batch.learnt], dtype=torch.float64)
    finally:
        model.train(training)
    return total
