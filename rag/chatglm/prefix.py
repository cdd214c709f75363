"""P-Tuning v2: trained keys and values that every query of every layer sees before its own.

They do not change positions and have no rotary embedding, as in upstream's `get_prompt`
(modeling_chatglm.py). ChatGLM-6B takes them in its forward. In transformers' `Glm`, the attention
function adds them after the rotary embedding and the cache, so that positions, masks, padding and
generation stay the same.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rag.chatglm.configuration import generation_of

ATTENTION = "prefix"  # the name under which `attend` is registered with transformers


class PrefixEncoder(nn.Module):
    """The trained part, with upstream's parameter names: `embedding`, `trans.0` and `trans.2`."""

    def __init__(self, config: PreTrainedConfig, length: int, *, projection: bool = False) -> None:
        super().__init__()
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.shape = (length, config.num_hidden_layers, 2, heads, dim)
        width = config.num_hidden_layers * 2 * heads * dim
        hidden = config.hidden_size
        inner = hidden if generation_of(config) == 1 else width  # upstream's, with a projection
        self.embedding = nn.Embedding(length, inner if projection else width)
        layers = (nn.Linear(inner, hidden), nn.Tanh(), nn.Linear(hidden, width)) if projection else ()
        self.trans = nn.Sequential(*layers) if layers else None

    def forward(self, batch: int = 1) -> Tensor:
        """Keys and values [layers, 2, batch, heads, length, head_dim]."""
        flat = self.embedding.weight if self.trans is None else self.trans(self.embedding.weight)
        past = flat.view(self.shape).permute(1, 2, 3, 0, 4)[:, :, None]
        return past.expand(-1, -1, batch, -1, -1, -1)

    @torch.no_grad()
    def without_projection(self, config: PreTrainedConfig) -> "PrefixEncoder":
        """An encoder with the same keys and values but without a projection."""
        if self.trans is None:
            return self
        plain = PrefixEncoder(config, self.shape[0])
        plain.embedding.weight.copy_(self.trans(self.embedding.weight))
        return plain


def set_prefix(model: Any, encoder: PrefixEncoder | None, *, attention: str = "sdpa") -> None:
    """Let every query of `model` see the keys of `encoder`; None removes the prefix.

    `attention` is the implementation for a model without a prefix."""
    if generation_of(model.config) == 1:
        model.transformer.prefix_encoder = encoder
        model.config.pre_seq_len = encoder.shape[0] if encoder else None
        return
    if encoder is None:
        model.set_attn_implementation(attention)
        return
    for layer, past in zip(model.model.layers, encoder(), strict=True):
        layer.self_attn.prefix = past  # [2, 1, heads, length, head_dim]
    model.set_attn_implementation(ATTENTION)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' SDPA attention with `module.prefix` in front of `key` and `value`.

    All are [batch, heads, positions, head_dim]; the mask [batch, 1, queries, keys] is boolean
    (True: visible) or added to the scores."""
    prefix = module.prefix.to(query).expand(-1, len(query), -1, -1, -1)
    if attention_mask is not None:
        visible = attention_mask.dtype == torch.bool  # otherwise 0 is added to the score
        attention_mask = functional.pad(attention_mask, (prefix.shape[3], 0), value=visible)
    elif query.shape[2] > 1:
        raise ValueError("several queries without a mask: which of them see which keys is unknown")
    keys, values = torch.cat((prefix[0], key), dim=2), torch.cat((prefix[1], value), dim=2)
    return sdpa_attention_forward(module, query, keys, values, attention_mask, **kwargs)


def explicit_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' SDPA mask, which is never left out: SDPA's own causal mask has no prefix."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, explicit_mask)
