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
from ingest.i18n import readable
from ingest.store.atomic import write_whole
from rag import plot
from rag.i18n import Speaker

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LISTED = 200
"""Findings of a kind that a page lists."""
TITLES: dict[Problem, tuple[str, str]] = {
    "broken": ("can't be read", "无法读取"),
    "ended": ("the file breaks off", "文件中断"),
    "encoding": ("encoding", "编码错误"),
    "missing": ("missing field", "缺少字段"),
    "empty": ("empty field", "字段为空"),
    "type": ("wrong type or role", "类型或角色错误"),
    "long": ("over-long", "过长"),
    "conflict": ("conflicting answers", "回答冲突"),
    "duplicate": ("duplicate", "重复"),
    "special": ("special tokens in text", "文本含特殊词元"),
    "control": ("control characters", "控制字符"),
    "place": ("no place in the template", "模板容不下"),
}
UNITS: dict[Unit, tuple[str, str]] = {
    "tokens": ("tokens", "词元"),
    "characters": ("characters", "字符"),
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

    def title(self, say: Speaker) -> str:
        return say(
            f"{self.source}: {self.tokens:,} tokens, {self.learnt:,} learnt",
            f"{self.source}：{self.tokens:,} 个词元，其中学习 {self.learnt:,} 个",
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


def page(diagnosis: Diagnosis, views: Sequence[View], say: Speaker) -> str:
    """One HTML page, light or dark as the reader's screen is."""
    title = say("Training data", "训练数据检查")
    parts = [
        "<!doctype html>",
        f'<html lang="{say("en", "zh-CN")}"><head><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f'<p class="faint">{escape(", ".join(diagnosis.files))}</p>',
        *_tiles(diagnosis, say),
        *_summary(diagnosis, say),
        f"<h2>{say('Length of rows', '各行长度')}</h2>",
        _picture(diagnosis, say),
        *_findings(diagnosis, say),
        *_views(views, say),
        "</body></html>",
    ]
    return readable("\n".join(parts)) + "\n"


def _tiles(diagnosis: Diagnosis, say: Speaker) -> Iterable[str]:
    tiles = (
        (diagnosis.rows, say("rows", "总行数"), ""),
        (diagnosis.usable, say("usable", "可用"), "good" if diagnosis.usable else "bad"),
        (diagnosis.bad, say("bad", "有错误"), "bad" if diagnosis.bad else ""),
        (diagnosis.warned, say("with warnings", "有警告"), "warn" if diagnosis.warned else ""),
    )
    yield '<div class="tiles">'
    for count, name, kind in tiles:
        yield f'<div><b class="{kind}">{count:,}</b><span class="faint">{name}</span></div>'
    yield "</div>"


def _summary(diagnosis: Diagnosis, say: Speaker) -> Iterable[str]:
    yield f"<h2>{say('What was found', '检查结果')}</h2>"
    if not diagnosis.findings:
        yield f'<p class="good">{say("Nothing is wrong.", "没有发现问题。")}</p>'
        return
    names = say("problem", "问题"), say("bad", "错误"), say("warnings", "警告")
    yield f'<table class="sum"><tr><th>{names[0]}</th><th class="n">{names[1]}</th><th class="n">{names[2]}</th></tr>'
    for problem, bad, warnings in counts(diagnosis):
        numbers = "".join(f'<td class="n">{count or ""}</td>' for count in (bad, warnings))
        yield f"<tr><td>{say(*TITLES[problem])}</td>{numbers}</tr>"
    yield "</table>"


def _picture(diagnosis: Diagnosis, say: Speaker) -> str:
    unit, limit = diagnosis.unit, diagnosis.max_length
    image = b64encode(histogram(diagnosis.lengths, "svg", unit=unit, max_length=limit, say=say))
    named = say(*UNITS[unit])
    alt = say(f"{named} of rows", f"各行的{named}数")
    return f'<img alt="{alt}" src="data:image/svg+xml;base64,{image.decode()}">'


def _findings(diagnosis: Diagnosis, say: Speaker) -> Iterable[str]:
    if diagnosis.findings:
        yield f"<h2>{say('Row by row', '逐行')}</h2>"
    for problem, found in diagnosis.by_problem().items():
        found = sorted(found, key=lambda finding: not finding.bad)
        opened = " open" if found[0].bad else ""
        yield f"<details{opened}><summary>{say(*TITLES[problem])} ({len(found):,})</summary><table>"
        yield from (_finding(finding, say) for finding in found[:LISTED])
        yield "</table>"
        if more := len(found) - LISTED if len(found) > LISTED else 0:
            rest = say(f"and {more:,} more, in the JSON report", f"另有 {more:,} 条，见 JSON 报告")
            yield f'<p class="faint">{rest}</p>'
        yield "</details>"


def _finding(finding: Finding, say: Speaker) -> str:
    kind, name = ("bad", say("bad", "错误")) if finding.bad else ("warn", say("warning", "警告"))
    text = escape(say(finding.text, finding.zh))
    return (
        f'<tr><td class="row">{escape(finding.source)}</td><td class="kind {kind}">{name}</td>'
        f"<td>{text}</td></tr>"
    )


def _views(views: Sequence[View], say: Speaker) -> Iterable[str]:
    if not views:
        return
    yield f"<h2>{say('Tokens and what is learnt of them', '词元与学习部分')}</h2>"
    legend = (
        ("l1", say("learnt", "学习")),
        ("g1", say("context", "上下文")),
        ("s", say("special token", "特殊词元")),
    )
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
    path: Path, lengths: NDArray[np.int32], *, unit: Unit, max_length: int = 0, say: Speaker
) -> None:
    """Write `histogram` to `path`, .png or .svg. Raises `UserError` if it can't be drawn."""
    kind = plot.check_picture(path)
    write_whole(path, histogram(lengths, kind, unit=unit, max_length=max_length, say=say))


def histogram(
    lengths: NDArray[np.int32], kind: plot.Kind, *, unit: Unit, max_length: int = 0, say: Speaker
) -> bytes:
    """A picture of the rows' lengths, with a line at `max_length` unless that is 0.

    The SVG has no background and is read on white and on black. A PNG is in Chinese only if a font
    for it is installed.
    """
    say = plot.speaker(say, kind)
    return plot.render(
        lambda canvas: _draw_bins(
            canvas.add_subplot(), lengths, say(*UNITS[unit]), max_length, say
        ),
        kind,
        size=(8, 3.2),
        ink=plot.INK if kind == "svg" else "#333333",
        transparent=kind == "svg",
    )


def _draw_bins(
    axes: "Axes", lengths: NDArray[np.int32], unit: str, max_length: int, say: Speaker
) -> None:
    from matplotlib.ticker import MaxNLocator

    drawn = bins(lengths, BINS)
    axes.set_title(_histogram_title(lengths, drawn, unit, say), fontsize=10, loc="left")
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
    lengths: NDArray[np.int32], drawn: Sequence[Bin], unit: str, say: Speaker
) -> str:
    if not drawn:
        return say("no usable rows", "没有可用的数据行")
    known, low = figures(lengths), drawn[-1].low
    title = say(
        f"{known['rows']:,} rows, {known['total']:,} {unit}: median {known['median']:,}, "
        f"95 % up to {known['p95']:,}, longest {known['longest']:,}",
        f"{known['rows']:,} 行，{known['total']:,} 个{unit}：中位数 {known['median']:,}，"
        f"95% 不超过 {known['p95']:,}，最长 {known['longest']:,}",
    )
    last = say(f" (last bar: {low:,} or more)", f"（最后一栏：{low:,} 及以上）")
    return title + (last if drawn[-1].high is None else "")
