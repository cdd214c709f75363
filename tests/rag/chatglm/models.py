"""Models with tokenizers of their size, in upstream's layout."""

import shutil
from pathlib import Path

import torch

from rag.chatglm.configuration import ChatGLM2Config
from rag.chatglm.modeling_chatglm import ChatGLM2ForCausalLM
from tests.rag.chatglm import vocabularies
from tests.rag.chatglm.golden import COPY


def golden_model(version: str, target: Path, kind: str = "tiny_safetensors") -> Path:
    """A golden model's folder, `v2` or `v3`, with a small tokenizer beside it."""
    shutil.copytree(COPY / version / kind, target)
    return vocabularies.small_3(target)


def random_model(target: Path, generation: int) -> Path:
    """A float16 model with the published vocabulary of ChatGLM2 or 3, or a small one of GLM-4."""
    torch.manual_seed(generation)
    config = ChatGLM2Config(
        generation=generation, vocab_size=2048 if generation == 4 else 65024, hidden_size=16,
        intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, rms_norm_eps=1e-5, max_position_embeddings=256, pad_token_id=0,
        rope_parameters={
            "rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5,
        },
    )  # fmt: skip
    ChatGLM2ForCausalLM(config).half().save_pretrained(target, upstream=True)
    if generation == 4:
        return vocabularies.small_4(target)
    return vocabularies.published(target, generation)
