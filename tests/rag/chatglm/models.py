"""Models with tokenizers of their size, in upstream's layout."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rag.chatglm.configuration import ChatGLM2Config, generation_of, upstream_config
from rag.chatglm.modeling_chatglm import ChatGLM2ForCausalLM
from rag.chatglm.weights import natives_of, upstream_of
from tests.rag.chatglm import vocabularies
from tests.rag.chatglm.golden import COPY


def to_upstream(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Native names and tensors -> upstream's, the inverse of what loading does."""
    fused: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        fused.setdefault(f"{upstream_of(module, config).module}.{kind}", {})[module] = tensor
    order = {name: natives_of(name.rpartition(".")[0]) or [*parts] for name, parts in fused.items()}
    return {name: torch.cat([parts[each] for each in order[name]]) for name, parts in fused.items()}


def save_upstream(model: Any, folder: Path) -> None:
    """The model in upstream's layout: its names, shapes and config keys."""
    known = generation_of(model.config) == 1
    state = model.state_dict() if known else to_upstream(model.state_dict(), model.config)
    model.save_pretrained(folder, state_dict=state)
    (folder / "config.json").write_text(json.dumps(upstream_config(model.config), default=str), "utf-8")


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
    save_upstream(ChatGLM2ForCausalLM(config).half(), target)
    if generation == 4:
        return vocabularies.small_4(target)
    return vocabularies.published(target, generation)
