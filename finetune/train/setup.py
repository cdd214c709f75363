"""A model's directory and files of data -> sets of tokens and a model to train, ready for the loop."""

import ctypes
import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.dataset import Counts, TokenSet, broken
from finetune.data.formats import AS_FOUND, Columns
from finetune.data.tokenize import target_of, tokenize
from finetune.options import LoraOptions, TrainOptions
from finetune.train.logs import FILE, PICTURE, draw
from finetune.train.loop import Sets, Training, Tuned
from finetune.train.lora import Lora, PrefixTuning
from finetune.train.loss import evaluated
from finetune.types import Part, Rows
from ingest.errors import UserError
from ingest.store.atomic import sync, write_whole
from rag.chatglm.adapter import Adapters, probe_logits
from rag.chatglm.adapter_files import Contract, fingerprint, read_adapter
from rag.chatglm.configuration import generation_of
from rag.chatglm.loading import load, read_config

GENERAL_HELD = 0.1
"""The share of the general set that is measured and never learnt, of at most:"""
GENERAL_MOST = 200
M_MMAP_THRESHOLD, MMAP_FROM = -3, 128 << 10
"""glibc's name for the size from which a block has pages of its own, and its initial value."""


@dataclass(frozen=True, slots=True)
class Data:
    """Files to learn from. `dev` empty: `dev_share` of the rows are held out."""

    train: tuple[Path, ...]
    dev: tuple[Path, ...] = ()
    general: tuple[Path, ...] = ()
    dev_share: float = 0.05
    columns: Columns = AS_FOUND
    skip_bad: bool = False
    most: int = 0
    """More than 0: only so many of the rows to learn, the first."""
    most_dev: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.dev_share < 1:
            raise UserError("--dev-share is {share}; need 0 to below 1", share=self.dev_share)


@dataclass(frozen=True, slots=True)
class Told:
    """Counts of what was read."""

    rows: dict[str, int]
    counts: dict[str, Counts]
    """By set, what became of its data."""


def read_sets(data: Data, model: Path, options: TrainOptions, *, cache: Path) -> tuple[Sets, Told]:
    """The sets of a training, tokenized for the model in the directory `model`; no weight is read.

    A folder among the files is one that `prepare` wrote. `UserError` where a row can't be trained
    on, or none is left.
    """
    generation = generation_of(read_config(model))

    def rows(files: tuple[Path, ...]) -> TokenSet:
        if len(files) == 1 and files[0].is_dir():
            return _prepared(files[0], target_of(model, generation, options.template))
        return tokenize(
            files,
            model,
            generation=generation,
            template=options.template,
            max_length=options.max_length,
            cache=cache,
            columns=data.columns,
            skip_bad=data.skip_bad,
        )

    read = {
        name: rows(files)
        for name, files in (("train", data.train), ("dev", data.dev), ("general", data.general))
        if files
    }
    train, dev = _first(read["train"], data.most), read.get("dev")
    if not len(train):
        raise UserError("{file} holds no row to learn", file=data.train[0])
    own: Rows = train
    held: Rows | None = _first(dev, data.most_dev) if dev is not None else None
    if dev is None and (count := round(len(train) * data.dev_share)):
        own, held = _split(train, count, options.seed, "--dev-share 0")
    general, general_dev = _general(read.get("general"), options)
    if options.forgetting_budget and general_dev is None:
        raise UserError(
            "--forgetting-budget is {budget}, but no general data is named to measure "
            "it on; add --mix FILE:0 (or a share to learn too)",
            budget=options.forgetting_budget,
        )
    if options.strength is None and held is None:
        raise UserError(
            "--strength is auto, but no rows are held out to choose it on; name --dev or "
            "--dev-share"
        )
    sets = Sets(own, held, general, general_dev)
    learnt = {"train": len(own), "dev": len(held or ()), "general": len(general or ())}
    counts = {name: found.counts for name, found in read.items()}
    return sets, Told(learnt | {"general_dev": len(general_dev or ())}, counts)


def _first(rows: Rows, count: int) -> Rows:
    return Part(rows, np.arange(min(count, len(rows)))) if count else rows


def _general(rows: Rows | None, options: TrainOptions) -> tuple[Part | None, Part | None]:
    """What is mixed in of the general set, and what is measured: of one that is not mixed in, all."""
    if rows is None:
        return None, None
    if not options.mix:
        return None, Part(rows, np.arange(min(len(rows), GENERAL_MOST)))
    count = max(1, min(GENERAL_MOST, round(len(rows) * GENERAL_HELD)))
    return _split(rows, count, options.seed, "--mix FILE:0")


def _prepared(folder: Path, wanted: Mapping[str, Any]) -> TokenSet:
    """A set that `prepare` wrote; `UserError` where it is damaged, or for another model or template."""
    tokens = TokenSet.open(folder)
    if not tokens.is_whole():
        raise broken(folder)
    for name, value in wanted.items():
        if tokens.target.get(name) != value:
            raise UserError(
                "{folder} was prepared for {name} {before}, this training is for {name} {now}; "
                "prepare it again, or train it as it was meant",
                folder=folder,
                name=name,
                before=tokens.target.get(name),
                now=value,
            )
    return tokens


def _split(rows: Rows, held: int, seed: int, instead: str) -> tuple[Part, Part]:
    """All but `held` rows drawn at random, and those; `instead` is the way out for too few."""
    if held >= len(rows):
        raise UserError(
            "{count} rows are too few to hold {held} of them out; give more, or {instead}",
            count=len(rows),
            held=held,
            instead=instead,
        )
    order = np.random.default_rng(seed).permutation(len(rows))
    return Part(rows, np.sort(order[held:])), Part(rows, np.sort(order[:held]))


def open_tuned(
    model: Path,
    options: TrainOptions,
    *,
    device: str,
    progress: Callable[[float], None] | None = None,
) -> Tuned:
    """The model in the directory `model`, ready to be trained as `options` say."""
    base: Any = load(
        model,
        quant=options.quant,
        dtype=getattr(torch, options.dtype),
        device=device,
        kernels=False,
        progress=progress,
    )
    if isinstance(options.method, LoraOptions):
        return Lora(base, options.method, seed=options.seed)
    return PrefixTuning(base, options.method, seed=options.seed)


def own_pages() -> None:
    """Let every large tensor have pages of its own, which the system gets back when it is freed.

    glibc's malloc stops doing so for sizes that it has seen freed, up to 32 MiB, and can't fill the
    holes that they leave, as torch asks for aligned blocks: a training then holds up to twice what
    it uses. The pages cost some time (docs/log.md). With another malloc nothing happens.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, MMAP_FROM)


def contract_of(base: Any, options: TrainOptions) -> Contract:
    """What the adapter has to be asked like."""
    return Contract(generation_of(base.config), options.template, base=fingerprint(base))


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
            "no strength from {least} on keeps the general loss within {limit:.4f}; the "
            "checkpoints stay; train with a lower --learning-rate, more --mix, or a larger "
            "--forgetting-budget",
            least=STRENGTHS[-1],
            limit=limit,
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
            "the adapter, read back, gives logits that differ by {apart:.1%} from those it was "
            "trained to; it is not put into {folder}, whose checkpoints stay; please report this",
            apart=apart,
            folder=out.parent,
        )
    return apart


def _mean(training: Training, rows: Rows) -> float | None:
    """A token's loss; None where the rows have none to learn."""
    length = training.options.pack_length
    loss, count = evaluated(training.tuned.model, rows, length=length, step=training.done)
    return float(loss / count) if count else None
