"""What transformers' `generate` has to know of ChatGLM-6B: positions have two rows, masks come late.

Signatures are open where those of transformers differ between its versions.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import LongTensor, Tensor
from transformers import GenerationMixin

from rag.chatglm.configuration import CACHE, Glm1Config


class GenerationMixin2D(GenerationMixin):
    """`generate` for a model whose positions are [B, 2, S]."""

    config: Glm1Config
    positions: ClassVar[Callable[..., LongTensor]]

    def generate(self, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """As transformers'; upstream's bool mask [B, 1, S, S] is taken too, for its padding."""
        if attention_mask is not None and attention_mask.dim() == 4:  # real tokens see themselves
            attention_mask = (~attention_mask[:, 0].diagonal(dim1=-2, dim2=-1)).long()
        parent: Any = super()
        return parent.generate(*args, attention_mask=attention_mask, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """What one forward of `generate` takes: the tokens that the cache does not hold yet."""
        cache, attention_mask = kwargs.get(CACHE), kwargs.get("attention_mask")
        held = cache.get_seq_length() if cache is not None else 0
        if not held and attention_mask is not None and not attention_mask[:, -1].all():
            raise ValueError("a prompt is padded on the right; pad on the left to generate")
        position_ids = kwargs.get("position_ids")
        if position_ids is None:
            position_ids = self.positions(input_ids, attention_mask)
        # P-Tuning's keys are in the cache too, and stand for no token.
        new = input_ids.shape[1] - max(0, held - (self.config.pre_seq_len or 0))
        return {
            "input_ids": input_ids[:, -new:],
            "position_ids": position_ids[:, :, -new:],
            "attention_mask": attention_mask,
            "use_cache": kwargs.get("use_cache"),
            "logits_to_keep": kwargs.get("logits_to_keep", 0),
            CACHE: cache,
        }

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Lengthen positions, if the caller gave any: row 0 stays at the hole, row 1 goes on."""
        places = model_kwargs.pop("position_ids", None)
        parent: Any = super()
        model_kwargs = parent._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        if places is not None:
            new = torch.arange(1, kwargs.get("num_new_tokens", 1) + 1, device=places.device)
            new = places[..., -1:] + torch.stack((new * 0, new))
            model_kwargs["position_ids"] = torch.cat((places, new), dim=-1)
        return model_kwargs

    def _prepare_position_ids_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """Newer transformers count 1-D positions here; `prepare_inputs_for_generation` does it."""

    def _expand_inputs_for_generation(
        self, *args: Any, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Repeat rows, for beams; newer transformers take positions [3, B, S] for granted."""
        position_ids = kwargs.pop("position_ids", None)
        parent: Any = super()
        ids, more = parent._expand_inputs_for_generation(*args, **kwargs)
        if position_ids is not None:
            more["position_ids"] = position_ids.repeat_interleave(kwargs["expand_size"], dim=0)
        return ids, more
