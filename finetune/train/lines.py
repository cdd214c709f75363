"""Attention within each sample of a packed line, at no cost between them.

A mask over the whole line has SDPA compute every pair of its tokens, and drop nearly all of them.
"""

from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "lines"
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
    """transformers' SDPA attention, causal within each sample, where there are `lengths`.

    They are the tokens of each sample of a line, a batch by itself; the mask is not looked at then.
    All are [1, heads, positions, head_dim]. Neighbours of one length are computed at once.
    """
    if lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    outs, start = [], 0
    for length, same in groupby(lengths):
        count = len(list(same))
        span = slice(start, start := start + count * length)
        q, k, v = (
            held[0, :, span].unflatten(1, (count, length)).transpose(0, 1)
            for held in (query, key, value)
        )  # [count, heads, length, head_dim]
        out, _ = sdpa_attention_forward(module, q, k, v, None, **kwargs)
        outs.append(out.flatten(0, 1))  # [count * length, heads, head_dim]
    return torch.cat(outs)[None], None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
