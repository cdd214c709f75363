"""Trained numbers -> the adapter directory: strength chosen, written, read back, and recorded."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.train.log import FILE, PICTURE, draw
from finetune.train.loop import Sets, Training, Tuned
from finetune.train.lora import Lora
from finetune.train.loss import evaluated
from ingest.errors import UserError
from ingest.store.files import write_whole
from rag.chatglm.adapter import Adapters, probe_logits
from rag.chatglm.adapter_files import read_adapter

STRENGTHS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
RECORD = "training.json"
APART = {torch.float32: 1e-4}
"""How far logits of the adapter read back may be from those of the trained one, as a share of the
largest. `rag` holds adapters in the model's own precision, PEFT in float32."""
APART_HALF = 0.05


@dataclass(frozen=True, slots=True)
class Finished:
    """What a training came to."""

    out: Path
    steps: int
    strength: float
    measured: Mapping[str, float]
    """Losses before and at the end, by name."""
    apart: float
    """The largest difference of logits between what was trained and what was read back, relative."""


def finish(training: Training, record: Mapping[str, Any]) -> Finished:
    """Write the adapter into the training's folder and check it; the model is left without it.

    `UserError` where the adapter, read back as `rag` does, answers otherwise than it was trained.
    """
    tuned, out, options = training.tuned, training.out, training.options
    strength = options.strength or 1.0
    if not options.strength and isinstance(tuned, Lora) and training.sets.dev is not None:
        strength = choose(
            tuned, training.sets, training.best, options.forgetting_budget, options.pack_length
        )
    if isinstance(tuned, Lora):
        tuned.scale(strength)
    tuned.model.eval()
    with torch.no_grad():
        wanted = probe_logits(tuned.model)
    training.contract.write(out)
    tuned.write(out, strength=strength)
    apart = check(tuned.released(), out, wanted)
    draw(out / FILE, out / PICTURE)
    told = {
        "made_by": {n: version(n) for n in ("chatglm-rag", "torch", "transformers", "peft")},
        **record,
        "options": asdict(options),
        "steps": training.done,
        "losses": training.best,
        "strength": strength,
        "read_back_within": apart,
    }
    text = json.dumps(told, indent=2, ensure_ascii=False, default=str) + "\n"
    write_whole(out / RECORD, text.encode())
    return Finished(out, training.done, strength, training.best, apart)


def choose(
    tuned: Lora, sets: Sets, before: Mapping[str, float], budget: float, length: int
) -> float:
    """The strength of least loss on the dev set, among those within the budget of forgetting.

    The smallest, where none is within it.
    """
    assert sets.dev is not None
    limit = before.get("general_loss_before", 0.0) * (1 + budget) if budget else float("inf")
    best = (float("inf"), STRENGTHS[-1])
    for strength in STRENGTHS:
        tuned.scale(strength)
        if (
            budget
            and sets.general_dev is not None
            and _mean(tuned, sets.general_dev, length) > limit
        ):
            continue
        best = min(best, (_mean(tuned, sets.dev, length), strength))
    return best[1]


def check(model: Any, out: Path, wanted: Tensor) -> float:
    """How far the adapter in `out`, on the bare model, is from `wanted` logits, relative."""
    adapters = Adapters(model)
    adapters.attach(read_adapter(out), out.name)  # also refuses one that changes nothing
    adapters.activate(out.name)
    found = probe_logits(model)
    adapters.activate(None)
    apart = float((found - wanted).abs().max() / wanted.abs().max())
    if not apart <= APART.get(model.dtype, APART_HALF):
        raise UserError(
            f"the adapter in {out}, read back, gives logits that differ by {apart:.1%} from those "
            "it was trained to; its checkpoints are whole, please report this",
            zh=f"{out} 中的适配器读回后输出相差 {apart:.1%}；检查点完好，请报告此问题",
        )
    return apart


def _mean(tuned: Tuned, rows: Any, length: int) -> float:
    loss, count = evaluated(tuned.model, rows, length=length)
    return float(loss) / max(1.0, float(count))
