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

from finetune.data.dataset import TokenSet, damaged_set
from finetune.data.tokenize import target_of, tokenize
from finetune.options import Data, LoraOptions, Objective, TrainOptions
from finetune.train.checkpoint import LOG_FILE, LOG_PICTURE, draw_log
from finetune.train.loop import Sets, Training
from finetune.train.lora import Lora, PrefixTuning, TunedModel
from finetune.train.loss import evaluate
from finetune.types import RowSubset, TokenRows
from ingest.errors import UserError
from ingest.store.atomic import sync, write_whole
from rag.chatglm.adapter import Adapters, probe_logits
from rag.chatglm.adapter_files import fingerprint, read_adapter
from rag.chatglm.configuration import generation_of
from rag.chatglm.loading import load, read_model_config
from rag.chatglm.tokenization import check_vocabulary, open_tokenizer

GENERAL_SHARE, GENERAL_MOST = 0.1, 200
"""The share of the general set that is measured and never learnt, and the most rows of it."""
M_MMAP_THRESHOLD, MMAP_FROM = -3, 128 << 10
"""glibc's option for the size from which a block has its own pages, and its initial value."""


def read_sets(data: Data, model: Path, options: TrainOptions, *, cache: Path) -> Sets:
    """The sets of a training, tokenized for the model in the directory `model`; no weight is read.

    A folder among the files is one that `prepare` wrote. Raises `UserError` if a row can't be
    trained on, or none is left.
    """
    generation = generation_of(read_model_config(model))

    def rows(name: str, files: tuple[Path, ...]) -> TokenSet:
        objective: Objective = "sft" if name == "general" else options.objective
        if len(files) == 1 and files[0].is_dir():
            pairs = {"objective": objective} if objective != "sft" else {}
            return _prepared(files[0], target_of(model, generation, options.template) | pairs)
        return tokenize(
            files,
            model,
            generation=generation,
            template=options.template,
            max_length=options.max_length,
            cache=cache,
            columns=data.columns,
            skip_bad=data.skip_bad,
            objective=objective,
        )

    sets = {
        name: rows(name, files)
        for name, files in (("train", data.train), ("dev", data.dev), ("general", data.general))
        if files
    }
    train, dev = _first(sets["train"], data.most), sets.get("dev")
    if not len(train):
        raise UserError("{file} holds no row to train on", file=data.train[0])
    held_out = _first(dev, data.most_dev) if dev is not None else None
    if dev is None and (count := round(len(train) * data.dev_share)):
        train, held_out = _split(train, count, options.seed, "--dev-share 0")
    general, general_dev = _general(sets.get("general"), options)
    if options.forgetting_budget and general_dev is None:
        raise UserError(
            "--forgetting-budget is {budget}, but no general data is named to measure it on; add "
            "--mix FILE:0 (or a share to train on as well)",
            budget=options.forgetting_budget,
        )
    if options.strength is None and held_out is None:
        raise UserError(
            "--strength is auto, but no rows are held out to choose it on; name --dev or --dev-share"
        )
    counts = {name: tokens.counts for name, tokens in sets.items()}
    return Sets(train, held_out, general, general_dev, counts)


def _first(rows: TokenRows, count: int) -> TokenRows:
    """The first `count` rows; all if that is 0."""
    return RowSubset(rows, np.arange(min(count, len(rows)))) if count else rows


def _general(rows: TokenRows | None, options: TrainOptions) -> tuple[TokenRows | None, TokenRows | None]:
    """The part of the general set that is mixed in, and the part that is measured."""
    if rows is None:
        return None, None
    if not options.mix:
        return None, _first(rows, GENERAL_MOST)
    count = max(1, min(GENERAL_MOST, round(len(rows) * GENERAL_SHARE)))
    return _split(rows, count, options.seed, "--mix FILE:0")


def _prepared(folder: Path, wanted: Mapping[str, Any]) -> TokenSet:
    """A set that `prepare` wrote; raises `UserError` if it is damaged, or for another model or
    template."""
    tokens = TokenSet(folder)
    if not tokens.is_whole():
        raise damaged_set(folder)
    for name, value in wanted.items():
        if tokens.target.get(name) != value:
            raise UserError(
                "{folder} was prepared for {name} {before}, this training is for {name} {now}; "
                "prepare it again, or train it as it was prepared",
                folder=folder, name=name, before=tokens.target.get(name), now=value,
            )  # fmt: skip
    return tokens


def _split(rows: TokenRows, size: int, seed: int, instead: str) -> tuple[RowSubset, RowSubset]:
    """All but `size` rows drawn at random, and those; `instead` is the way out if there are too few."""
    count = len(rows)
    if size >= count:
        raise UserError(
            "{count} rows are too few to hold {held} of them out; give more, or {instead}",
            count=count, held=size, instead=instead,
        )  # fmt: skip
    order = np.random.default_rng(seed).permutation(count)
    return RowSubset(rows, np.sort(order[size:])), RowSubset(rows, np.sort(order[:size]))


def open_tuned(
    model: Path, options: TrainOptions, *, device: str, progress: Callable[[float], None] | None = None
) -> TunedModel:
    """The model in the directory `model`, ready to be trained with `options`."""
    check_vocabulary(model, open_tokenizer(model))
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
    """Give every large tensor its own pages, which go back to the system when it is freed.

    glibc's malloc stops doing so for sizes that it has seen freed, up to 32 MiB, and can't fill the
    holes that they leave, because torch requests aligned blocks: a training then holds up to twice
    the memory that it uses. The pages cost some time (docs/log.md). Other mallocs are not changed.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, MMAP_FROM)


STRENGTHS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
RECORD = "training.json"
APART, APART_HALF = 1e-4, 0.05
"""The largest difference of logits between the trained adapter and the one read back, as a share of
the largest logit, for float32 models and for others: `rag` holds adapters in the model's own
precision, PEFT in float32."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The result of a training."""

    strength: float
    losses: Mapping[str, float]
    """Before the training (`dev_loss_before`, `general_loss_before`), of the adapter as written
    (`dev_loss`, `general_loss`), and the smallest on the way (`dev_best`, in step `dev_step`)."""
    apart: float
    """The largest difference of logits between the trained adapter and the one read back, relative."""


def finish(training: Training, record: Mapping[str, Any]) -> TrainingResult:
    """Check the adapter and write it into the training's folder; the model is left without it.

    Raises `UserError` if no strength keeps within the forgetting budget, or if the adapter, read
    back as `rag` does, gives other logits than when it was trained.
    """
    tuned, out = training.tuned, training.out
    strength, losses = final_strength(training)
    tuned.model.eval()
    with torch.no_grad():
        wanted = probe_logits(tuned.model)
    work = out / ".adapter.partial"
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    work.mkdir()
    training.write_adapter(work, strength=strength)
    try:
        apart = check(tuned.release(), work, wanted)
        for path in sorted(work.iterdir()):
            path.replace(out / path.name)
        sync(out)
    finally:
        shutil.rmtree(work)
    draw_log(out / LOG_FILE, out / LOG_PICTURE)
    values = {
        "made_by": {n: version(n) for n in ("chatglm-rag", "torch", "transformers", "peft")},
        **record,
        "rows": training.sets.sizes,
        "counts": {name: asdict(counts) for name, counts in training.sets.counts.items()},
        "options": asdict(training.options),
        "data": training.sets.digests,
        "base_fingerprint": fingerprint(tuned.base),
        "device": training.accelerator.device.type,
        "processes": training.accelerator.num_processes,
        "steps": training.state.step,
        "stopped": training.state.stopped,
        "losses": losses,
        "strength": strength,
        "read_back_within": apart,
    }
    text = json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n"
    write_whole(out / RECORD, text.encode())
    return TrainingResult(strength, losses, apart)


def final_strength(training: Training) -> tuple[float, dict[str, float]]:
    """The strength of the adapter that is written, and its losses.

    That of the options; if they leave it open, or the budget stopped the training, the strength
    with the smallest loss on the dev set (without one, the largest strength) within the budget.
    """
    tuned, options, state = training.tuned, training.options, training.state
    losses, search = dict(state.losses), options.strength is None or bool(state.stopped)
    if not isinstance(tuned, Lora) or (not search and options.strength == 1):
        return 1.0, losses
    budget, before = options.forgetting_budget, losses.get("general_loss_before", math.inf)
    limit = before * (1 + budget) if budget else math.inf
    candidates: list[tuple[float, float, dict[str, float]]] = []
    for strength in STRENGTHS if search else (options.strength or 1.0,):
        tuned.scale(strength)
        means: dict[str, float] = {}
        for name, rows in training.sets.measured.items():
            loss, count = evaluate(tuned.model, rows, length=options.pack_length, step=state.step)
            if count:
                means[name] = float(loss / count)
        if not search or means.get("general_loss", 0.0) <= limit:
            candidates.append((means.get("dev_loss", -strength), strength, means))
    if not candidates:
        raise UserError(
            "no strength down to {least} keeps the general loss within {limit:.4f}; the "
            "checkpoints stay; train with a lower --learning-rate, more --mix, or a larger "
            "--forgetting-budget",
            least=STRENGTHS[-1],
            limit=limit,
        )
    _, strength, means = min(candidates, key=lambda each: each[:2])
    tuned.scale(strength)
    return strength, losses | means


def check(model: Any, out: Path, wanted: Tensor) -> float:
    """The largest difference between the logits of the adapter in `out` on the bare model and the
    `wanted` ones, relative to these; raises `UserError` if it is too large."""
    adapters = Adapters(model)
    adapters.attach(read_adapter(out), out.name)  # also raises if it changes nothing
    adapters.activate(out.name)
    found = probe_logits(model)
    adapters.activate(None)
    apart = float((found - wanted).abs().max() / wanted.abs().max())
    if not apart <= (APART if model.dtype == torch.float32 else APART_HALF):
        raise UserError(
            "the adapter, read back, gives logits that differ by {apart:.1%} from those it was "
            "trained to; it is not written to {folder}, whose checkpoints stay; please report this",
            apart=apart,
            folder=out.parent,
        )
    return apart
