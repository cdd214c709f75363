"""A training's state on disk, whole or not there: what a resumed one needs to end in the same bytes.

`OUT/checkpoint-N/` is an adapter directory, ready to use, and beside it the trained numbers with the
optimiser's, and `state.json`. There are no random states to keep: each step draws from the seed and
its own number, which also says which rows it takes.
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
class State:
    """All but the tensors."""

    step: int
    """Steps done."""
    log: int
    """Bytes of the log that belong to them."""
    sums: tuple[float, float, int]
    """Loss, gradient norm and steps since the log's last line."""
    scaler: Mapping[str, float]
    """The loss scale of float16; empty without."""
    losses: Mapping[str, float]
    """What evaluations have found so far."""
    stopped: str
    """Why it is at its end, before its last step."""
    threads: int
    """Of torch, on which the last bits of sums depend."""
    made_of: Mapping[str, Any] = field(default_factory=dict)
    """Data, options and base (identity.py)."""

    @classmethod
    def read(cls, folder: Path) -> "State":
        try:
            data = json.loads((folder / STATE).read_text("utf-8"))
            return cls(**{**data, "sums": tuple(data["sums"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise _unreadable(folder, STATE, error) from None


def found(out: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a training, by their steps."""
    if not out.is_dir():
        return []
    named = ((NAME.fullmatch(path.name), path) for path in out.iterdir() if path.is_dir())
    return sorted((int(match[1]), path) for match, path in named if match)


def is_training(out: Path) -> bool:
    """Whether a training was begun in the folder."""
    return bool(found(out)) or (out / FILE).is_file()


def forget(out: Path) -> None:
    """Delete a training: its checkpoints first, then what else it writes. Other files stay."""
    for path in [*(path for _, path in found(out)), *out.glob(".checkpoint-*.partial")]:
        shutil.rmtree(path)
    shutil.rmtree(out / BOARD, ignore_errors=True)
    for name in (FILE, PICTURE, "training.json", *ADAPTER_FILES):
        (out / name).unlink(missing_ok=True)


def save_checkpoint(
    out: Path,
    state: State,
    numbers: Mapping[str, Tensor],
    write: Callable[[Path], None],
    *,
    keep: int,
) -> Path:
    """Write the checkpoint of `state.step`, then delete all but the newest `keep`.

    `write` puts the adapter's own files into the new folder. `UserError` where the disk is full:
    the checkpoints before stay.
    """
    target = out / f"checkpoint-{state.step}"
    work = out / f".{target.name}.partial"
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    try:
        work.mkdir(parents=True)
        write(work)
        write_whole(work / NUMBERS, save({k: v.detach().cpu() for k, v in numbers.items()}))
        write_whole(work / STATE, (json.dumps(asdict(state), indent=2) + "\n").encode())
        work.rename(target)
        sync(out)
    except OSError as problem:
        shutil.rmtree(work, ignore_errors=True)
        last = found(out)
        raise UserError(
            "{target} can't be written: {reason}; the last good checkpoint is {checkpoint}; make room "
            "and run the same command with --resume",
            target=target,
            reason=problem.strerror or problem,
            checkpoint=last[-1][1].name if last else Translatable("none"),
        ) from problem
    for _, old in found(out)[: -max(1, keep)]:
        shutil.rmtree(old)
    return target


def numbers_of(folder: Path) -> dict[str, Tensor]:
    """The tensors that `save_checkpoint` wrote; `UserError` where their file is damaged."""
    try:
        return load_file(folder / NUMBERS)
    except (OSError, SafetensorError) as error:
        raise _unreadable(folder, NUMBERS, error) from None


def _unreadable(folder: Path, name: str, error: Exception) -> UserError:
    return UserError(
        "{file} can't be read ({error}); delete {checkpoint} to go on from the checkpoint before it",
        file=folder / name,
        error=error,
        checkpoint=folder.name,
    )


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
                "{name} changed since {out} was begun; give the old files, or begin anew in another "
                "folder",
                name=name,
                out=out,
            )
        raise UserError(
            "{out} was begun with {name} = {was!r}, now it is {given!r}; give the old value, or "
            "begin anew in another folder",
            out=out,
            name=name,
            was=was,
            given=given,
        )
