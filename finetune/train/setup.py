"""A model's directory and files of data -> sets of tokens and a model to train, ready for the loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.data.compat import Compat
from finetune.data.dataset import TokenSet, broken
from finetune.data.formats import AS_FOUND, Columns
from finetune.data.frames import Counts
from finetune.data.tokenize import made_for, tokenise
from finetune.options import LoraOptions, TrainOptions
from finetune.train.loop import Sets, Tuned
from finetune.train.lora import Lora
from finetune.train.ptuning import PrefixTuning
from finetune.types import Part, Rows
from ingest.errors import UserError
from rag.chatglm.configuration import generation_of
from rag.chatglm.contract import Contract, fingerprint
from rag.chatglm.loading import load, read_config

GENERAL_HELD = 0.1
"""The share of the general set that is measured and never learnt, of at most:"""
GENERAL_MOST = 200


@dataclass(frozen=True, slots=True)
class Data:
    """Files to learn from. `dev` empty: `dev_share` of the rows are held out."""

    train: tuple[Path, ...]
    dev: tuple[Path, ...] = ()
    general: tuple[Path, ...] = ()
    dev_share: float = 0.05
    columns: Columns = AS_FOUND
    compat: Compat | None = None
    """The rows of another script, with what is wrong in them."""
    skip_bad: bool = False
    workers: int = 0
    most: int = 0
    """More than 0: only so many of the rows to learn, the first."""
    most_dev: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.dev_share < 1:
            raise UserError(
                f"--dev-share is {self.dev_share}; need 0 to below 1",
                zh=f"--dev-share 为 {self.dev_share}；须为 0 到 1（不含 1）",
            )


@dataclass(frozen=True, slots=True)
class Told:
    """Counts of what was read."""

    rows: dict[str, int]
    counts: dict[str, Counts]
    """By set, what became of its data."""


def read_sets(data: Data, model: Path, options: TrainOptions, *, cache: Path) -> tuple[Sets, Told]:
    """The sets of a training, tokenised for the model in the directory `model`; no weight is read.

    A folder among the files is one that `prepare` wrote. `UserError` where a row can't be trained
    on, or none is left.
    """
    generation = generation_of(read_config(model))

    def rows(files: tuple[Path, ...]) -> TokenSet:
        if len(files) == 1 and files[0].is_dir():
            return _prepared(files[0], made_for(model, generation, options.template))
        return tokenise(
            files,
            model,
            generation=generation,
            template=options.template,
            max_length=options.max_length,
            cache=cache,
            columns=data.columns,
            compat=data.compat,
            skip_bad=data.skip_bad,
            workers=data.workers,
        )

    read = {
        name: rows(files)
        for name, files in (("train", data.train), ("dev", data.dev), ("general", data.general))
        if files
    }
    train, dev = _first(read["train"], data.most), read.get("dev")
    if not len(train):
        raise UserError(
            f"{data.train[0]} holds no row to learn", zh=f"{data.train[0]} 中没有可学习的数据行"
        )
    own: Rows = train
    held: Rows | None = _first(dev, data.most_dev) if dev is not None else None
    if dev is None and (count := round(len(train) * data.dev_share)):
        own, held = _split(train, count, options.seed, "--dev-share 0")
    general, general_dev = _general(read.get("general"), options)
    if options.forgetting_budget and general_dev is None:
        raise UserError(
            f"--forgetting-budget is {options.forgetting_budget}, but no general data is named to "
            "measure it on; add --mix FILE:0 (or a share to learn too)",
            zh=f"--forgetting-budget 为 {options.forgetting_budget}，但没有用于衡量的通用数据；"
            "请加 --mix 文件:0（或要混入的比例）",
        )
    if options.strength is None and held is None:
        raise UserError(
            "--strength is auto, but no rows are held out to choose it on; name --dev or --dev-share",
            zh="--strength 为 auto，但没有留出的数据用于选择；请指定 --dev 或 --dev-share",
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
        if tokens.made_for.get(name) != value:
            raise UserError(
                f"{folder} was prepared for {name} {tokens.made_for.get(name)}, this training is for "
                f"{name} {value}; prepare it again, or train it as it was meant",
                zh=f"{folder} 是为 {name} {tokens.made_for.get(name)} 准备的，而此次训练为 {name} {value}；"
                "请重新准备，或按原设置训练",
            )
    return tokens


def _split(rows: Rows, held: int, seed: int, instead: str) -> tuple[Part, Part]:
    """All but `held` rows drawn at random, and those; `instead` is the way out for too few."""
    if held >= len(rows):
        raise UserError(
            f"{len(rows)} rows are too few to hold {held} of them out; give more, or {instead}",
            zh=f"只有 {len(rows)} 行，无法留出 {held} 行；请增加数据，或用 {instead}",
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


def contract_of(base: Any, options: TrainOptions) -> Contract:
    """What the adapter has to be asked like."""
    return Contract(generation_of(base.config), options.template, base=fingerprint(base))
