"""Trains a reader with transformers' Trainer. A training that was stopped continues in the same steps."""

import random
import shutil
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from safetensors.numpy import load, save
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from finetune.reader.examples import TrainingRow
from finetune.reader.model import ReaderModel
from finetune.train.checkpoint import checkpoints
from ingest.store.atomic import write_whole
from rag.reader import FEATURE_LAYER, WEIGHTS, padded

HEADS = 3.0  # how much faster the heads learn than the uppermost layer
WARMUP = 0.1  # the share of the steps in which the rate rises
LAYER_DECAY = 0.9  # of the rate from a layer to the one below
_POOL = 32  # batches whose rows are sorted by length together, so that little is padded
_PAUSE = 60.0  # s between checkpoints


def train(
    rows: Sequence[TrainingRow],
    weights: bytes | None,
    folder: Path,
    *,
    epochs: int,
    rate: float,
    batch: int,
    seed: int,
    frozen: int = FEATURE_LAYER,
    progress: Callable[[int], None] = lambda step: None,
) -> Path:
    """The file of weights that a training from `weights` (None: from the encoder's) ends in.

    A folder of its own below `folder` has its checkpoints, from which the same call continues. `rate`
    is the learning rate of the uppermost layer; layers below `frozen` stay.
    """
    content = repr([(row.row.ids, row.row.features.tolist(), row.answer) for row in rows])
    options = (epochs, rate, batch, seed, frozen, torch.__version__)
    digest = sha256(f"{options}{content}".encode() + (weights or b"")).hexdigest()
    folder = folder / digest[:16]
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    logging.set_verbosity_error()
    torch.manual_seed(seed)
    model = ReaderModel(load(weights) if weights else None, frozen)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        num_train_epochs=1,  # `in_order` has all epochs, so that a checkpoint may lie within one
        train_sampling_strategy="sequential",
        warmup_steps=WARMUP,
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        seed=seed,
        save_strategy="no",  # `_Checkpoints` decides
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["answer"],
    )
    model.to(arguments.device)
    trainer = Trainer(
        model,
        arguments,
        data_collator=batch_of,
        train_dataset=in_order(rows, epochs, batch, seed),  # type: ignore[arg-type]
        optimizers=(_optimizer(model, rate), None),
        callbacks=[_Checkpoints(progress)],
    )
    trainer.remove_callback(PrinterCallback)
    whole = [path for _, path in checkpoints(folder) if (path / "trainer_state.json").is_file()]
    trainer.train(resume_from_checkpoint=str(whole[-1]) if whole else None)
    write_whole(folder / WEIGHTS, save(model.export()))
    for _, path in checkpoints(folder):
        shutil.rmtree(path)
    return folder / WEIGHTS


class _Checkpoints(TrainerCallback):
    """Saves now and then, and counts the steps."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress, self._saved = progress, monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._progress(state.global_step)
        if monotonic() - self._saved > _PAUSE:
            control.should_save, self._saved = True, monotonic()


def in_order(rows: Sequence[TrainingRow], epochs: int, batch: int, seed: int) -> list[TrainingRow]:
    """The rows of all epochs in the order of the steps."""
    rng, ordered = random.Random(seed), list[TrainingRow]()
    shuffled = [row for _ in range(epochs) for row in rng.sample(rows, len(rows))]
    for at in range(0, len(shuffled), batch * _POOL):
        pool = sorted(shuffled[at : at + batch * _POOL], key=lambda row: len(row.row.ids))
        starts = list(range(0, len(pool), batch))
        rng.shuffle(starts)
        starts.sort(key=lambda start: start + batch > len(pool))  # a smaller batch is the last one
        ordered += [row for start in starts for row in pool[start : start + batch]]
    return ordered


def batch_of(rows: Sequence[TrainingRow]) -> dict[str, Tensor]:
    """The model's input."""
    arrays = padded([row.row for row in rows])
    answer = torch.tensor([row.answer for row in rows])
    return {"answer": answer, **{name: torch.from_numpy(values) for name, values in arrays.items()}}


def _optimizer(model: ReaderModel, rate: float) -> torch.optim.AdamW:
    heads = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    groups: list[dict[str, Any]] = [{"params": heads, "lr": rate * HEADS}]
    for depth, layer in enumerate(reversed(model.encoder.encoder.layer[model.frozen :])):
        groups.append({"params": list(layer.parameters()), "lr": rate * LAYER_DECAY**depth})
    return torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98), eps=1e-6)
