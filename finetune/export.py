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

from ingest.errors import UserError
from ingest.store.atomic import new_folder
from rag.chatglm.adapter import check_generation
from rag.chatglm.adapter_files import Adapter, read_adapter, write_lora
from rag.chatglm.configuration import generation_of
from rag.chatglm.loading import empty, read_config
from rag.chatglm.lora import Factors, LoraConfig, layer_factors
from rag.chatglm.save import copy_side_files
from rag.chatglm.weights import ModuleRows, natives_of, upstream_of

Layout = Literal["upstream", "native"]


@dataclass(frozen=True, slots=True)
class LoraModule:
    """The tensors of one module, and what BA is multiplied by."""

    factors: Factors
    scale: float

    @property
    def rank(self) -> int:
        return self.factors.a.shape[0]


def rename(
    modules: Mapping[str, LoraModule], config: PreTrainedConfig, *, to: Layout
) -> dict[str, LoraModule]:
    """The same change of the model under other names; those that are such names already stay."""
    made: dict[str, LoraModule] = {}
    if to == "native":
        for name, lora in modules.items():
            natives = natives_of(name) or [name]
            rows = [upstream_of(native, config) for native in natives]
            cut = split(lora, rows) if len(natives) > 1 else [lora]
            made |= {n: part for n, part in zip(natives, cut, strict=True) if part is not None}
        return made
    for name in modules:
        rows = upstream_of(name, config)
        natives = natives_of(rows.module)
        if len(natives) <= 1 or name == rows.module:
            made[rows.module] = modules[name]
        elif rows.module not in made:
            sizes = [
                (r.end or 0) - (r.start or 0) for r in (upstream_of(n, config) for n in natives)
            ]
            made[rows.module] = fuse(
                [modules.get(native) for native in natives], sizes, rows.module
            )
    return made


def fuse(parts: Sequence[LoraModule | None], sizes: Sequence[int], name: str) -> LoraModule:
    """One LoRA whose rows are those of `parts`, `sizes` many each; None adds nothing to its rows.

    `UserError` where DoRA has magnitudes for some of the rows only.
    """
    held = [part for part in parts if part is not None]
    scale = max((part.scale for part in held), key=abs)
    first = held[0].factors
    shared = all(torch.equal(part.factors.a, first.a) for part in held)
    # The parts that a column of B belongs to, side by side.
    columns = [held] if shared else [[part] for part in held]

    def rows(part: LoraModule | None, size: int) -> Tensor:
        blocks = [
            _scaled(part.factors.b, part.scale, scale)
            if part is not None and any(other is part for other in block)
            else first.b.new_zeros(size, block[0].rank)
            for block in columns
        ]
        return torch.cat(blocks, dim=1)

    def offset(part: LoraModule | None, size: int) -> Tensor:
        if part is None or part.factors.bias is None:
            return first.b.new_zeros(size)
        return _scaled(part.factors.bias, part.scale, scale)

    pairs = list(zip(parts, sizes, strict=True))
    a = torch.cat([block[0].factors.a for block in columns])
    b = torch.cat([rows(*pair) for pair in pairs])
    bias = None if first.bias is None else torch.cat([offset(*pair) for pair in pairs])
    return LoraModule(Factors(a, b, bias, _magnitudes(parts, name)), scale)


def _scaled(tensor: Tensor, scale: float, wanted: float) -> Tensor:
    """What needs to be multiplied by `wanted` where `tensor` was to be by `scale`."""
    return tensor if scale == wanted else tensor.float() * (scale / wanted)


def _magnitudes(parts: Sequence[LoraModule | None], name: str) -> Tensor | None:
    found = [None if part is None else part.factors.magnitude for part in parts]
    held = [magnitude for magnitude in found if magnitude is not None]
    if held and len(held) < len(parts):
        raise UserError(
            "DoRA gives all rows of {name} a magnitude, but this adapter has none for "
            "{lacking} of its {parts} parts; train queries, keys and values, or "
            "merge the adapter",
            name=name,
            lacking=len(parts) - len(held),
            parts=len(parts),
        )
    return torch.cat(held) if held else None


def split(lora: LoraModule, rows: Sequence[ModuleRows]) -> list[LoraModule | None]:
    """The inverse of `fuse`: None for rows that nothing is added to, if there are others."""
    a, whole = lora.factors.a, lora.factors
    b = [part.cut(whole.b) for part in rows]
    bias = [None if whole.bias is None else part.cut(whole.bias) for part in rows]
    magnitude = [None if whole.magnitude is None else part.cut(whole.magnitude) for part in rows]
    empty = [
        whole.magnitude is None and not part.any() and (offset is None or not offset.any())
        for part, offset in zip(b, bias, strict=True)
    ]
    kept = [i for i, nothing in enumerate(empty) if not nothing] or list(range(len(rows)))
    blocks = _blocks([b[i] for i in kept])
    made: list[LoraModule | None] = [None] * len(rows)
    for place, i in enumerate(kept):
        columns = blocks[place] if blocks else slice(None)
        factors = Factors(a[columns], b[i][:, columns], bias[i], magnitude[i])
        made[i] = LoraModule(factors, lora.scale)
    return made


def _blocks(parts: Sequence[Tensor]) -> list[slice] | None:
    """The columns of each part where all else of it is zero; None where they share columns."""
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
"""How PEFT's keys begin."""
BESIDE = ("training.json", "README.md")
"""What else is copied of an adapter's folder."""
NEW: dict[str, Any] = {"bias": "none", "inference_mode": True, "lora_dropout": 0.0}
NEW |= {"peft_type": "LORA", "task_type": "CAUSAL_LM"}
"""What adapter_config.json says where there was none."""


@dataclass(frozen=True, slots=True)
class ExportedAdapter:
    """What came of an export."""

    modules: int
    notes: tuple[str, ...]
    """What was assumed of the adapter, to be told to the user."""


def export(
    adapter: Path, directory: Path, target: Path, *, to: Layout, alpha: float | None = None
) -> ExportedAdapter:
    """Write `adapter` to the folder `target` with upstream's or transformers' module names.

    `directory` is its model's, of which config.json is read. `alpha` is `read_adapter`'s. The same
    adapter gives the same bytes. `UserError` where it is not LoRA, another model's, or has no such
    form.
    """
    config = read_config(directory)
    read = read_adapter(adapter, alpha=alpha)
    if read.config is None:
        raise UserError(
            "{adapter} is a P-Tuning prefix, which names no modules: it is the same file for "
            "upstream's code; copy it",
            adapter=adapter,
        )
    if to == "upstream" and isinstance(config, Glm4Config):
        raise UserError(
            "GLM-4-0414 was only ever published with transformers' names; say --to native"
        )
    check_generation(read, config)
    if generation_of(config) == 1:
        to = "native"  # ChatGLM-6B has upstream's names here
    model = empty(config)
    layer_factors(model, read.modules, read.config)  # checks names, shapes and numbers
    renamed = rename(
        {name: LoraModule(part, read.config.scale_of(name)) for name, part in read.modules.items()},
        config,
        to=to,
    )
    known = {
        upstream_of(name, config).module if to == "upstream" else name
        for name, module in model.named_modules()
        if hasattr(module, "in_features")
    }
    with new_folder(target) as work:
        write_lora(work, _settings(read, read.config, renamed, known, directory), _tensors(renamed))
        replace(read.contract, generation=generation_of(config)).write(work)
        copy_side_files(adapter, work)
        for name in BESIDE:
            if (adapter / name).is_file():
                shutil.copyfile(adapter / name, work / name)
    return ExportedAdapter(len(renamed), read.notes)


def _tensors(modules: Mapping[str, LoraModule]) -> dict[str, Tensor]:
    """By PEFT's keys."""
    made: dict[str, Tensor] = {}
    for name, lora in modules.items():
        parts = {
            "lora_A.weight": lora.factors.a,
            "lora_B.weight": lora.factors.b,
            "lora_B.bias": lora.factors.bias,
            "lora_magnitude_vector": lora.factors.magnitude,
        }
        made |= {
            f"{ROOT}{name}.{leaf}": tensor for leaf, tensor in parts.items() if tensor is not None
        }
    return made


def _settings(
    read: Adapter,
    config: LoraConfig,
    modules: Mapping[str, LoraModule],
    known: set[str],
    directory: Path,
) -> dict[str, Any]:
    """What adapter_config.json says: as before, but for what depends on names."""
    before = {"base_model_name_or_path": directory.name, **(read.settings or NEW)}
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
