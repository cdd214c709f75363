"""ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B-chat: transformers' `Glm` with upstream's rotary table."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GlmForCausalLM

from rag.chatglm.configuration import ChatGLM2Config
from rag.chatglm.loading import Native


class ChatGLM2Rotary(nn.Module):
    """ChatGLM2's table: frequency, position and angle are rounded to the model's precision.

    In float16 a cosine at a large position is off by more than 1, and the published weights were
    trained on that (as modeling_chatglm.py of ChatGLM2, `RotaryEmbedding.forward_impl`). ChatGLM3
    and GLM-4 compute angles in float32, as transformers does.
    """

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__()
        rope: Any = config.rope_parameters
        self.dim = int(rope["partial_rotary_factor"] * (config.head_dim or 0))
        self.base = float(rope["rope_theta"])

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, [B, S, dim] of x's dtype, for positions [B, S]; halves are equal."""
        pairs = torch.arange(0, self.dim, 2, dtype=x.dtype, device=x.device)
        theta = 1.0 / (self.base ** (pairs / self.dim))
        angle = (position_ids[..., None].to(x.dtype) * theta).float()
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


class ChatGLM2ForCausalLM(Native, GlmForCausalLM):
    """A `GlmForCausalLM` that loads upstream's checkpoints and computes as they were trained."""

    config_class = ChatGLM2Config

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__(config)
        if config.generation == 2:
            self.model.set_submodule("rotary_emb", ChatGLM2Rotary(config))
