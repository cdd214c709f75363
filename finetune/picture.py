"""Base beside adapter as bars by condition, with their intervals; needs matplotlib."""

from collections.abc import Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from warnings import catch_warnings, filterwarnings

from finetune.evaluate.compare import ALL, MEASURES, Comparison
from finetune.verdict import CONDITION_TITLES
from ingest.errors import UserError
from ingest.store.atomic import write_whole
from rag.evaluate import Figure
from rag.evaluate.plot import drawable, installed_families
from rag.i18n import Speaker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

FORMATS = (".png", ".svg")
BASE, ADAPTER = "#9aa5b1", "#d9822b"
PANELS = (
    ("f1", "exact", "grounded"),
    ("refusal_recall", "refusal_precision", "refusal_f1"),
)
"""Measures of each row; those that were not measured are left out."""
INTERVALS = ("with 95 % bootstrap intervals over questions", "含按问题自助法的 95 % 区间")
SIDES = (("base", ("base", "基座"), BASE, -0.2), ("adapter", ("adapter", "适配器"), ADAPTER, 0.2))
"""Field of `Comparison`, name, colour, and how far from a condition's place."""


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


def check_place(path: Path) -> None:
    """`UserError` where no file can be put, before there is anything to write."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file", zh=f"{path} 是文件夹；请指定文件")
    if not path.parent.is_dir():
        raise UserError(
            f"there is no folder {path.parent} to write {path.name} into; make it first",
            zh=f"没有文件夹 {path.parent}，无法写入 {path.name}；请先创建",
        )


def draw(comparisons: Sequence[Comparison], path: Path, *, title: str, say: Speaker) -> None:
    """Write a picture to `path` (.png or .svg): a panel per measure, in it two bars a condition.

    In a PNG, a title that no installed font can draw is left out, and Chinese is said in English.
    """
    check(path)
    from matplotlib import rc_context

    families, kind, stream = installed_families(), path.suffix.lower()[1:], BytesIO()
    if kind == "png":  # in an SVG text stays text, drawn by the viewer's own fonts
        title = title if drawable([title], families) == [title] else ""
        said = say(*INTERVALS)
        say = say if drawable([said], families) == [said] else Speaker("en")
    with rc_context({"font.family": families, "svg.fonttype": "none"}), catch_warnings():
        filterwarnings("ignore", "Glyph .* missing")  # of text that stays text
        chart(comparisons, title, say).savefig(stream, format=kind, dpi=150)
    write_whole(path, stream.getvalue())


def chart(comparisons: Sequence[Comparison], title: str, say: Speaker) -> "Canvas":
    from matplotlib.figure import Figure as Canvas

    rows = [
        [found for name in names if (found := [c for c in comparisons if c.measure == name])]
        for names in PANELS
    ]
    rows = [row for row in rows if row]
    canvas = Canvas(figsize=(12, 0.9 + 2.6 * max(1, len(rows))), layout="constrained")
    columns = max((len(row) for row in rows), default=1)
    grid = canvas.add_gridspec(max(1, len(rows)), columns)
    for line, row in enumerate(rows):
        for column, found in enumerate(row):
            _bars(canvas.add_subplot(grid[line, column]), found, say)
    head = f"{title}   {say(*INTERVALS)}".strip()
    canvas.suptitle(head, fontsize=10, x=0.01, ha="left")
    axes = canvas.axes[:1]
    handles, labels = axes[0].get_legend_handles_labels() if axes else ([], [])
    canvas.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return canvas


def _bars(axes: "Axes", found: Sequence[Comparison], say: Speaker) -> None:
    for side, names, colour, offset in SIDES:
        figures: list[Figure] = [getattr(each, side) for each in found]
        drawn = [(place, f) for place, f in enumerate(figures) if f.value == f.value]
        values = [f.value for _, f in drawn]
        whiskers = [
            [max(0.0, f.value - f.low) for _, f in drawn],
            [max(0.0, f.high - f.value) for _, f in drawn],
        ]
        places = [place + offset for place, _ in drawn]
        axes.bar(places, values, 0.38, yerr=whiskers, capsize=2, label=say(*names), color=colour)
        for place, figure in enumerate(figures):
            defined = figure.value == figure.value
            # Above its whisker, so that none is crossed out.
            top = max(figure.value, figure.high) if defined else 0
            text = f"{figure.value:.2f}" if defined else "–"
            axes.text(place + offset, top + 0.02, text, ha="center", fontsize=8)
    measure = MEASURES[found[0].measure]
    axes.set_title(say(measure.title, measure.zh), fontsize=10, loc="left")
    names = [f"{_name(each.condition, say)}\nn = {each.questions}" for each in found]
    axes.set_xticks(range(len(found)), names, fontsize=8)
    axes.set_xlim(-0.6, max(3, len(found)) - 0.4)
    axes.set_ylim(0, 1.15)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _name(condition: str, say: Speaker) -> str:
    return (
        say("all passages", "全部段落") if condition == ALL else say(*CONDITION_TITLES[condition])
    )
