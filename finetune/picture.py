"""Base beside adapter as bars by condition, with their intervals; needs matplotlib."""

from collections.abc import Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.comparison import ALL, MEASURES, Comparison
from finetune.verdict import CONDITION_TITLES
from ingest.errors import UserError
from ingest.store.files import write_whole
from rag.evaluate import Figure
from rag.evaluate.picture import CHINESE_FAMILIES, drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
BASE, ADAPTER = "#9aa5b1", "#d9822b"
PANELS = (
    ("f1", "exact", "grounded"),
    ("refusal_recall", "refusal_precision", "refusal_f1"),
)
"""Measures of each row; those that were not measured are left out."""
INTERVALS = "with 95 % bootstrap intervals over questions"


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


def draw(comparisons: Sequence[Comparison], path: Path, *, title: str) -> None:
    """Write a picture to `path` (.png or .svg): a panel per measure, in it two bars a condition.

    A title that no installed font can draw is left out.
    """
    check(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    rows = [
        [found for name in names if (found := [c for c in comparisons if c.measure == name])]
        for names in PANELS
    ]
    rows = [row for row in rows if row]
    kind, stream = path.suffix.lower()[1:], BytesIO()
    families = _families()
    shown = drawable([title], families) == [title]
    with rc_context({"font.family": families, "svg.fonttype": "none"}):
        canvas = Canvas(figsize=(12, 0.9 + 2.6 * max(1, len(rows))), layout="constrained")
        columns = max((len(row) for row in rows), default=1)
        grid = canvas.add_gridspec(max(1, len(rows)), columns)
        for line, row in enumerate(rows):
            for column, found in enumerate(row):
                _bars(canvas.add_subplot(grid[line, column]), found)
        canvas.suptitle(f"{title}   " * shown + INTERVALS, fontsize=10, x=0.01, ha="left")
        axes = canvas.axes[:1]
        handles, labels = axes[0].get_legend_handles_labels() if axes else ([], [])
        canvas.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        canvas.savefig(stream, format=kind, dpi=150)
    write_whole(path, stream.getvalue())


def _bars(axes: "Axes", found: Sequence[Comparison]) -> None:
    for offset, side, label, colour in (
        (-0.2, "base", "base", BASE),
        (0.2, "adapter", "adapter", ADAPTER),
    ):
        figures: list[Figure] = [getattr(each, side) for each in found]
        drawn = [(place, f) for place, f in enumerate(figures) if f.value == f.value]
        values = [f.value for _, f in drawn]
        whiskers = [
            [max(0.0, f.value - f.low) for _, f in drawn],
            [max(0.0, f.high - f.value) for _, f in drawn],
        ]
        places = [place + offset for place, _ in drawn]
        axes.bar(places, values, 0.38, yerr=whiskers, capsize=2, label=label, color=colour)
        for place, (_, figure) in zip(places, drawn, strict=True):
            # Above its whisker, so that none is crossed out.
            top = max(figure.value, figure.high)
            axes.text(place, top + 0.02, f"{figure.value:.2f}", ha="center", fontsize=8)
    axes.set_title(MEASURES[found[0].measure].title, fontsize=10, loc="left")
    names = [f"{_name(each.condition)}\nn = {each.questions}" for each in found]
    axes.set_xticks(range(len(found)), names, fontsize=8)
    axes.set_xlim(-0.6, max(3, len(found)) - 0.4)
    axes.set_ylim(0, 1.15)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _name(condition: str) -> str:
    return "all passages" if condition == ALL else CONDITION_TITLES[condition][0]


def _families() -> list[str]:
    """The installed font families to draw with: matplotlib's own, then one for Chinese."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return ["DejaVu Sans", *[name for name in CHINESE_FAMILIES if name in installed][:1]]
