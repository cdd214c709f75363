"""Shared by all pictures: formats, fonts for Chinese, colours, rendering and saving.

The caller passes a function that draws on a matplotlib figure. A PNG needs fonts on this machine;
text in an SVG stays text, for the viewer's fonts.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from warnings import catch_warnings, filterwarnings

from ingest.errors import UserError
from ingest.i18n import Translator
from ingest.store.atomic import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["png", "svg"]
Bar = tuple[float, float, float]
"""A share, and its interval; NaN: undefined."""
FORMATS = (".png", ".svg")
PALE_BLUE, RED, GREEN = "#7a9cc6", "#c0392b", "#27ae60"

LATIN = "DejaVu Sans"
"""The font family that comes with matplotlib."""
CHINESE = (
    "Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB",
)  # fmt: skip
"""Font families for Chinese on Linux, Windows and macOS."""


def check_picture(path: Path) -> Kind:
    """The format of a picture by its name. Raises `UserError` if it is not supported, or if
    matplotlib is not installed."""
    if path.suffix.lower() not in FORMATS:
        raise UserError("cannot draw {name}: a picture ends in {formats:or}", name=path.name, formats=FORMATS)
    if find_spec("matplotlib") is None:
        raise UserError('a picture needs matplotlib: pip install "chatglm-rag[pictures]"')
    return cast(Kind, path.suffix.lower()[1:])


def families() -> list[str]:
    """The font families to draw with: matplotlib's own, then an installed one for Chinese if any."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return [LATIN, *[name for name in CHINESE if name in installed][:1]]


def drawable(text: str, kind: Kind) -> bool:
    """Whether every character of `text` can be drawn; in an SVG all of them can."""
    from matplotlib.font_manager import findfont, get_font

    if kind == "svg":
        return True
    fonts = [get_font(findfont(family)) for family in families()]
    return all(any(font.get_char_index(ord(char)) for font in fonts) for char in text)


def speaker(say: Translator, kind: Kind) -> Translator:
    """`say`, or English if no installed font draws the Chinese of a PNG."""
    return say if kind == "svg" or len(families()) > 1 else Translator("en")


def render(
    draw: Callable[["Figure"], None], kind: Kind, *, size: tuple[float, float], dpi: int = 150
) -> bytes:
    """The picture that `draw` makes on a figure of `size` inches; the same drawing gives the same bytes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"font.family": families(), "svg.fonttype": "none", "svg.hashsalt": "rag"}
    stream = BytesIO()
    with rc_context(style), catch_warnings():
        filterwarnings("ignore", "Glyph .* missing")  # the viewer's fonts draw the text of an SVG
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        dated = {"Date": None} if kind == "svg" else None
        figure.savefig(stream, format=kind, dpi=dpi, metadata=dated)
    return stream.getvalue()


def save(path: Path, draw: Callable[["Figure"], None], *, size: tuple[float, float], dpi: int = 150) -> None:
    """Write the picture to `path` (.png or .svg) atomically. Raises what `check_picture` raises."""
    write_whole(path, render(draw, check_picture(path), size=size, dpi=dpi))


def draw_bars(
    path: Path,
    rows: Sequence[str],
    series: Mapping[str, Sequence[Bar]],
    *,
    label: str,
    title: str = "",
    most: float = 1.0,
) -> None:
    """Write a picture of shares up to `most`: for each row a group of bars, one of each of the
    `series`, by name. Raises what `check_picture` raises."""
    import numpy as np

    def draw(canvas: "Figure") -> None:
        axes, thickness = canvas.add_subplot(), 0.8 / max(1, len(series))
        for order, (name, bars) in enumerate(series.items()):
            values, low, high = np.array(bars, float).reshape(-1, 3).T
            places = np.arange(len(rows)) + (order - (len(series) - 1) / 2) * thickness
            spread = np.nan_to_num([values - low, high - values]).clip(0)
            style: Any = {"xerr": spread, "capsize": 2} if spread.any() else {}
            drawn = axes.barh(places, np.nan_to_num(values), thickness * 0.9, label=name, **style)
            texts = ["–" if np.isnan(value) else f"{value:.3f}" for value in values]
            axes.bar_label(drawn, texts, padding=4, fontsize=8)
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()
        axes.margins(y=0.01)
        axes.set_xlim(0, 1.12 * most)
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        canvas.suptitle(title, fontsize=10, x=0.01, ha="left")
        canvas.legend(loc="outside lower center", ncols=3, frameon=False)

    save(path, draw, size=(8, 1.2 + len(rows) * (0.18 + 0.22 * len(series))))
