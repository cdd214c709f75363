"""Bars of one report or several side by side, with their intervals; needs matplotlib."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from warnings import catch_warnings, filterwarnings

from ingest.errors import UserError
from rag.evaluate.report import MEASURES, Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
NOT_SHARES = ("p50", "p95")  # seconds do not fit on an axis from 0 to 1

# Families that cover Chinese, as Linux distributions, Windows and macOS name them.
CHINESE_FAMILIES = (
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Hiragino Sans GB",
)


def draw(figures: Mapping[str, Mapping[str, Figure]], path: Path) -> None:
    """Write a picture to `path` (.png or .svg): a row per measure, in it a bar per name.

    `figures`: name -> figures of a report. Measures that only some have are drawn for those.
    """
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
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    measures = [
        name
        for name in MEASURES
        if name not in NOT_SHARES and any(name in values for values in figures.values())
    ]
    # In an SVG text stays text, so that the viewer's own fonts draw Chinese names.
    families = installed_families()
    labels = list(figures) if path.suffix.lower() == ".svg" else drawable(list(figures), families)
    with rc_context({"font.family": families, "svg.fonttype": "none"}), catch_warnings():
        filterwarnings("ignore", "Glyph .* missing")  # of text that stays text
        height = 1.2 + len(measures) * (0.18 + 0.22 * len(figures))
        canvas = Canvas(figsize=(8, height), layout="constrained")
        axes = canvas.add_subplot()
        _bars(axes, measures, figures, labels)
        canvas.savefig(path, dpi=150)


def _bars(
    axes: "Axes",
    measures: Sequence[str],
    figures: Mapping[str, Mapping[str, Figure]],
    labels: Sequence[str],
) -> None:
    thickness = 0.8 / max(1, len(figures))
    for order, (values, label) in enumerate(zip(figures.values(), labels, strict=True)):
        drawn = [(row, values[name]) for row, name in enumerate(measures) if name in values]
        places = [row + (order - (len(figures) - 1) / 2) * thickness for row, _ in drawn]
        whiskers = [
            [max(0.0, figure.value - figure.low) for _, figure in drawn],
            [max(0.0, figure.high - figure.value) for _, figure in drawn],
        ]
        widths = [figure.value for _, figure in drawn]
        bars = axes.barh(places, widths, thickness * 0.9, xerr=whiskers, capsize=2, label=label)
        axes.bar_label(bars, [f"{width:.3f}" for width in widths], padding=4, fontsize=8)
    arrows = {True: "↑", False: "↓"}
    titles = [
        f"{MEASURES[name].title} {arrows[MEASURES[name].larger_is_better]}" for name in measures
    ]
    axes.set_yticks(range(len(measures)), titles)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlim(0, 1.12)
    axes.set_xlabel("with 95 % bootstrap intervals over questions")
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.legend(loc="outside lower center", ncols=3, frameon=False)


def installed_families() -> list[str]:
    """The installed font families to draw with: matplotlib's own, then one for Chinese."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return ["DejaVu Sans", *[name for name in CHINESE_FAMILIES if name in installed][:1]]


def drawable(names: Sequence[str], families: Sequence[str]) -> list[str]:
    """The names; those that the font families cannot draw become "configuration 1" and so on."""
    from matplotlib.font_manager import findfont, get_font

    fonts = [get_font(findfont(family)) for family in families]
    return [
        name
        if all(any(font.get_char_index(ord(char)) for font in fonts) for char in name)
        else f"configuration {number}"
        for number, name in enumerate(names, start=1)
    ]
