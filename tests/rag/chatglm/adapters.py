"""Adapters to test with: random ones in any layout, written as files."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from rag.chatglm.weights import ModuleRows, upstream_of

ROOT = "base_model.model."
IDS = torch.tensor([[64, 66, 300, 5, 17, 401, 90, 33]])


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def linears(model: PreTrainedModel, *, upstream: bool = False) -> dict[str, tuple[int, int]]:
    """(out, in) of the linear layers by name: this model's, or upstream's for ChatGLM2 and later."""
    sizes: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if hasattr(module, "out_features"):
            rows = upstream_of(name, model.config) if upstream else ModuleRows(name)
            out, _ = sizes.get(rows.module, (0, 0))
            sizes[rows.module] = (out + module.out_features, module.in_features)
    return sizes


def tensors(
    sizes: dict[str, tuple[int, int]], ends: Iterable[str], *, rank: int = 4, dora: bool = False
) -> dict[str, Tensor]:
    """Random LoRA tensors for the modules whose name ends so, with PEFT's keys."""
    torch.manual_seed(0)
    factors = {}
    for name, (out, width) in sizes.items():
        if name.endswith(tuple(ends)):
            factors[f"{ROOT}{name}.lora_A.weight"] = torch.randn(rank, width) * 0.1
            factors[f"{ROOT}{name}.lora_B.weight"] = torch.randn(out, rank) * 0.1
            if dora:
                factors[f"{ROOT}{name}.lora_magnitude_vector"] = torch.rand(out) + 0.5
    return factors


def write(directory: Path, factors: dict[str, Tensor], ends: Iterable[str], **config: Any) -> Path:
    """The adapter as PEFT saves it."""
    directory.mkdir(exist_ok=True)
    save_file(factors, directory / "adapter_model.safetensors")
    text = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": list(ends)} | config
    (directory / "adapter_config.json").write_text(json.dumps(text), "utf-8")
    return directory


def merged(weight: Tensor, factors: dict[str, Tensor], name: str, *, scale: float) -> Tensor:
    """The weight that an adapter turns `weight` into, by the formulas of LoRA and DoRA."""
    a, b = factors[f"{ROOT}{name}.lora_A.weight"], factors[f"{ROOT}{name}.lora_B.weight"]
    changed = weight.float() + scale * b @ a
    magnitude = factors.get(f"{ROOT}{name}.lora_magnitude_vector")
    if magnitude is None:
        return changed
    return changed * (magnitude / changed.norm(dim=1))[:, None]
