"""A diagnosis on the terminal: counts, the first findings of each kind, lengths, rows of tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ingest.errors import UserError
from rag.cli.console import out, say, table

if TYPE_CHECKING:
    from finetune.data.check import Diagnosis
    from finetune.data.report import View

FIRST = 5
"""Findings of a kind that are listed."""
BINS, BAR = 16, 40


def show(diagnosis: "Diagnosis") -> None:
    from finetune.data.histogram import UNITS
    from finetune.data.report import TITLES, counts

    out(
        say(
            f"{diagnosis.rows:,} rows: {diagnosis.usable:,} usable, {diagnosis.bad:,} bad, "
            f"{diagnosis.warned:,} with warnings",
            f"共 {diagnosis.rows:,} 行：可用 {diagnosis.usable:,}，有错误 {diagnosis.bad:,}，"
            f"有警告 {diagnosis.warned:,}",
        )
    )
    found = diagnosis.by_problem()
    if found:
        columns = [say("problem", "问题"), say("bad", "错误"), say("warnings", "警告")]
        rows = [
            (say(*TITLES[kind]), bad or "", warn or "") for kind, bad, warn in counts(diagnosis)
        ]
        table("", columns, rows)
        for problem, findings in found.items():
            rows = [(one.source, say(one.text, one.zh)) for one in findings[:FIRST]]
            if more := max(0, len(findings) - FIRST):
                rows.append(("…", say(f"and {more:,} more", f"另有 {more:,} 条")))
            table(say(*TITLES[problem]), [say("row", "行"), say("what", "说明")], rows)
    _show_lengths(diagnosis, say(*UNITS[diagnosis.unit]))


def _show_lengths(diagnosis: "Diagnosis", unit: str) -> None:
    from finetune.data.histogram import bins, figures

    drawn = bins(diagnosis.lengths, BINS)
    if not drawn:
        return
    most = max(bin.count for bin in drawn)
    rows = [
        (bin.label, f"{bin.count:,}", "█" * round(BAR * bin.count / most) or "▏" * bool(bin.count))
        for bin in drawn
    ]
    told = figures(diagnosis.lengths)
    out(
        say(
            f"{told['total']:,} {unit}; of a row: median {told['median']:,}, 95 % up to "
            f"{told['p95']:,}, longest {told['longest']:,}",
            f"共 {told['total']:,} 个{unit}；每行：中位数 {told['median']:,}，95% 不超过 "
            f"{told['p95']:,}，最长 {told['longest']:,}",
        )
    )
    table("", [unit, say("rows", "行数"), ""], rows)


def show_rows(diagnosis: "Diagnosis", views: "Sequence[View]", wanted: Sequence[str]) -> None:
    """The rows that were asked for; `UserError` for one that is not there."""
    from rich.console import Console
    from rich.text import Text

    from finetune.data.token_view import plain, shades, visible

    bad = {finding.source: finding for finding in diagnosis.findings if finding.bad}
    console = Console(highlight=False)
    for name in wanted:
        shown = [view for view in views if name in (view.source, view.source.rpartition(":")[2])]
        broken = [source for source in bad if name in (source, source.rpartition(":")[2])]
        if not shown and not broken:
            raise UserError(
                f"there is no row {name} (or it is blank); --row is a row's number, or FILE:NUMBER",
                zh=f"没有第 {name} 行（或为空行）；--row 为行号，或 文件:行号",
            )
        for source in broken:
            out(f"{source}: {say(bad[source].text, bad[source].zh)}")
        for view in shown:
            out(view.title(say))
            if not console.color_system:
                out(plain(view.pieces) + "\n")
                continue
            text = Text()
            for piece, shade in shades(view.pieces):
                colour = "magenta" if piece.special else "green" if piece.learnt else "bright_black"
                strong = "bold" if piece.learnt else "not bold"
                text.append(visible(piece.text), f"{strong} {colour}{' underline' * shade}")
            console.print(text, soft_wrap=True)
            out()
