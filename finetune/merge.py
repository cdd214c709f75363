"""A model and an adapter -> one model, written layer by layer.

The sum is computed in float32 and rounded to the precision of the base. The share of the adapter's
change that rounding takes is summed up on the way; if it is most of it, the model is not kept.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, cat
from transformers import Glm4Config, PreTrainedConfig

from ingest.errors import UserError
from ingest.store.atomic import new_folder
from rag.chatglm.adapter_files import Adapter
from rag.chatglm.configuration import MERGED, generation_of, upstream_config
from rag.chatglm.export import MergeReport, WeightMerger, empty_base
from rag.chatglm.loading import Shards, copy_side_files, read_model_config
from rag.chatglm.lora import digest, layer_factors
from rag.chatglm.weights import Checkpoint, WeightSource, natives_of, pieces, upstream_of


def merge(
    directory: Path,
    adapter: Adapter,
    target: Path,
    *,
    upstream: bool = False,
    dtype: torch.dtype | None = None,
    progress: Callable[[float], None] | None = None,
) -> MergeReport:
    """Write `directory`'s model with the LoRA, rsLoRA or DoRA `adapter` in it to the folder `target`.

    `upstream` writes upstream's names and config keys. `dtype` is that of all weights; None keeps
    each one's. A model's folder has no place for the adapter's template and stop ids. `progress` gets
    the share written, 0 to 1. Raises `UserError`, and leaves nothing, if the base holds codes, if the
    adapter can't be merged, belongs to another model or is merged into this one already, or if
    rounding takes most of its change.
    """
    config = read_model_config(directory)
    source = WeightSource.open(directory, config)
    codes = f"int{source.bits}" if source.bits else getattr(config, "quantization_config", None)
    if codes:
        raise UserError(
            "{directory} holds {held} codes, whose steps are larger than what an adapter adds: "
            "the sum would be rounded away; merge into the float16 model, then: rag quantize",
            directory=directory,
            held=codes.get("quant_method", "quantized") if isinstance(codes, dict) else codes,
        )
    if upstream and isinstance(config, Glm4Config):
        raise UserError("GLM-4-0414 was only ever published in transformers' layout; leave --upstream out")
    if adapter.config is None:
        raise UserError(
            "{adapter} is a P-Tuning prefix: keys and values that each layer attends to, not a "
            "change of weights, so that there is nothing to merge; use it beside the model",
            adapter=adapter.source,
        )
    with new_folder(target) as work:
        model = empty_base(source, adapter)
        merging = WeightMerger(dict(layer_factors(model, adapter.modules, adapter.config)), dtype)
        if config.tie_word_embeddings and "lm_head" in merging.parts:
            raise UserError(
                "the adapter changes lm_head, whose weight is the embedding's in this model: merged, "
                "it would change the embedding too; use the adapter beside the model"
            )
        shards = Shards(work)
        for name, tensor in _tensors(source, model, merging, upstream=upstream, progress=progress):
            shards.add(name, tensor)
        shards.close()
        Checkpoint.open(work)  # every tensor of the index is in its file
        report = merging.report()
        earlier = getattr(config, MERGED, None) or ()
        setattr(config, MERGED, [*earlier, digest(merging.parts.items())])
        _write_config(config, work, type(model).__name__, dtype, upstream=upstream)
        copy_side_files(directory, work)
    return report


def _tensors(
    source: WeightSource,
    model: Any,
    merging: WeightMerger,
    *,
    upstream: bool,
    progress: Callable[[float], None] | None,
) -> Iterator[tuple[str, Tensor]]:
    """All tensors to write, by name; three become one of upstream's as soon as all of them are read."""
    upstream = upstream and generation_of(source.config) > 1  # ChatGLM-6B's names are its own
    waiting: dict[str, list[Tensor]] = {}
    for path, piece in pieces(model, source, progress=progress):
        module = upstream_of(path, source.config).module if upstream else path
        shared = max(1, len(natives_of(module))) if upstream else 1
        for kind, tensor in merging(path, piece).items():
            name = f"{module}.{kind}"
            waiting.setdefault(name, []).append(tensor)
            if len(waiting[name]) == shared:
                parts = waiting.pop(name)
                yield name, parts[0] if shared == 1 else cat(parts)
    assert not waiting


def _write_config(
    config: PreTrainedConfig, work: Path, kind: str, dtype: torch.dtype | None, *, upstream: bool
) -> None:
    if dtype is not None:
        config.dtype = dtype
    if not upstream:
        config.architectures = [kind]
        config.save_pretrained(work)
        return
    data = upstream_config(config)
    if generation_of(config) > 1:
        data["generation"] = generation_of(config)
    (work / "config.json").write_text(json.dumps(data, indent=2, default=str) + "\n", "utf-8")
