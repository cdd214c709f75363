"""How long rows are: bins, figures, and a picture of them (needs matplotlib)."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

import numpy as np
from numpy.typing import NDArray

from ingest.errors import UserError
from ingest.store.atomic import write_whole
from rag.evaluate.plot import installed_families
from rag.i18n import Speaker

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from finetune.data.check import Unit

FORMATS = (".png", ".svg")
UNITS: dict["Unit", tuple[str, str]] = {
    "tokens": ("tokens", "词元"),
    "characters": ("characters", "字符"),
}
ENGLISH = Speaker("en")
SHARE = 0.99
"""Of the rows that the bins are laid out for; the few that are much longer share the last bin."""
BAR, LATE = "#3b7dd8", "#d9822b"


@dataclass(frozen=True, slots=True)
class Bin:
    """`count` rows of `low` to `high` tokens, both counted in; `high` None: or more."""

    low: int
    high: int | None
    count: int

    @property
    def label(self) -> str:
        return f"{self.low}–{self.high}" if self.high is not None else f"≥ {self.low}"


def bins(lengths: NDArray[np.int32], most: int) -> list[Bin]:
    """At most `most` bins of one width, which is 1, 2 or 5 times a power of ten; the first holds the
    shortest row, and the last all the longest."""
    if not len(lengths):
        return []
    longest = int(lengths.max())
    top = int(np.quantile(lengths, SHARE, method="inverted_cdf"))
    if longest <= 1.5 * top:
        top = longest
    widths = (step * 10**power for power in range(12) for step in (1, 2, 5))
    width = next(width for width in widths if top // width < most)
    last = top // width
    counts = np.bincount(np.minimum(lengths // width, last))
    made = [Bin(i * width, (i + 1) * width - 1, int(count)) for i, count in enumerate(counts)]
    if longest >= (last + 1) * width:
        made[-1] = replace(made[-1], high=None)
    return made[min(int(lengths.min()) // width, last) :]


def figures(lengths: NDArray[np.int32]) -> dict[str, int]:
    """`rows`, `total`, `shortest`, `median`, `p95` and `longest`; rows alone where there are none."""
    if not len(lengths):
        return {"rows": 0}
    median, p95 = np.quantile(lengths, [0.5, 0.95], method="inverted_cdf")
    return {
        "rows": len(lengths),
        "total": int(lengths.sum(dtype=np.int64)),
        "shortest": int(lengths.min()),
        "median": int(median),
        "p95": int(p95),
        "longest": int(lengths.max()),
    }


def check(path: Path) -> None:
    """`UserError` where a picture can't be drawn, before there is anything to draw."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(
            f"cannot draw {path.name}: a picture ends in {' or '.join(FORMATS)}",
            zh=f"无法绘制 {path.name}：图片文件名须以 {' 或 '.join(FORMATS)} 结尾",
        )
    if find_spec("matplotlib") is None:
        raise UserError(
            'a picture needs matplotlib: pip install "chatglm-rag[pictures]"',
            zh='绘图需要 matplotlib：pip install "chatglm-rag[pictures]"',
        )


def save(
    path: Path,
    lengths: NDArray[np.int32],
    *,
    unit: "Unit",
    max_length: int = 0,
    say: Speaker = ENGLISH,
) -> None:
    """Write the picture, .png or .svg."""
    check(path)
    kind = path.suffix.lower()[1:]
    write_whole(path, draw(lengths, unit=unit, max_length=max_length, kind=kind, say=say))


def draw(
    lengths: NDArray[np.int32],
    *,
    unit: "Unit",
    max_length: int = 0,
    kind: str,
    say: Speaker = ENGLISH,
) -> bytes:
    """A PNG (`kind` "png") or SVG of the rows' lengths, with a line at `max_length` unless 0.

    The SVG has no ground of its own and greys that are read on white and on black; its text stays
    text. A PNG speaks Chinese where a font for it is installed.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    families = installed_families()
    if kind == "png" and len(families) < 2:
        say = ENGLISH
    ink = "#7a7f87" if kind == "svg" else "#333333"
    colours = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = dict.fromkeys(colours, ink)
    style |= {"svg.fonttype": "none", "svg.hashsalt": "rag", "font.family": families}
    stream = io.BytesIO()
    with rc_context(style), catch_warnings():
        filterwarnings("ignore", "Glyph .* missing")  # of text that stays text
        canvas = Figure(figsize=(8, 3.2), layout="constrained")
        _bars(canvas.add_subplot(), lengths, say(*UNITS[unit]), max_length, say)
        dated = {"Date": None} if kind == "svg" else None
        canvas.savefig(stream, format=kind, dpi=150, transparent=kind == "svg", metadata=dated)
    return stream.getvalue()


def _bars(
    axes: "Axes", lengths: NDArray[np.int32], unit: str, max_length: int, say: Speaker
) -> None:
    from matplotlib.ticker import MaxNLocator

    drawn = bins(lengths, 60)
    axes.set_title(_title(lengths, drawn, unit, say), fontsize=10, loc="left")
    axes.set_xlabel(say(f"{unit} of a row", f"每行的{unit}数"))
    axes.set_ylabel(say("rows", "行数"))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    if not drawn:
        return
    width = drawn[1].low - drawn[0].low if len(drawn) > 1 else (drawn[0].high or 0) + 1
    end = drawn[-1].low + width
    axes.bar(
        [bin.low for bin in drawn],
        [bin.count for bin in drawn],
        width * 0.92,
        align="edge",
        color=[LATE if 0 < max_length <= bin.low else BAR for bin in drawn],
    )
    axes.set_xlim(0, end)
    if 0 < max_length < 1.5 * end:
        axes.set_xlim(0, max(end, max_length * 1.05))
        axes.axvline(max_length, color=LATE, linestyle="--", linewidth=1.2)
        axes.text(
            max_length,
            0.97,
            f" max_length {max_length:,} ",
            color=LATE,
            fontsize=9,
            ha="right" if max_length > end / 2 else "left",
            va="top",
            transform=axes.get_xaxis_transform(),
        )


def _title(lengths: NDArray[np.int32], drawn: Sequence[Bin], unit: str, say: Speaker) -> str:
    if not drawn:
        return say("no usable rows", "没有可用的数据行")
    told, low = figures(lengths), drawn[-1].low
    title = say(
        f"{told['rows']:,} rows, {told['total']:,} {unit}: median {told['median']:,}, "
        f"95 % up to {told['p95']:,}, longest {told['longest']:,}",
        f"{told['rows']:,} 行，{told['total']:,} 个{unit}：中位数 {told['median']:,}，"
        f"95% 不超过 {told['p95']:,}，最长 {told['longest']:,}",
    )
    last = say(f" (last bar: {low:,} or more)", f"（最后一栏：{low:,} 及以上）")
    return title + (last if drawn[-1].high is None else "")
