"""A LoRA adapter for other tools: PEFT's files under the module names of upstream's code or transformers'."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor
from transformers import Glm4Config

from finetune.names import Layout, Lora, rename
from ingest.errors import UserError
from ingest.store.atomic import new_folder, write_whole
from rag.chatglm.adapter import check_generation
from rag.chatglm.adapter_files import CONFIG, LORA, LoraAdapter, read_adapter
from rag.chatglm.configuration import generation_of
from rag.chatglm.folder import copy_kept
from rag.chatglm.loading import empty, read_config
from rag.chatglm.lora import placed
from rag.chatglm.weights import upstream_of

ROOT = "base_model.model."
"""How PEFT's keys begin."""
BESIDE = ("training.json", "README.md")
"""What else is copied of an adapter's folder."""
NEW: dict[str, Any] = {"bias": "none", "inference_mode": True, "lora_dropout": 0.0}
NEW |= {"peft_type": "LORA", "task_type": "CAUSAL_LM"}
"""What adapter_config.json says where there was none."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What came of an export."""

    modules: int
    notes: tuple[str, ...]
    """What was assumed of the adapter, to be told to the user."""


def export(
    adapter: Path, directory: Path, target: Path, *, to: Layout, alpha: float | None = None
) -> Exported:
    """Write `adapter` to the folder `target` with upstream's or transformers' module names.

    `directory` is its model's, of which config.json is read. `alpha` is `read_adapter`'s. The same
    adapter gives the same bytes. `UserError` where it is not LoRA, another model's, or has no such
    form.
    """
    config = read_config(directory)
    read = read_adapter(adapter, alpha=alpha)
    if not isinstance(read, LoraAdapter):
        raise UserError(
            f"{adapter} is a P-Tuning prefix, which names no modules: it is the same file for "
            "upstream's code; copy it",
            zh=f"{adapter} 是 P-Tuning 前缀，不含模块名，原版代码可直接使用；请直接复制",
        )
    if to == "upstream" and isinstance(config, Glm4Config):
        raise UserError(
            "GLM-4-0414 was only ever published with transformers' names; say --to native",
            zh="GLM-4-0414 仅以 transformers 的名称发布；请用 --to native",
        )
    check_generation(read, config)
    if generation_of(config) == 1:
        to = "native"  # ChatGLM-6B has upstream's names here
    model = empty(config)
    placed(model, read.modules, read.config)  # checks names, shapes and numbers
    renamed = rename(
        {name: Lora(part, read.config.scale_of(name)) for name, part in read.modules.items()},
        config,
        to=to,
    )
    known = {
        upstream_of(name, config).module if to == "upstream" else name
        for name, module in model.named_modules()
        if hasattr(module, "in_features")
    }
    with new_folder(target) as work:
        data = _settings(read, renamed, known, directory)
        text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        write_whole(work / CONFIG, text.encode())
        write_whole(work / LORA[0], save(_tensors(renamed), metadata={"format": "pt"}))
        replace(read.contract, generation=generation_of(config)).write(work)
        copy_kept(adapter, work)
        for name in BESIDE:
            if (adapter / name).is_file():
                shutil.copyfile(adapter / name, work / name)
    return Exported(len(renamed), read.notes)


def _tensors(modules: Mapping[str, Lora]) -> dict[str, Tensor]:
    """By PEFT's keys, each with memory of its own."""
    made: dict[str, Tensor] = {}
    for name, lora in modules.items():
        parts = {
            "lora_A.weight": lora.factors.a,
            "lora_B.weight": lora.factors.b,
            "lora_B.bias": lora.factors.bias,
            "lora_magnitude_vector": lora.factors.magnitude,
        }
        made |= {
            f"{ROOT}{name}.{leaf}": tensor.contiguous().clone()
            for leaf, tensor in parts.items()
            if tensor is not None
        }
    return made


def _settings(
    read: LoraAdapter, modules: Mapping[str, Lora], known: set[str], directory: Path
) -> dict[str, Any]:
    """What adapter_config.json says: as before, but for what depends on names."""
    path, config = read.source / CONFIG, read.config
    before = json.loads(path.read_text("utf-8")) if path.is_file() else NEW
    before = {"base_model_name_or_path": directory.name, **before}
    modules = dict(sorted(modules.items()))
    ranks = {name: lora.rank for name, lora in modules.items()}
    alphas = {
        name: _whole(lora.scale * (math.sqrt(lora.rank) if config.rslora else lora.rank))
        for name, lora in modules.items()
    }
    rank, rank_pattern = _patterns(ranks)
    alpha, alpha_pattern = _patterns(alphas)
    ends = {_end(name) for name in modules}
    all_of_them = {name for name in known if _end(name) in ends} == set(modules)
    return before | {
        "r": rank,
        "rank_pattern": rank_pattern,
        "lora_alpha": alpha,
        "alpha_pattern": alpha_pattern,
        "target_modules": sorted(ends if all_of_them else modules),
        "auto_mapping": None,
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "lora_bias": config.bias,
    }


def _patterns(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The most frequent value, and the others by the ends of names where these tell, else by names."""
    usual = Counter(values.values()).most_common(1)[0][0]
    by_end: dict[str, set[float]] = {}
    for name, value in values.items():
        by_end.setdefault(_end(name), set()).add(value)
    others = {
        _end(name) if len(by_end[_end(name)]) == 1 else name: value
        for name, value in values.items()
        if value != usual
    }
    return usual, others


def _whole(value: float) -> float:
    """A whole number that rounding made almost one."""
    return round(value) if math.isclose(value, round(value), rel_tol=1e-12) else value


def _end(name: str) -> str:
    return name.rpartition(".")[2]
