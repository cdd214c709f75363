"""What a training is made of: it goes on only with the very same."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from finetune.options import TrainOptions
from finetune.train.checkpoint import State, found
from ingest.errors import UserError

HARMLESS = ("save_steps", "save_total_limit", "strength")
"""Options that may change where a training goes on."""
BASE, METHOD, TRAIN = "the base", "the method", "the data (train)"
NAMES = {
    "rank": "--lora-rank", "alpha": "--lora-alpha", "dropout": "--lora-dropout",
    "targets": "--lora-targets", "dtype": "the precision",
}  # fmt: skip
"""What options are called where it is not their own name."""


def made_of(
    digests: Mapping[str, str], options: TrainOptions, accelerator: Accelerator
) -> dict[str, Any]:
    """All but the base, by names that a person knows, as JSON gives it back."""
    held = asdict(options)
    held |= held.pop("method")
    told = {
        NAMES.get(name, f"--{name.replace('_', '-')}"): value
        for name, value in held.items()
        if name not in HARMLESS
    }
    whole = {
        **{f"the data ({name})": digest for name, digest in digests.items()},
        METHOD: type(options.method).__name__,
        **told,
        "devices": f"{accelerator.num_processes} x {accelerator.device.type}",
        "torch": torch.__version__,
    }
    return json.loads(json.dumps(whole))


def resumable(out: Path, now: Mapping[str, Any]) -> None:
    """`UserError` where the training in `out` was begun with other things than `now`, the base left
    aside: what can be told before that is loaded."""
    if checkpoints := found(out):
        before = State.read(checkpoints[-1][1]).made_of
        same({name: value for name, value in before.items() if name != BASE}, now, out)


def same(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    """`UserError` names what the training in `out` was begun with and is to go on without."""
    # The method brings options with it, and a seed holds other rows out: causes are told first.
    names = {*before, *now}
    for name in sorted(
        names, key=lambda name: (name.startswith("the data"), name not in (METHOD, TRAIN), name)
    ):
        was, given = before.get(name), now.get(name)
        if was == given:
            continue
        if name.startswith("the data"):
            raise UserError(
                f"{name} changed since {out} was begun; give the old files, or begin anew in "
                "another folder",
                zh=f"{out} 开始训练后数据有改动（{name}）；请提供原来的文件，或在另一文件夹重新开始",
            )
        raise UserError(
            f"{out} was begun with {name} = {was!r}, now it is {given!r}; give the old value, or "
            "begin anew in another folder",
            zh=f"{out} 开始训练时 {name} = {was!r}，现为 {given!r}；请改回原值，或在另一文件夹重新开始",
        )
