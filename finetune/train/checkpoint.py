"""A training's state on disk, whole or not there: what a resumed one needs to end in the same bytes.

`OUT/checkpoint-N/` is an adapter directory, ready to use; it also has the trained parameters with
the optimizer's state, and `state.json`. No random state is saved: each step draws from the seed and
its own number, which also determines its rows. Beside it are the training's logs.
"""

import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from finetune.options import TrainOptions
from ingest.errors import UserError
from ingest.i18n import Translatable
from ingest.store.atomic import new_folder, write_whole
from rag import plot
from rag.chatglm.adapter_files import ADAPTER_FILES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUMBERS = "training.safetensors"
STATE = "state.json"
NAME = re.compile(r"checkpoint-(\d+)")
FIELDS = ("step", "epoch", "loss", "learning_rate", "grad_norm", "dev_loss", "general_loss")
LOG_FILE = "loss.csv"
LOG_PICTURE = "loss.png"
BOARD = "tensorboard"


@dataclass(slots=True)
class TrainingState:
    """The state without its tensors. In a running training, what is not of every step is that of the
    last checkpoint."""

    step: int = 0
    """Steps done."""
    log: int = 0
    """Bytes of the log up to that step."""
    sums: tuple[float, float, int] = (0.0, 0.0, 0)
    """Loss, gradient norm and steps since the log's last line."""
    scaler: Mapping[str, float] = field(default_factory=dict)
    """The loss scale of float16; empty without."""
    losses: dict[str, float] = field(default_factory=dict)
    """Of the measured sets: before the training, the best (and its step), and the last ones."""
    stopped: str = ""
    """The reason for an end before the last step, or ""."""
    threads: int = 1
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
    return bool(checkpoints(out)) or (out / LOG_FILE).is_file()


def delete_training(out: Path) -> None:
    """Delete a training: its checkpoints first, then its other files. Files of others stay."""
    for path in [*(path for _, path in checkpoints(out)), *out.glob(".checkpoint-*.partial")]:
        shutil.rmtree(path)
    shutil.rmtree(out / BOARD, ignore_errors=True)
    for name in (LOG_FILE, LOG_PICTURE, "training.json", *ADAPTER_FILES):
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
    try:
        with new_folder(target) as work:
            write(work)
            write_whole(work / NUMBERS, save({k: v.detach().cpu() for k, v in tensors.items()}))
            write_whole(work / STATE, (json.dumps(asdict(state), indent=2) + "\n").encode())
    except UserError as error:
        problem = error.__cause__
        if not isinstance(problem, OSError):
            raise
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
        file=folder / name, error=error, checkpoint=folder.name,
    )  # fmt: skip


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
            out=out, name=name, old=old, new=new,
        )  # fmt: skip


class Log:
    """The logs of a training in `out`: a CSV of what is computed, of which `size` bytes of an earlier
    run are valid, and TensorBoard.

    The CSV holds no times, so that a resumed training writes the same bytes as one never stopped."""

    def __init__(self, out: Path, *, size: int = 0, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = out / LOG_FILE
        actual = path.stat().st_size if path.is_file() else 0
        if actual < size:
            raise UserError(
                "{path} has {actual} bytes, but the checkpoint needs {size}: it was changed or "
                "deleted; put it back, or start again in another folder",
                path=path, actual=actual, size=size,
            )  # fmt: skip
        self.file = path.open("r+b" if size else "w+b")
        self.file.truncate(size)
        self.file.seek(size)
        if not size:
            self._write(dict(zip(FIELDS, FIELDS, strict=True)))
        self.board = SummaryWriter(str(out / BOARD), purge_step=step or None)

    def row(self, values: Mapping[str, float], **shown: float) -> None:
        """Write a line with those of `FIELDS` that `values` has; `shown` goes to TensorBoard only."""
        self._write(values)
        for name, value in {**values, **shown}.items():
            if name != "step":
                self.board.add_scalar(name, value, int(values["step"]))

    def flush(self) -> int:
        """Flush everything to the disk; returns the size of the CSV in bytes."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.board.flush()
        return self.file.tell()

    def _write(self, values: Mapping[str, float | str]) -> None:
        cells = (values.get(name, "") for name in FIELDS)
        line = ",".join(f"{cell:.9g}" if isinstance(cell, float) else str(cell) for cell in cells)
        self.file.write(f"{line}\n".encode())
        self.file.flush()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.board.close()


def read_log(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The steps and values in each column of a CSV, without empty cells."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [(int(row["step"]), float(row[name])) for row in rows if row[name]] for name in FIELDS[1:]}


def draw_log(path: Path, picture: Path) -> None:
    """Draw the losses of a CSV into `picture` (.png or .svg)."""
    plot.save(picture, lambda canvas: _curves(canvas.subplots(), path), size=(8, 4.5), dpi=120)


def _curves(axes: "Axes", path: Path) -> None:
    from matplotlib.ticker import MaxNLocator

    columns = read_log(path)
    colours = {"loss": plot.PALE_BLUE, "dev_loss": plot.RED, "general_loss": plot.GREEN}
    for name, colour in colours.items():
        if points := columns[name]:
            steps, values = zip(*points, strict=True)
            marker = "" if name == "loss" and len(points) > 1 else "o"
            axes.plot(steps, values, label=name.replace("_", " "), color=colour, marker=marker)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("loss per token (nats)")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
