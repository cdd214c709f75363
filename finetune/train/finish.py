"""Trained numbers -> the adapter directory: strength chosen, written, read back, and recorded."""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.train.evaluation import evaluated
from finetune.train.logs import FILE, PICTURE, draw
from finetune.train.loop import Training
from finetune.train.lora import Lora
from finetune.types import Rows
from ingest.errors import UserError
from ingest.store.atomic import sync, write_whole
from rag.chatglm.adapter import Adapters, probe_logits
from rag.chatglm.adapter_files import read_adapter

STRENGTHS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
RECORD = "training.json"
APART, APART_HALF = 1e-4, 0.05
"""How far logits of the adapter read back may be from those of the trained one, as a share of the
largest, of float32 models and of others: `rag` holds adapters in the model's own precision, PEFT in
float32."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a training came to."""

    out: Path
    steps: int
    strength: float
    losses: Mapping[str, float]
    """Before (`dev_loss_before`, `general_loss_before`), of what was written (`dev_loss`,
    `general_loss`), and the least on the way (`dev_best`, in step `dev_step`)."""
    apart: float
    """The largest difference of logits between what was trained and what was read back, relative."""


def finish(training: Training, record: Mapping[str, Any]) -> Finished:
    """Write the adapter into the training's folder, once it is checked; the model is left without it.

    `UserError` where no strength keeps within the budget of forgetting, or the adapter, read back
    as `rag` does, answers otherwise than it was trained.
    """
    tuned, out = training.tuned, training.out
    strength, losses = kept(training)
    tuned.model.eval()
    with torch.no_grad():
        wanted = probe_logits(tuned.model)
    work = out / ".adapter.partial"
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    work.mkdir()
    tuned.write(work, strength=strength)
    training.contract.write(work)
    try:
        apart = check(tuned.released(), work, wanted)
        for path in sorted(work.iterdir()):
            path.replace(out / path.name)
        sync(out)
    finally:
        shutil.rmtree(work)
    draw(out / FILE, out / PICTURE)
    told = {
        "made_by": {n: version(n) for n in ("chatglm-rag", "torch", "transformers", "peft")},
        **record,
        "options": asdict(training.options),
        "data": training.sets.digests,
        "base_fingerprint": training.contract.base,
        "device": training.accelerator.device.type,
        "processes": training.accelerator.num_processes,
        "steps": training.done,
        "stopped": training.stopped,
        "losses": losses,
        "strength": strength,
        "read_back_within": apart,
    }
    text = json.dumps(told, indent=2, ensure_ascii=False, default=str) + "\n"
    write_whole(out / RECORD, text.encode())
    return Finished(out, training.done, strength, losses, apart)


def kept(training: Training) -> tuple[float, dict[str, float]]:
    """The strength that the adapter is left at, and its losses.

    What the options say; where they leave it open, and where the budget stopped the training, the
    strength of least loss on the dev set (without one, the largest) within the budget.
    """
    tuned, options, losses = training.tuned, training.options, dict(training.losses)
    asked = options.strength
    open_ = asked is None or bool(training.stopped)
    if not isinstance(tuned, Lora) or (not open_ and asked == 1):
        return 1.0, losses
    budget, before = options.forgetting_budget, losses.get("general_loss_before", math.inf)
    limit = before * (1 + budget) if budget else math.inf
    tried: list[tuple[float, float, dict[str, float]]] = []
    for strength in STRENGTHS if open_ else (asked or 1.0,):
        tuned.scale(strength)
        found = {
            name: mean
            for name, rows in training.sets.measured.items()
            if (mean := _mean(training, rows)) is not None
        }
        if not open_ or found.get("general_loss", 0.0) <= limit:
            tried.append((found.get("dev_loss", -strength), strength, found))
    if not tried:
        raise UserError(
            f"no strength from {STRENGTHS[-1]} on keeps the general loss within {limit:.4f}; the "
            "checkpoints stay; train with a lower --learning-rate, more --mix, or a larger "
            "--forgetting-budget",
            zh=f"强度低至 {STRENGTHS[-1]} 仍无法使通用损失不超过 {limit:.4f}；检查点已保留；"
            "请调低 --learning-rate、提高 --mix，或放宽 --forgetting-budget",
        )
    _, strength, found = min(tried, key=lambda each: each[:2])
    tuned.scale(strength)
    return strength, losses | found


def check(model: Any, out: Path, wanted: Tensor) -> float:
    """How far the adapter in `out`, on the bare model, is from `wanted` logits, relative."""
    adapters = Adapters(model)
    adapters.attach(read_adapter(out), out.name)  # also refuses one that changes nothing
    adapters.activate(out.name)
    found = probe_logits(model)
    adapters.activate(None)
    apart = float((found - wanted).abs().max() / wanted.abs().max())
    if not apart <= (APART if model.dtype == torch.float32 else APART_HALF):
        raise UserError(
            f"the adapter, read back, gives logits that differ by {apart:.1%} from those it was "
            f"trained to; it is not put into {out.parent}, whose checkpoints stay; please report this",
            zh=f"适配器读回后输出相差 {apart:.1%}，未写入 {out.parent}；检查点已保留，请报告此问题",
        )
    return apart


def _mean(training: Training, rows: Rows) -> float | None:
    """A token's loss; None where the rows have none to learn."""
    length = training.options.pack_length
    loss, count = evaluated(training.tuned.model, rows, length=length, step=training.done)
    return float(loss / count) if count else None
