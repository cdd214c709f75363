"""The loss: the cross-entropy of the learnt tokens, computed only at their places, and ORPO's term."""

import math
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetune.train.batches import Batch, pack
from finetune.types import IGNORED, TokenRows
from ingest.errors import UserError
from rag.chatglm.configuration import generation_of

LEAST = 1e-6
"""Of 1 - p, so that the odds of a certain answer are finite."""
ROW_ATTENTION = "lines"
"""The name under which transformers finds `attend`."""


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    lengths: list[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA attention; with `lengths`, causal within each sample of the one line.

    `lengths` are the tokens of each sample; then the mask is ignored, all tensors are [1, heads,
    positions, head_dim], and neighbours of the same length are computed at once.
    """
    if lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    outs, start = [], 0
    for length, group in groupby(lengths):
        count = len(list(group))
        span = slice(start, start := start + count * length)
        q, k, v = (
            tensor[0, :, span].unflatten(1, (count, length)).transpose(0, 1) for tensor in (query, key, value)
        )  # [count, heads, length, head_dim]
        out, _ = sdpa_attention_forward(module, q, k, v, None, **kwargs)
        outs.append(out.flatten(0, 1))  # [count * length, heads, head_dim]
    return torch.cat(outs)[None], None


AttentionInterface.register(ROW_ATTENTION, attend)
AttentionMaskInterface.register(ROW_ATTENTION, sdpa_mask)


def summed_loss(model: Any, batch: Batch, odds: float = 0.0) -> Tensor:
    """The sum over the batch's learnt tokens of -ln p, float32, shape (); and for each preference pair
    `odds` times ORPO's term (Hong et al. 2024, arXiv:2403.07691): -ln sigmoid of the logarithm of the odds
    ratio of the chosen and the rejected answer. An answer's probability is the geometric mean of those of
    its tokens.

    Logits are computed where the next token is learnt; as upstream, in float32 from there on (or
    float64, if the model is).
    """
    learnt = batch.labels[:, 1:]
    places = (learnt != IGNORED).any(0).nonzero()[:, 0]
    masks = attention_inputs(model, batch)
    logits = model(batch.ids, **masks, use_cache=False, logits_to_keep=places).logits  # [1, n, V]
    exact = (logits.float() if logits.dtype.itemsize < 4 else logits).flatten(0, 1)
    losses = cross_entropy(exact, learnt[:, places].flatten(), reduction="none")
    if not batch.rejected:
        return losses.sum()
    counts = batch.samples[0, 1:][places].bincount(minlength=int(batch.samples.max()) + 1)
    of_sample = losses.split(counts.tolist())  # from number 0, which no token has
    total = torch.stack([part.sum() for n, part in enumerate(of_sample) if n not in batch.rejected]).sum()
    means = torch.stack(
        [torch.stack([-of_sample[n - 1].mean(), -of_sample[n].mean()]) for n in batch.rejected]
    )
    log_odds = means - (-torch.expm1(means.clamp(max=-LEAST))).log()  # ln(p / (1 - p)), [pairs, 2]
    return total - odds * logsigmoid(log_odds[:, 0] - log_odds[:, 1]).sum()


def finite_loss(model: Any, batch: Batch, step: int, odds: float = 0.0) -> Tensor:
    """The summed loss; if it is not finite in `step`, raises `UserError` that names the cause."""
    loss = summed_loss(model, batch, odds)
    if not bool(loss.isfinite()):
        raise not_finite(model, batch, step)
    return loss


def attention_inputs(model: Any, batch: Batch) -> dict[str, Any]:
    """The model's arguments that say which tokens of `batch` attend to each other, and positions."""
    if generation_of(model.config) == 1:
        return {"attention_mask": batch.samples}  # numbers of samples, as it takes them
    lengths = batch.samples[0].bincount()[1:].tolist()
    if len(lengths) == 1:
        return {}
    if model.config._attn_implementation == ROW_ATTENTION:
        # transformers passes a mask with four axes through and creates none.
        unused = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.ids.device)
        return {"lengths": lengths, "attention_mask": unused, "position_ids": batch.positions}
    length = batch.ids.shape[1]
    same = batch.samples[:, :, None] == batch.samples[:, None]
    earlier = torch.ones(length, length, dtype=torch.bool, device=same.device).tril()
    return {"attention_mask": (same & earlier)[:, None], "position_ids": batch.positions}


def not_finite(model: Any, batch: Batch, step: int) -> UserError:
    """The error for a loss that is NaN or infinite: the module in which it begins and why."""
    names = [name for name, value in model.named_parameters() if not bool(value.isfinite().all())]
    if names:
        return UserError(
            "step {step}: {name} holds NaN or infinite numbers ({count} such): the "
            "steps were too large; continue from a checkpoint with a smaller --learning-rate, or "
            "with --warmup-steps",
            step=step, name=names[0], count=len(names),
        )  # fmt: skip
    place, largest, dtype = _first_infinite(model, batch)
    with torch.no_grad(), model.disable_adapter():
        base_is_finite = bool(summed_loss(model, batch).isfinite())
    fields = {"step": step, "place": place, "dtype": str(dtype).removeprefix("torch."), "largest": largest}
    if base_is_finite:
        return UserError(
            "step {step}: the adapter has grown until the output of {place} is NaN or infinite "
            "in {dtype}: the steps were too large; continue from a checkpoint with a smaller "
            "--learning-rate, or with --warmup-steps",
            **fields,
        )
    if dtype == torch.float16:
        return UserError(
            "step {step}: the output of {place} is beyond float16 (inputs up to {largest:.3g}, "
            "float16 holds {half:.0f}): this model overflows in float16; train with --bf16 or "
            "--fp32",
            half=torch.finfo(dtype).max,
            **fields,
        )
    return UserError(
        "step {step}: the output of {place} is NaN or infinite in {dtype} (inputs up to "
        "{largest:.3g}), also without the adapter: the base's weights are damaged; fetch the "
        "model again",
        **fields,
    )


@torch.no_grad()
def _first_infinite(model: nn.Module, batch: Batch) -> tuple[str, float, torch.dtype]:
    """The innermost module whose output is first not finite, its largest input and dtype."""
    found: list[tuple[str, float, torch.dtype]] = []

    def hook(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if found or not isinstance(value, Tensor) or not value.is_floating_point():
            return
        if not value.isfinite().all():
            tensors = [x for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]
            largest = max((float(x.abs().max()) for x in tensors), default=math.nan)
            found.append((name, largest, value.dtype))

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name and not list(module.children()):
                hooks.enter_context(module.register_forward_hook(partial(hook, name)))
        summed_loss(model, batch)
    # If every module's output is finite, attention between them or the loss itself is not.
    return found[0] if found else ("attention", math.nan, next(model.parameters()).dtype)


EVALUATION_ROWS = 32
"""The number of rows that are packed at once."""


@torch.no_grad()
def evaluate(model: Any, rows: TokenRows, *, length: int, step: int, part: slice = slice(None)) -> Tensor:
    """The sum of -ln p over the learnt tokens of `rows[part]`, and their number: float64, (2,).

    Runs in evaluation mode and restores the mode. Raises `UserError`, which names `step`, the last
    that was done, if a loss is not finite.
    """
    training = model.training
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)
    try:
        wanted = range(len(rows))[part]
        for start in range(0, len(wanted), EVALUATION_ROWS):
            for batch in pack([rows[i] for i in wanted[start : start + EVALUATION_ROWS]], length):
                if batch.learnt:
                    batch = batch.to(next(model.parameters()).device)
                    loss = float(finite_loss(model, batch, step))
                    total += torch.tensor([loss, batch.learnt], dtype=torch.float64)
    finally:
        model.train(training)
    return total
