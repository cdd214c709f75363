"""What is minimised: the cross-entropy of the learnt tokens, computed at their places alone."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune.train.batches import Batch
from finetune.train.lines import ATTENTION
from finetune.types import IGNORED
from rag.chatglm.configuration import generation_of


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
