"""Tiny models of each generation in a folder, and what adapters on them may change."""

from pathlib import Path
from typing import Any

import torch
from transformers import Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForCausalLM

from tests.rag.chatglm.golden import COPY

FUSED = ("query_key_value", "self_attention.dense", "dense_h_to_4h", "dense_4h_to_h")
NATIVE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")
GLM1 = ("query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h")
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "intermediate_size": 48, "vocab_size": 512, "attention_bias": True,
    "pad_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip


def base(kind: str, folder: Path) -> Path:
    """The folder of `v1`, `v2`, `v3` (float16, upstream's layout), `glm4` or `glm4-0414` (float32)."""
    if kind in ("v1", "v2", "v3"):
        return COPY / kind / "tiny_safetensors"
    torch.manual_seed(0)
    model = GlmForCausalLM(GlmConfig(**SIZES)) if kind == "glm4" else Glm4ForCausalLM(Glm4Config(**SIZES))
    with torch.no_grad():  # as a trained model's
        for name, value in model.named_parameters():
            value.mul_(1 + 0.1 * torch.randn_like(value)) if "norm" in name else value.mul_(4)
    target = folder / kind
    model.save_pretrained(target)
    return target
