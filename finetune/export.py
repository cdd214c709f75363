"""A LoRA adapter for other tools: PEFT's files under the module names of upstream's code or transformers'."""

import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Glm4Config, PreTrainedConfig

from finetune.train.lora import stated
from ingest.errors import UserError
from ingest.store.atomic import new_folder
from rag.chatglm.adapter import check_generation
from rag.chatglm.adapter_files import Adapter, read_adapter, write_lora
from rag.chatglm.configuration import generation_of
from rag.chatglm.loading import copy_side_files, empty, read_model_config
from rag.chatglm.lora import Factors, LoraConfig, layer_factors
from rag.chatglm.weights import ModuleRows, natives_of, upstream_of

Layout = Literal["upstream", "native"]


@dataclass(frozen=True, slots=True)
class LoraModule:
    """The tensors of one module, and the factor of BA."""

    factors: Factors
    scale: float


def rename(
    modules: Mapping[str, LoraModule], config: PreTrainedConfig, *, to: Layout
) -> dict[str, LoraModule]:
    """The same change of the model under other names; names in the wanted layout stay."""
    renamed: dict[str, LoraModule] = {}
    if to == "native":
        for name, lora in modules.items():
            natives = natives_of(name) or [name]
            rows = [upstream_of(native, config) for native in natives]
            cut = split(lora, rows) if len(natives) > 1 else [lora]
            renamed |= {n: part for n, part in zip(natives, cut, strict=True) if part is not None}
        return renamed
    for name in modules:
        rows = upstream_of(name, config)
        natives = natives_of(rows.module)
        if len(natives) <= 1 or name == rows.module:
            renamed[rows.module] = modules[name]
        elif rows.module not in renamed:
            spans = [upstream_of(native, config) for native in natives]
            sizes = [(span.end or 0) - (span.start or 0) for span in spans]
            parts = [modules.get(native) for native in natives]
            renamed[rows.module] = fuse(parts, sizes, rows.module)
    return renamed


def fuse(parts: Sequence[LoraModule | None], sizes: Sequence[int], name: str) -> LoraModule:
    """One LoRA with the rows of `parts`, whose numbers are `sizes`; None adds nothing to its rows.

    Raises `UserError` if DoRA has magnitudes for only some of the rows.
    """
    present = [part for part in parts if part is not None]
    scale = max((part.scale for part in present), key=abs)
    first = present[0].factors
    shared = all(torch.equal(part.factors.a, first.a) for part in present)
    magnitudes = [part.factors.magnitude for part in present if part.factors.magnitude is not None]
    if magnitudes and len(magnitudes) < len(parts):
        raise UserError(
            "DoRA gives all rows of {name} a magnitude, but this adapter has none for "
            "{lacking} of its {parts} parts; train queries, keys and values, or "
            "merge the adapter",
            name=name, lacking=len(parts) - len(magnitudes), parts=len(parts),
        )  # fmt: skip
    # Parts that share A share their columns of B, too.
    a = first.a if shared else torch.cat([part.factors.a for part in present])
    width = len(a) if shared else 0
    rows: list[Tensor] = []
    offsets: list[Tensor] = []
    for part, size in zip(parts, sizes, strict=True):
        b = part.factors.b if part else first.b.new_zeros(size, width)
        offset = part.factors.bias if part else None
        factor = part.scale if part else scale
        rows.append(_scaled(b, factor, scale))
        offsets.append(_scaled(first.b.new_zeros(size) if offset is None else offset, factor, scale))
    b = torch.cat(rows) if shared else torch.block_diag(*rows)
    bias = None if first.bias is None else torch.cat(offsets)
    return LoraModule(Factors(a, b, bias, torch.cat(magnitudes) if magnitudes else None), scale)


def _scaled(tensor: Tensor, scale: float, wanted: float) -> Tensor:
    """`tensor`, which has the factor `scale`, changed so that its factor is `wanted`."""
    return tensor if scale == wanted else tensor.float() * (scale / wanted)


def split(lora: LoraModule, rows: Sequence[ModuleRows]) -> list[LoraModule | None]:
    """The inverse of `fuse`: None for rows that nothing is added to, unless these are all."""
    whole = lora.factors
    b = [part.cut(whole.b) for part in rows]
    bias = [None if whole.bias is None else part.cut(whole.bias) for part in rows]
    magnitude = [None if whole.magnitude is None else part.cut(whole.magnitude) for part in rows]
    changed = [
        i
        for i, (part, offset) in enumerate(zip(b, bias, strict=True))
        if whole.magnitude is not None or part.any() or (offset is not None and offset.any())
    ] or list(range(len(rows)))
    blocks = _blocks([b[i] for i in changed]) or [slice(None)] * len(changed)
    modules: list[LoraModule | None] = [None] * len(rows)
    for i, columns in zip(changed, blocks, strict=True):
        factors = Factors(whole.a[columns], b[i][:, columns], bias[i], magnitude[i])
        modules[i] = LoraModule(factors, lora.scale)
    return modules


def _blocks(parts: Sequence[Tensor]) -> list[slice] | None:
    """The columns of each part, if all its others are zero; None if the parts share columns."""
    rank, count = parts[0].shape[1], len(parts)
    if count == 1 or rank % count:
        return None
    width = rank // count
    blocks = [slice(i * width, (i + 1) * width) for i in range(count)]
    for part, block in zip(parts, blocks, strict=True):
        if part[:, : block.start].any() or part[:, block.stop :].any():
            return None
    return blocks


ROOT = "base_model.model."
"""The start of PEFT's keys."""
BESIDE = ("training.json", "README.md")
"""Other files of an adapter's folder that are copied."""
NEW: dict[str, Any] = {"bias": "none", "inference_mode": True, "lora_dropout": 0.0}
NEW |= {"peft_type": "LORA", "task_type": "CAUSAL_LM"}
"""The values of adapter_config.json if there was none."""


def export(
    adapter: Path, directory: Path, target: Path, *, to: Layout, alpha: float | None = None
) -> tuple[int, tuple[str, ...]]:
    """Write `adapter` to the folder `target` with upstream's or transformers' module names; returns
    their number, and assumptions about the adapter.

    `directory` is its model's; only config.json is read. `alpha` is `read_adapter`'s. The same
    adapter gives the same bytes. Raises `UserError` if it is not LoRA, belongs to another model, or
    can't have that layout.
    """
    config = read_model_config(directory)
    source = read_adapter(adapter, alpha=alpha)
    if source.config is None:
        raise UserError(
            "{adapter} is a P-Tuning prefix, which names no modules: it is the same file for "
            "upstream's code; copy it",
            adapter=adapter,
        )
    if to == "upstream" and isinstance(config, Glm4Config):
        raise UserError("GLM-4-0414 was only ever published with transformers' names; use --to native")
    check_generation(source, config)
    if generation_of(config) == 1:
        to = "native"  # ChatGLM-6B has upstream's names here
    model = empty(config)
    layer_factors(model, source.modules, source.config)  # checks names, shapes and numbers
    scale_of = source.config.scale_of
    modules = {name: LoraModule(part, scale_of(name)) for name, part in source.modules.items()}
    renamed = rename(modules, config, to=to)
    known = {
        upstream_of(name, config).module if to == "upstream" else name
        for name, module in model.named_modules()
        if hasattr(module, "in_features")
    }
    with new_folder(target) as work:
        write_lora(work, _settings(source, source.config, renamed, known, directory), _tensors(renamed))
        replace(source.contract, generation=generation_of(config)).write(work)
        copy_side_files(adapter, work)
        for name in BESIDE:
            if (adapter / name).is_file():
                shutil.copyfile(adapter / name, work / name)
    return len(renamed), source.notes


def _tensors(modules: Mapping[str, LoraModule]) -> dict[str, Tensor]:
    """By PEFT's keys."""
    leaves = ("lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector")
    tensors: dict[str, Tensor] = {}
    for name, lora in modules.items():
        parts = (lora.factors.a, lora.factors.b, lora.factors.bias, lora.factors.magnitude)
        for leaf, tensor in zip(leaves, parts, strict=True):
            if tensor is not None:
                tensors[f"{ROOT}{name}.{leaf}"] = tensor
    return tensors


def _settings(
    source: Adapter, config: LoraConfig, modules: Mapping[str, LoraModule], known: set[str], directory: Path
) -> dict[str, Any]:
    """adapter_config.json: as before, except for values that depend on names."""
    before = {"base_model_name_or_path": directory.name, **(source.settings or NEW)}
    modules = dict(sorted(modules.items()))
    ranks = {name: len(lora.factors.a) for name, lora in modules.items()}
    alphas: dict[str, float] = {}
    for name, lora in modules.items():
        alpha = lora.scale * (math.sqrt(ranks[name]) if config.rslora else ranks[name])
        whole = round(alpha)
        alphas[name] = whole if math.isclose(alpha, whole, rel_tol=1e-12) else alpha
    rank, rank_pattern = _patterns(ranks)
    alpha, alpha_pattern = _patterns(alphas)
    ends = {_end(name) for name in modules}
    all_of_them = {name for name in known if _end(name) in ends} == set(modules)
    absent = ("auto_mapping", "exclude_modules", "layers_to_transform", "layers_pattern")
    changed = {
        "r": rank,
        "rank_pattern": rank_pattern,
        "lora_alpha": alpha,
        "alpha_pattern": alpha_pattern,
        "target_modules": sorted(ends if all_of_them else modules),
        **dict.fromkeys(absent),
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "lora_bias": config.bias,
    }
    return stated(before | changed)


def _patterns(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The most frequent value, and the others by the ends of names if these are unique, else by
    names."""
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


def _end(name: str) -> str:
    return name.rpartition(".")[2]
