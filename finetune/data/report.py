"""A diagnosis for a person and for a program: a page that needs nothing else, JSON, a histogram.

All text of the data is escaped, and the page forbids scripts and anything from elsewhere.
"""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.check import Diagnosis, Unit
from finetune.data.token_view import Piece, shades, visible
from finetune.types import Finding, Problem
from ingest.i18n import Translatable, Translator, readable
from ingest.store.atomic import write_whole
from rag import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LISTED = 200
"""Findings of a kind that a page lists."""
TITLES: dict[Problem, Translatable] = {
    "broken": Translatable("can't be read"),
    "ended": Translatable("the file breaks off"),
    "encoding": Translatable("encoding"),
    "missing": Translatable("missing field"),
    "empty": Translatable("empty field"),
    "type": Translatable("wrong type or role"),
    "long": Translatable("over-long"),
    "conflict": Translatable("conflicting answers"),
    "duplicate": Translatable("duplicate"),
    "special": Translatable("special tokens in text"),
    "control": Translatable("control characters"),
    "place": Translatable("no place in the template"),
}
UNITS: dict[Unit, Translatable] = {
    "tokens": Translatable("tokens"),
    "characters": Translatable("characters"),
}
SHARE = 0.99
"""Of the rows that the bins are laid out for; the few that are much longer share the last bin."""
BINS = 60
"""The most bins of a picture and of the JSON."""
HEADS = {
    "--json": (b'{\n "files"',),
    "--html": (b"<!doctype html>",),
    "--picture": (b"\x89PNG", b"<?xml"),
}
"""How the files that are written begin."""
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --faint: #656d76; --line: #d0d7de;
  --ground: #fff; --card: #f6f8fa; --bad: #cf222e; --warn: #9a6700; --good: #1a7f37;
  --given: #eceff2; --given2: #dde2e7; --learnt: #c6efce; --learnt2: #a4dfb0; --special: #8250df; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #8d96a0; --line: #30363d;
  --ground: #0d1117; --card: #161b22; --bad: #ff7b72; --warn: #d29922; --good: #3fb950;
  --given: #1d232b; --given2: #2a323c; --learnt: #14492a; --learnt2: #1c6238;
  --special: #c297ff; } }
body { font: 15px/1.55 system-ui, "Noto Sans CJK SC", "Microsoft YaHei", "PingFang SC", sans-serif;
  color: var(--ink); background: var(--ground); max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p { margin: .3rem 0; } .faint { color: var(--faint); } .bad { color: var(--bad); }
.warn { color: var(--warn); } .good { color: var(--good); }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0 0; }
.tiles div { flex: 1 1 8rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: .6rem .9rem; }
.tiles b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; } table.sum { width: auto; min-width: 24rem; }
img { width: 100%; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; unicode-bidi: isolate; }
th { color: var(--faint); font-weight: 500; }
td.row, td.kind { width: 1%; white-space: nowrap; padding-right: 1.4rem; font-variant-numeric: tabular-nums; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
details { border: 1px solid var(--line); border-radius: 8px; margin: .6rem 0; padding: .5rem .9rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; margin: .6rem 0 .2rem; }
.tokens span { padding: .12rem 0; border-radius: 3px; unicode-bidi: isolate; }
.g0 { background: var(--given); } .g1 { background: var(--given2); }
.l0 { background: var(--learnt); } .l1 { background: var(--learnt2); }
.tokens .s { color: var(--special); font-family: ui-monospace, monospace; font-size: .85em; }
"""


@dataclass(frozen=True, slots=True)
class View:
    """A row of a training and where it comes from."""

    source: str
    pieces: tuple[Piece, ...]

    @property
    def tokens(self) -> int:
        return sum(len(piece.ids) for piece in self.pieces)

    @property
    def learnt(self) -> int:
        return sum(len(piece.ids) for piece in self.pieces if piece.learnt)

    def title(self, say: Translator) -> str:
        return say(
            "{source}: {tokens:,} tokens, {learnt:,} learnt",
            source=self.source,
            tokens=self.tokens,
            learnt=self.learnt,
        )


def record(diagnosis: Diagnosis) -> dict[str, Any]:
    """Everything found, as JSON values."""
    return {
        "files": list(diagnosis.files),
        "rows": diagnosis.rows,
        "usable": diagnosis.usable,
        "bad": diagnosis.bad,
        "warned": diagnosis.warned,
        "unit": diagnosis.unit,
        "max_length": diagnosis.max_length,
        "lengths": figures(diagnosis.lengths),
        "histogram": [asdict(bin) for bin in bins(diagnosis.lengths, BINS)],
        "problems": {
            problem: {"bad": bad, "warnings": warnings}
            for problem, bad, warnings in counts(diagnosis)
        },
        "findings": [asdict(finding) for finding in diagnosis.findings],
    }


def counts(diagnosis: Diagnosis) -> list[tuple[Problem, int, int]]:
    """Of each kind of finding: how many are bad, and how many are warnings."""
    return [
        (problem, sum(finding.bad for finding in found), sum(not one.bad for one in found))
        for problem, found in diagnosis.by_problem().items()
    ]


def page(diagnosis: Diagnosis, views: Sequence[View], say: Translator) -> str:
    """One HTML page, light or dark as the reader's screen is."""
    title = say("Training data")
    parts = [
        "<!doctype html>",
        f'<html lang="{"zh-CN" if say.language == "zh" else "en"}"><head><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f'<p class="faint">{escape(", ".join(diagnosis.files))}</p>',
        *_tiles(diagnosis, say),
        *_summary(diagnosis, say),
        f"<h2>{say('Length of rows')}</h2>",
        _picture(diagnosis, say),
        *_findings(diagnosis, say),
        *_views(views, say),
        "</body></html>",
    ]
    return readable("\n".join(parts)) + "\n"


def _tiles(diagnosis: Diagnosis, say: Translator) -> Iterable[str]:
    tiles = (
        (diagnosis.rows, say("rows"), ""),
        (diagnosis.usable, say("usable"), "good" if diagnosis.usable else "bad"),
        (diagnosis.bad, say("bad"), "bad" if diagnosis.bad else ""),
        (diagnosis.warned, say("with warnings"), "warn" if diagnosis.warned else ""),
    )
    yield '<div class="tiles">'
    for count, name, kind in tiles:
        yield f'<div><b class="{kind}">{count:,}</b><span class="faint">{name}</span></div>'
    yield "</div>"


def _summary(diagnosis: Diagnosis, say: Translator) -> Iterable[str]:
    yield f"<h2>{say('What was found')}</h2>"
    if not diagnosis.findings:
        yield f'<p class="good">{say("Nothing is wrong.")}</p>'
        return
    names = say("problem"), say("bad"), say("warnings")
    yield f'<table class="sum"><tr><th>{names[0]}</th><th class="n">{names[1]}</th><th class="n">{names[2]}</th></tr>'
    for problem, bad, warnings in counts(diagnosis):
        numbers = "".join(f'<td class="n">{count or ""}</td>' for count in (bad, warnings))
        yield f"<tr><td>{say(TITLES[problem])}</td>{numbers}</tr>"
    yield "</table>"


def _picture(diagnosis: Diagnosis, say: Translator) -> str:
    unit, limit = diagnosis.unit, diagnosis.max_length
    image = b64encode(histogram(diagnosis.lengths, "svg", unit=unit, max_length=limit, say=say))
    named = say(UNITS[unit])
    alt = say("{named} of rows", named=named)
    return f'<img alt="{alt}" src="data:image/svg+xml;base64,{image.decode()}">'


def _findings(diagnosis: Diagnosis, say: Translator) -> Iterable[str]:
    if diagnosis.findings:
        yield f"<h2>{say('Row by row')}</h2>"
    for problem, found in diagnosis.by_problem().items():
        found = sorted(found, key=lambda finding: not finding.bad)
        opened = " open" if found[0].bad else ""
        yield f"<details{opened}><summary>{say(TITLES[problem])} ({len(found):,})</summary><table>"
        yield from (_finding(finding, say) for finding in found[:LISTED])
        yield "</table>"
        if more := len(found) - LISTED if len(found) > LISTED else 0:
            rest = say("and {more:,} more, in the JSON report", more=more)
            yield f'<p class="faint">{rest}</p>'
        yield "</details>"


def _finding(finding: Finding, say: Translator) -> str:
    kind, name = ("bad", say("bad")) if finding.bad else ("warn", say("warning"))
    text = escape(say(finding.text))
    return (
        f'<tr><td class="row">{escape(finding.source)}</td><td class="kind {kind}">{name}</td>'
        f"<td>{text}</td></tr>"
    )


def _views(views: Sequence[View], say: Translator) -> Iterable[str]:
    if not views:
        return
    yield f"<h2>{say('Tokens and what is learnt of them')}</h2>"
    legend = (("l1", say("learnt")), ("g1", say("context")), ("s", say("special token")))
    names = " ".join(f'<span class="{kind}">{name}</span>' for kind, name in legend)
    yield f'<p class="tokens">{names}</p>'
    for number, view in enumerate(views):
        opened = " open" if not number else ""
        yield f"<details{opened}><summary>{escape(view.title(say))}</summary>"
        tokens = "".join(_token(piece, shade) for piece, shade in shades(view.pieces))
        yield f'<div class="tokens">{tokens}</div></details>'


def _token(piece: Piece, shade: int) -> str:
    kind = f"{'l' if piece.learnt else 'g'}{shade}{' s' if piece.special else ''}"
    ids = " ".join(map(str, piece.ids))
    return f'<span class="{kind}" title="{ids}">{escape(visible(piece.text))}</span>'


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
    found = [Bin(i * width, (i + 1) * width - 1, int(count)) for i, count in enumerate(counts)]
    if longest >= (last + 1) * width:
        found[-1] = replace(found[-1], high=None)
    return found[min(int(lengths.min()) // width, last) :]


def figures(lengths: NDArray[np.int32]) -> dict[str, int]:
    """`rows`, `total`, `shortest`, `median`, `p95` and `longest`; only `rows` if there are none."""
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


def save_histogram(
    path: Path, lengths: NDArray[np.int32], *, unit: Unit, max_length: int = 0, say: Translator
) -> None:
    """Write `histogram` to `path`, .png or .svg. Raises `UserError` if it can't be drawn."""
    kind = plot.check_picture(path)
    write_whole(path, histogram(lengths, kind, unit=unit, max_length=max_length, say=say))


def histogram(
    lengths: NDArray[np.int32], kind: plot.Kind, *, unit: Unit, max_length: int = 0, say: Translator
) -> bytes:
    """A picture of the rows' lengths, with a line at `max_length` unless that is 0.

    The SVG has no background and is read on white and on black. A PNG is in Chinese only if a font
    for it is installed.
    """
    say = plot.speaker(say, kind)
    return plot.render(
        lambda canvas: _draw_bins(canvas.add_subplot(), lengths, say(UNITS[unit]), max_length, say),
        kind,
        size=(8, 3.2),
        ink=plot.INK if kind == "svg" else "#333333",
        transparent=kind == "svg",
    )


def _draw_bins(
    axes: "Axes", lengths: NDArray[np.int32], unit: str, max_length: int, say: Translator
) -> None:
    from matplotlib.ticker import MaxNLocator

    drawn = bins(lengths, BINS)
    axes.set_title(_histogram_title(lengths, drawn, unit, say), fontsize=10, loc="left")
    axes.set_xlabel(say("{unit} of a row", unit=unit))
    axes.set_ylabel(say("rows"))
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
        color=[plot.ORANGE if 0 < max_length <= bin.low else plot.BLUE for bin in drawn],
    )
    axes.set_xlim(0, end)
    if 0 < max_length < 1.5 * end:
        axes.set_xlim(0, max(end, max_length * 1.05))
        axes.axvline(max_length, color=plot.ORANGE, linestyle="--", linewidth=1.2)
        axes.text(
            max_length,
            0.97,
            f" max_length {max_length:,} ",
            color=plot.ORANGE,
            fontsize=9,
            ha="right" if max_length > end / 2 else "left",
            va="top",
            transform=axes.get_xaxis_transform(),
        )


def _histogram_title(
    lengths: NDArray[np.int32], drawn: Sequence[Bin], unit: str, say: Translator
) -> str:
    if not drawn:
        return say("no usable rows")
    known, low = figures(lengths), drawn[-1].low
    title = say(
        "{known:,} rows, {known_2:,} {unit}: median {known_3:,}, 95 % up to {known_4:,}, "
        "longest {known_5:,}",
        known=known["rows"],
        known_2=known["total"],
        unit=unit,
        known_3=known["median"],
        known_4=known["p95"],
        known_5=known["longest"],
    )
    last = say(" (last bar: {low:,} or more)", low=low)
    return title + (last if drawn[-1].high is None else "")
