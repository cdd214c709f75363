"""A training's state on disk, whole or not there: what a resumed one needs to end in the same bytes.

`OUT/checkpoint-N/` is an adapter directory, ready to use; it also has the trained parameters with
the optimizer's state, and `state.json`. No random state is saved: each step draws from the seed and
its own number, which also determines its rows.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from finetune.options import TrainOptions
from finetune.train.logs import BOARD, FILE, PICTURE
from ingest.errors import UserError
from ingest.i18n import Translatable
from ingest.store.atomic import sync, write_whole
from rag.chatglm.adapter_files import ADAPTER_FILES

NUMBERS = "training.safetensors"
STATE = "state.json"
NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True, slots=True)
class TrainingState:
    """The state without its tensors."""

    step: int
    """Steps done."""
    log: int
    """Bytes of the log up to that step."""
    sums: tuple[float, float, int]
    """Loss, gradient norm and steps since the log's last line."""
    scaler: Mapping[str, float]
    """The loss scale of float16; empty without."""
    losses: Mapping[str, float]
    """The losses of the evaluations so far."""
    stopped: str
    """The reason for an end before the last step, or ""."""
    threads: int
    """Of torch, on which the last bits of sums depend."""
    made_of: Mapping[str, Any] = field(default_factory=dict)
    """`identity`: data, options and base."""

    @classmethod
    def read(cls, folder: Path) -> "TrainingState":
        try:
            data = json.loads((folder / STATE).read_text("utf-8"))
            return cls(**{**data, "sums": tuple(data["sums"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise _unreadable(folder, STATE, error) from None


def checkpoints(out: Path) -> list[tuple[int, Path]]:
    """The steps and folders of a training's checkpoints, in order."""
    if not out.is_dir():
        return []
    named = ((NAME.fullmatch(path.name), path) for path in out.iterdir() if path.is_dir())
    return sorted((int(match[1]), path) for match, path in named if match)


def is_training(out: Path) -> bool:
    """Whether a training was started in the folder."""
    return bool(checkpoints(out)) or (out / FILE).is_file()


def delete_training(out: Path) -> None:
    """Delete a training: its checkpoints first, then its other files. Files of others stay."""
    for path in [*(path for _, path in checkpoints(out)), *out.glob(".checkpoint-*.partial")]:
        shutil.rmtree(path)
    shutil.rmtree(out / BOARD, ignore_errors=True)
    for name in (FILE, PICTURE, "training.json", *ADAPTER_FILES):
        (out / name).unlink(missing_ok=True)


def save_checkpoint(
    out: Path,
    state: TrainingState,
    tensors: Mapping[str, Tensor],
    write: Callable[[Path], None],
    *,
    keep: int,
) -> Path:
    """Write the checkpoint of `state.step`, then delete all but the newest `keep`.

    `write` writes the adapter's own files into the new folder. Raises `UserError` if the disk is
    full; earlier checkpoints stay.
    """
    target = out / f"checkpoint-{state.step}"
    work = out / f".{target.name}.partial"
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    try:
        work.mkdir(parents=True)
        write(work)
        write_whole(work / NUMBERS, save({k: v.detach().cpu() for k, v in tensors.items()}))
        write_whole(work / STATE, (json.dumps(asdict(state), indent=2) + "\n").encode())
        work.rename(target)
        sync(out)
    except OSError as problem:
        shutil.rmtree(work, ignore_errors=True)
        last = checkpoints(out)
        raise UserError(
            "{target} can't be written: {reason}; the last good checkpoint is {checkpoint}; make room "
            "and run the same command with --resume",
            target=target,
            reason=problem.strerror or problem,
            checkpoint=last[-1][1].name if last else Translatable("none"),
        ) from problem
    for _, old in checkpoints(out)[: -max(1, keep)]:
        shutil.rmtree(old)
    return target


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors that `save_checkpoint` wrote; raises `UserError` if their file is damaged."""
    try:
        return load_file(folder / NUMBERS)
    except (OSError, SafetensorError) as error:
        raise _unreadable(folder, NUMBERS, error) from None


def _unreadable(folder: Path, name: str, error: Exception) -> UserError:
    return UserError(
        "{file} can't be read ({error}); delete {checkpoint} to continue from the one before it",
        file=folder / name,
        error=error,
        checkpoint=folder.name,
    )


HARMLESS = ("save_steps", "save_total_limit", "strength")
"""Options that may change when a training is resumed."""
BASE, METHOD, TRAIN = "the base", "the method", "the data (train)"
NAMES = {
    "rank": "--lora-rank", "alpha": "--lora-alpha", "dropout": "--lora-dropout",
    "targets": "--lora-targets", "dtype": "the precision",
}  # fmt: skip
"""The names of options that a user knows under another name."""


def identity(digests: Mapping[str, str], options: TrainOptions, accelerator: Accelerator) -> dict[str, Any]:
    """Everything that determines a training, except the base, by names that users know, as JSON."""
    values = asdict(options)
    values |= values.pop("method")
    whole = {
        **{f"the data ({name})": digest for name, digest in digests.items()},
        METHOD: type(options.method).__name__,
        **{
            NAMES.get(name, f"--{name.replace('_', '-')}"): value
            for name, value in values.items()
            if name not in HARMLESS
        },
        "devices": f"{accelerator.num_processes} x {accelerator.device.type}",
        "torch": torch.__version__,
    }
    return json.loads(json.dumps(whole))


def check_resumable(out: Path, now: Mapping[str, Any]) -> None:
    """Raises `UserError` if the training in `out` was started with other values than `now`; the
    base, which is not loaded yet, is not compared."""
    if folders := checkpoints(out):
        before = TrainingState.read(folders[-1][1]).made_of
        check_same({name: value for name, value in before.items() if name != BASE}, now, out)


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    """Raises `UserError` for the first value of the training in `out` that has changed."""

    def order(name: str) -> tuple[bool, bool, str]:
        # The method changes options, and a seed changes the data: causes are reported first.
        return name.startswith("the data"), name not in (METHOD, TRAIN), name

    for name in sorted({*before, *now}, key=order):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if name.startswith("the data"):
            raise UserError(
                "{name} changed since {out} was started; give the old files, or start again in "
                "another folder",
                name=name,
                out=out,
            )
        raise UserError(
            "{out} was started with {name} = {old!r}, now it is {new!r}; give the old value, or "
            "start again in another folder",
            out=out,
            name=name,
            old=old,
            new=new,
        )
