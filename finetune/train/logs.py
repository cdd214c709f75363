"""The logs of a training: a CSV of what is computed, TensorBoard, a picture of the losses.

The CSV holds no times, so that a resumed training writes the same bytes as one never stopped.
"""

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.errors import UserError
from rag import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIELDS = ("step", "epoch", "loss", "learning_rate", "grad_norm", "dev_loss", "general_loss")
FILE = "loss.csv"
PICTURE = "loss.png"
BOARD = "tensorboard"


class Log:
    """The files of a training in `out`, of which `size` bytes of an earlier run are valid."""

    def __init__(self, out: Path, *, size: int = 0, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = out / FILE
        actual = path.stat().st_size if path.is_file() else 0
        if actual < size:
            raise UserError(
                "{path} has {actual} bytes, but the checkpoint needs {size}: it was changed or "
                "deleted; put it back, or start again in another folder",
                path=path,
                actual=actual,
                size=size,
            )
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
        line = io.StringIO()
        cells = (values.get(name, "") for name in FIELDS)
        csv.writer(line, lineterminator="\n").writerow(
            f"{cell:.9g}" if isinstance(cell, float) else str(cell) for cell in cells
        )
        self.file.write(line.getvalue().encode())
        self.file.flush()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.board.close()


def read(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The steps and values in each column of a CSV, without empty cells."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [(int(row["step"]), float(row[name])) for row in rows if row[name]] for name in FIELDS[1:]}


def draw(path: Path, picture: Path) -> None:
    """Draw the losses of a CSV into `picture` (.png or .svg)."""
    plot.save(picture, lambda canvas: _curves(canvas.subplots(), path), size=(8, 4.5), dpi=120)


def _curves(axes: "Axes", path: Path) -> None:
    from matplotlib.ticker import MaxNLocator

    columns = read(path)
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
